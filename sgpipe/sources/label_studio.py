"""Label Studio's raw JSON: tasks, whose annotations or predictions have rectangles as boxes and
relations between them.

The format is described in https://labelstud.io/guide/task_format. Boxes are in percent of the
displayed image.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.json_stream import JsonStream
from sgpipe.images import image_exists, read_size
from sgpipe.recipe import WHOLE
from sgpipe.records import LABEL_STUDIO_DATASET, Box, Caption, Record, Relation, deduplicate
from sgpipe.sources import annotated, fields
from sgpipe.sources.annotated import (
    AnnotationSource,
    ProblemCounts,
    error_row,
    infer_split,
    require_format,
)
from sgpipe.sources.fields import FieldError
from sgpipe.utils.console import count

LOCAL_FILES = (  # where Label Studio serves files below its document root, named by `?d=`
    "/data/local-files/"
)
CROWD = "crowd"  # the meta text of a region that is a crowd

_UPLOADS = "/data/upload/"
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")
_RECTANGLES = (
    "rectanglelabels",
    "rectangle",
    "labels",
)  # `labels` repeats the rectangle that it labels
_SPLIT = re.compile(r"\w{1,64}")


def label_studio_source(
    annotations: Path,
    images: ImagePlace,
    split: str | None = None,
    predictions: bool = False,
    annotator: str | None = None,
    image_field: str = "image",
) -> AnnotationSource:
    """Return the annotated tasks of a project that Label Studio exported as JSON, or tasks in that
    form.

    Args:
        images: where the addresses of the tasks are looked up.
        split: None: the only one that the tasks name.
        predictions: read those of tasks that nobody has annotated; otherwise these tasks are left
            out.
        annotator: id or e-mail address of the only person whose annotations count.
        image_field: the key of a task's data that contains the address of its image.

    Raises UserError: the file is missing, of another format, or of several splits.
    """
    require_format(annotations, "label-studio")
    splits = sorted(
        {named for _, task in JsonStream(annotations) if (named := _split(task)) is not None}
    )
    if (splits and split and split not in splits) or (len(splits) > 1 and split is None):
        found = f"no task of split {split!r}" if split else "tasks of several splits"
        raise UserError(f"{annotations} has {found}: pass --split {' or '.join(splits)}")
    chosen = split or (splits[0] if splits else infer_split(annotations, images, WHOLE))

    def read(problems: ProblemCounts) -> Iterator[Record]:
        for _, task in JsonStream(annotations):
            if _split(task) not in (None, chosen):
                problems["other_splits"] += 1
                continue
            try:
                data = fields.required(task, "data")
                results = _results(task, annotator, predictions, problems)
            except FieldError:
                problems["malformed"] += 1
                continue
            if results is not None:
                record = Record(
                    fields.identifier(task.get("id")) or "", LABEL_STUDIO_DATASET, chosen, "", 0, 0
                )
                with error_row(record):
                    address = fields.text(data, image_field)
                    _fill(record, data, results, images, address, problems)
                yield record

    options = {"predictions": predictions, "annotator": annotator, "image_field": image_field}
    return AnnotationSource(
        LABEL_STUDIO_DATASET, chosen, read, {"annotations": annotations}, options
    )


def _results(
    task: Mapping[str, Any], annotator: str | None, predictions: bool, problems: ProblemCounts
) -> list[Any] | None:
    """Return what counts of a task, if anything: of annotations the ground truth, otherwise the
    latest one.
    """
    annotations = _dicts(task.get("annotations"))
    if annotator is not None:  # Label Studio writes an id, or an object with `id` and `email`
        people = [annotation.get("completed_by") for annotation in annotations]
        names = [
            [who.get("id"), who.get("email")] if isinstance(who, dict) else [who] for who in people
        ]
        annotations = [
            annotation
            for annotation, name in zip(annotations, names, strict=True)
            if annotator in map(str, name)
        ]
    found = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    further = "further_annotations"
    if not annotations and predictions:
        found = _dicts(task.get("predictions"))
        further = "further_predictions"
    if not found:
        problems["skipped_tasks" if annotations else "unannotated_tasks"] += 1
        return None
    problems[further] += len(found) - 1

    def precedence(result: Mapping[str, Any]) -> tuple[bool, str]:
        return result.get("ground_truth") is True, str(
            result.get("updated_at") or result.get("created_at") or ""
        )

    return fields.array(max(reversed(found), key=precedence), "result")


def _fill(
    record: Record,
    data: Any,
    results: Sequence[Any],
    images: ImagePlace,
    address: str,
    problems: ProblemCounts,
) -> None:
    """Add what a task says of an image, and of its objects and relations. Raises FieldError,
    ImageError.

    Several rectangles with one id are one, with the labels of all. Those in further images of the
    task do not count.
    """
    record.file_name = (
        fields.text(data, "file_name") if "file_name" in data else _file_name(address, images)
    )
    stated = fields.identifier(data.get("image_id"))
    record.image_id = (
        (record.image_id or annotated.image_id_from_name(record.file_name))
        if stated is None
        else stated
    )
    record.dataset = fields.text(data, "dataset") if "dataset" in data else record.dataset
    sides = ("width", "height")
    originals = (
        fields.size({side: item.get(f"original_{side}") for side in sides})
        for item in _dicts(results)
    )
    size = next((size for size in (fields.size(data), *originals) if all(size)), None)
    record.width, record.height = size or read_size(images, record.file_name, upright=True)
    texts = data.get("captions") if isinstance(data.get("captions"), list) else []
    record.captions = [Caption(fields.clean(text)) for text in texts if isinstance(text, str)]
    regions: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    links = []
    for number, item in enumerate(map(_dict, results)):
        if item.get("type") == "relation":
            links.append(item)
        elif (
            item.get("type") in _RECTANGLES
            and "x" in _dict(item.get("value"))
            and not item.get("item_index")
        ):
            key = (
                fields.identifier(item.get("id")) or f"\0{number}"
            )  # without an id, no relation refers to it
            regions.setdefault(key, (item, []))[1].extend(
                _labels(item["value"], "rectanglelabels", "labels")
            )
        else:
            problems["other_results"] += 1
    boxes: list[Box | None] = []
    for item, labels in regions.values():
        named = [label for label in labels if label.strip()]
        problems["nameless"] += not named
        problems["further_labels"] += len(set(named[1:]) - set(named[:1]))
        boxes.append(
            _box(item, named[0], _dict(data.get("category_ids")), record) if named else None
        )
    indices = {key: index for index, key in enumerate(regions)}
    found = [relation for link in links for relation in _relations(link, indices, problems)]
    record.relations = deduplicate(found)
    problems["repeated_relations"] += len(found) - len(record.relations)
    annotated.replace_objects(record, boxes, problems)


def _split(task: Any) -> str | None:
    """Return the split that a task names, as `sgpipe export` writes it."""
    split = _dict(_dict(task).get("data")).get("split")
    return split if isinstance(split, str) and _SPLIT.fullmatch(split) else None


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, Sequence) else []


def _file_name(address: str, images: ImagePlace) -> str:
    """Return the file of an image address: its longest tail that exists in the folder, otherwise
    its last part.

    Uploaded files are also looked up without the prefix that Label Studio gives them.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        raise FieldError(f"the image address {address[:80]!r} is not valid") from None
    if parts.scheme == "data":
        raise FieldError("the task contains its image, and no file_name beside it")
    path = unquote(parts.path) if parts.scheme in ("", "http", "https") else parts.path
    if parts.path.endswith(LOCAL_FILES):
        path = parse_qs(parts.query).get("d", [""])[0]
    names = [name for name in path.replace("\\", "/").split("/") if name]
    if not names:
        raise FieldError(f"the image address {address[:80]!r} names no file")
    tails = ["/".join(names[start:]) for start in range(len(names))]
    if _UPLOADS in parts.path:
        tails.append(_UPLOAD_PREFIX.sub("", names[-1], count=1))
    return next((tail for tail in tails if image_exists(images, tail)), tails[-1])


