"""Label Studio's raw JSON: tasks, whose annotations or predictions have rectangles as boxes and
relations between them.

The format is described in https://labelstud.io/guide/task_format. Boxes are in percent of the
displayed image.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
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

# by id: the first result of a rectangle, and the labels of all its results
_Regions: TypeAlias = dict[str, tuple[Mapping[str, Any], list[str]]]

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
    if annotator is not None:
        annotations = [item for item in annotations if annotator in _annotators(item)]
    counted = [item for item in annotations if not item.get("was_cancelled")]
    further = "further_annotations"
    if not annotations and predictions:
        counted = _dicts(task.get("predictions"))
        further = "further_predictions"
    if not counted:
        problems["skipped_tasks" if annotations else "unannotated_tasks"] += 1
        return None
    problems[further] += len(counted) - 1
    return fields.array(max(reversed(counted), key=_precedence), "result")


def _annotators(annotation: Mapping[str, Any]) -> list[str]:
    """Return what the person is called: Label Studio writes an id, or `id` and `email`."""
    person = annotation.get("completed_by")
    if isinstance(person, dict):
        return [str(person.get("id")), str(person.get("email"))]
    return [str(person)]


def _precedence(annotation: Mapping[str, Any]) -> tuple[bool, str]:
    time = annotation.get("updated_at") or annotation.get("created_at") or ""
    return annotation.get("ground_truth") is True, str(time)


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
    _fill_image(record, data, results, images, address)
    regions, links = _regions_and_links(results, problems)
    numbers = _dict(data.get("category_ids"))
    boxes: list[Box | None] = []
    for item, labels in regions.values():
        names = [label for label in labels if label.strip()]
        problems["nameless"] += not names
        problems["further_labels"] += len(set(names[1:]) - set(names[:1]))
        boxes.append(_box(item, names[0], numbers, record) if names else None)
    indices = {key: index for index, key in enumerate(regions)}
    relations: list[Relation] = []
    for link in links:
        relations += _relations(link, indices, problems)
    record.relations = deduplicate(relations)
    problems["repeated_relations"] += len(relations) - len(record.relations)
    annotated.replace_objects(record, boxes, problems)


def _fill_image(
    record: Record, data: Any, results: Sequence[Any], images: ImagePlace, address: str
) -> None:
    """Add the name, id, dataset, size and captions of the image, as `sgpipe export` states them or
    as they can be found out.
    """
    if "file_name" in data:
        record.file_name = fields.text(data, "file_name")
    else:
        record.file_name = _file_name(address, images)
    stated_id = fields.identifier(data.get("image_id"))
    if stated_id is not None:
        record.image_id = stated_id
    elif not record.image_id:
        record.image_id = annotated.image_id_from_name(record.file_name)
    if "dataset" in data:
        record.dataset = fields.text(data, "dataset")
    record.width, record.height = _size(data, results) or read_size(
        images, record.file_name, upright=True
    )
    captions = data.get("captions")
    if isinstance(captions, list):
        texts = [text for text in captions if isinstance(text, str)]
        record.captions = [Caption(fields.clean(text)) for text in texts]


def _size(data: Any, results: Sequence[Any]) -> tuple[int, int] | None:
    """Return the first width and height that a task states."""
    sizes = [fields.size(data)]
    for item in _dicts(results):
        sides = {side: item.get(f"original_{side}") for side in ("width", "height")}
        sizes.append(fields.size(sides))
    return next(filter(all, sizes), None)


def _regions_and_links(
    results: Sequence[Any], problems: ProblemCounts
) -> tuple[_Regions, list[Mapping[str, Any]]]:
    """Return the rectangles by id, each with all its labels, and the relations."""
    regions: _Regions = {}
    links: list[Mapping[str, Any]] = []
    for number, item in enumerate(map(_dict, results)):
        if item.get("type") == "relation":
            links.append(item)
        elif _is_rectangle(item):
            # Without an id, no relation refers to it.
            key = fields.identifier(item.get("id")) or f"\0{number}"
            _, labels = regions.setdefault(key, (item, []))
            labels += _labels(item["value"], "rectanglelabels", "labels")
        else:
            problems["other_results"] += 1
    return regions, links


def _is_rectangle(item: Mapping[str, Any]) -> bool:
    """Return whether a result is a rectangle in the first image of its task."""
    is_rectangle = item.get("type") in _RECTANGLES and "x" in _dict(item.get("value"))
    return is_rectangle and not item.get("item_index")


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
    labels = _labels_with_scores(link)
    problems["nameless"] += not labels
    first = indices.get(fields.identifier(link.get("from_id")) or "")
    second = indices.get(fields.identifier(link.get("to_id")) or "")
    if first is None or second is None:
        problems["unknown_object"] += len(labels)
        return []
    direction = str(link.get("direction") or "right")
    if direction not in ("right", "left", "bi"):
        raise FieldError(
            f"the direction of a relation is {direction[:80]!r}, expected right, left or bi"
        )
    relations: list[Relation] = []
    if direction != "left":
        relations += [Relation(first, second, label, score) for label, score in labels]
    if direction != "right":
        relations += [Relation(second, first, label, score) for label, score in labels]
    return relations


def _labels_with_scores(link: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """Return the labels of a link, and the confidences that `sgpipe export` writes beside them;
    Label Studio keeps these in predictions only.
    """
    labels = _labels(link, "labels")
    confidences: list[float | None] = [None] * len(labels)
    if link.get("scores") is not None:
        confidences = [fields.confidence(score) for score in fields.as_list(link["scores"])]
    if len(confidences) != len(labels):
        raise FieldError(
            f"a relation has {count(len(labels), 'label')} and {count(len(confidences), 'score')}"
        )
    pairs = zip(labels, confidences, strict=True)
    return [(label, score) for label, score in pairs if label.strip()]