def _labels(item: Mapping[str, Any], *keys: str) -> list[str]:
    """Return the labels under the first of the keys. Raises FieldError: they are not names."""
    labels: Any = next((item[key] for key in keys if item.get(key) is not None), [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise FieldError(f"{keys[0]!r} is not a list of names")
    return [fields.clean(label) for label in labels]


def _box(item: Mapping[str, Any], name: str, numbers: Mapping[str, Any], record: Record) -> Box:
    value = item["value"]
    if item.get("image_rotation") or value.get("rotation"):
        raise FieldError("its image or a rectangle was rotated in Label Studio")
    percent = fields.numbers([value.get(key) for key in ("x", "y", "width", "height")], 4)
    sides = (record.width, record.height) * 2
    x, y, width, height = (number * side / 100 for number, side in zip(percent, sides, strict=True))
    try:
        category = fields.integer(numbers, name)
    except FieldError:
        category = 0
    return Box(
        name,
        category,
        (x, y, width, height),
        CROWD in fields.as_list(_dict(item.get("meta")).get("text")),
    )


def _relations(
    link: Mapping[str, Any], indices: Mapping[str, int], problems: ProblemCounts
) -> list[Relation]:
    """Return the relations that a link between two regions states; one for each label and
    direction.
    """
    named = _labels(link, "labels")
    scores = link.get(
        "scores"
    )  # written by `sgpipe export`; Label Studio keeps it in predictions only
    confidences = (
        [None] * len(named)
        if scores is None
        else list(map(fields.confidence, fields.as_list(scores)))
    )
    if len(confidences) != len(named):
        raise FieldError(
            f"a relation has {count(len(named), 'label')} and {count(len(confidences), 'score')}"
        )
    labels = [
        (label, score) for label, score in zip(named, confidences, strict=True) if label.strip()
    ]
    problems["nameless"] += not labels
    first, second = (
        indices.get(fields.identifier(link.get(key)) or "") for key in ("from_id", "to_id")
    )
    if first is None or second is None:
        problems["unknown_object"] += len(labels)
        return []
    there = (first, second)
    back = (second, first)
    direction = str(link.get("direction") or "right")
    pairs = {"right": (there,), "left": (back,), "bi": (there, back)}.get(direction)
    if pairs is None:
        raise FieldError(
            f"the direction of a relation is {direction[:80]!r}, expected right, left or bi"
        )
    return [
        Relation(subject, object_, label, score)
        for subject, object_ in pairs
        for label, score in labels
    ]
