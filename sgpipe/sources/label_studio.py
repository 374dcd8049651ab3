"""Label Studio's raw JSON: tasks, whose annotations or predictions have rectangles as boxes and
relations between them.

The format is described in https://labelstud.io/guide/task_format. Boxes are in percent of the
displayed image.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.images import image_exists, read_size
from sgpipe.recipe import WHOLE
from sgpipe.records import LABEL_STUDIO_DATASET, Box, Caption, Record, Relation, deduplicate
from sgpipe.sources import annotated, fields
from sgpipe.sources.annotated import AnnotationSource, ProblemCounts, infer_split, require_format
from sgpipe.sources.fields import FieldError, JsonObject, mapping
from sgpipe.sources.plugin import Source
from sgpipe.utils.console import count

# by id: the first result of a rectangle, and the labels of all its results
_Regions: TypeAlias = dict[str, tuple[JsonObject, list[str]]]

# where Label Studio serves files below its document root, named by `?d=`
LOCAL_FILES = "/data/local-files/"
CROWD = "crowd"  # the meta text of a region that is a crowd
_UPLOADS = "/data/upload/"
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")
# `labels` repeats the rectangle that it labels
_RECTANGLES = ("rectanglelabels", "rectangle", "labels")
_SPLIT = re.compile(r"\w{1,64}")
# By the direction of a relation: whether it holds from the first to the second, and back.
_DIRECTIONS = {"right": (True, False), "left": (False, True), "bi": (True, True)}


@dataclass(frozen=True)
class _Choice:
    """Which annotations of a task count."""

    predictions: bool
    annotator: str | None


def label_studio_source(
    annotations: Location,
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

    Raises:
        UserError: the file is missing, of another format, or of several splits.
    """
    require_format(annotations, "label-studio")
    chosen_split = _choose_split(annotations, split) or infer_split(annotations, images, WHOLE)
    choice = _Choice(predictions, annotator)

    def annotated_tasks(problems: ProblemCounts) -> Iterator[tuple[JsonObject, list[object]]]:
        """Yield the tasks of the split with the results that count."""
        for _, task in JsonStream(annotations):
            if _split(task) not in (None, chosen_split):
                problems["other_splits"] += 1
                continue
            try:
                fields.required(task, "data")
                results = _results(task, choice, problems)
            except FieldError:
                problems["malformed"] += 1
                continue
            if results is not None:
                yield task, results

    def start(task: tuple[JsonObject, list[object]]) -> Record:
        image_id = fields.identifier(task[0].get("id")) or ""
        return Record(image_id, LABEL_STUDIO_DATASET, chosen_split, "", 0, 0)

    def read(problems: ProblemCounts) -> Iterator[Record]:
        def fill(record: Record, task: tuple[JsonObject, list[object]]) -> None:
            content, results = task
            data = content["data"]
            address = fields.text(data, image_field)
            _fill_image(record, mapping(data), results, images, address)
            _fill_graph(record, mapping(data), results, problems)

        return annotated.read_records(annotated_tasks(problems), start, fill, problems)

    options = {"predictions": predictions, "annotator": annotator, "image_field": image_field}
    files = {"annotations": annotations}
    return AnnotationSource(LABEL_STUDIO_DATASET, chosen_split, read, files, options)


def _choose_split(annotations: Location, split: str | None) -> str | None:
    """Return the split that is asked for, or the only one that the tasks name, if they do.

    Raises:
        UserError: there is no such split, or there are several.
    """
    stated_splits = {_split(task) for _, task in JsonStream(annotations)}
    splits = sorted(stated_splits - {None}, key=str)
    choices = f"pass --split {' or '.join(map(str, splits))}"
    if split and splits and split not in splits:
        raise UserError(f"{annotations} has no task of split {split!r}: {choices}")
    if split is None and len(splits) > 1:
        raise UserError(f"{annotations} has tasks of several splits: {choices}")
    return split or next(iter(splits), None)


def _split(task: object) -> str | None:
    """Return the split that a task names, as `sgpipe export` writes it."""
    split = mapping(mapping(task).get("data")).get("split")
    return split if isinstance(split, str) and _SPLIT.fullmatch(split) else None


def _results(task: JsonObject, choice: _Choice, problems: ProblemCounts) -> list[object] | None:
    """Return what counts of a task, if anything: of annotations the ground truth, otherwise the
    latest one.
    """
    annotations = _objects(task.get("annotations"))
    if choice.annotator is not None:
        annotations = [item for item in annotations if choice.annotator in _annotators(item)]
    candidates = [item for item in annotations if not item.get("was_cancelled")]
    further = "further_annotations"
    if not annotations and choice.predictions:
        candidates = _objects(task.get("predictions"))
        further = "further_predictions"
    if not candidates:
        problems["skipped_tasks" if annotations else "unannotated_tasks"] += 1
        return None
    problems[further] += len(candidates) - 1
    return fields.array(max(reversed(candidates), key=_precedence), "result")


def _annotators(annotation: JsonObject) -> list[str]:
    """Return what the person is called: Label Studio writes an id, or `id` and `email`."""
    person = annotation.get("completed_by")
    if isinstance(person, dict):
        return [str(person.get("id")), str(person.get("email"))]
    return [str(person)]


def _precedence(annotation: JsonObject) -> tuple[bool, str]:
    time = annotation.get("updated_at") or annotation.get("created_at") or ""
    return annotation.get("ground_truth") is True, str(time)


def _objects(value: object) -> list[JsonObject]:
    """Return the objects of a list; anything else has none."""
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, dict)]


def _fill_image(
    record: Record, data: JsonObject, results: list[object], images: ImagePlace, address: str
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


def _file_name(address: str, images: ImagePlace) -> str:
    """Return the file of an image address: its longest tail that exists in the folder, otherwise
    its last part.

    Uploaded files are also looked up without the prefix that Label Studio gives them.
    """
    path = _path_of(address)
    names = [name for name in path.replace("\\", "/").split("/") if name]
    if not names:
        raise FieldError(f"the image address {address[:80]!r} names no file")
    tails = ["/".join(names[start:]) for start in range(len(names))]
    if _UPLOADS in path:
        tails.append(_UPLOAD_PREFIX.sub("", names[-1], count=1))
    return next((tail for tail in tails if image_exists(images, tail)), tails[-1])


def _path_of(address: str) -> str:
    """Return the path of an image address.

    Raises:
        FieldError: it has none.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        raise FieldError(f"the image address {address[:80]!r} is not valid") from None
    if parts.scheme == "data":
        raise FieldError("the task contains its image, and no file_name beside it")
    if parts.path.endswith(LOCAL_FILES):
        return parse_qs(parts.query).get("d", [""])[0]
    is_quoted = parts.scheme in ("", "http", "https")
    return unquote(parts.path) if is_quoted else parts.path


def _size(data: JsonObject, results: list[object]) -> tuple[int, int] | None:
    """Return the first width and height that a task states."""
    sizes = [fields.size(data)]
    for item in map(mapping, results):
        sides = {side: item.get(f"original_{side}") for side in ("width", "height")}
        sizes.append(fields.size(sides))
    return next(filter(all, sizes), None)


def _fill_graph(
    record: Record, data: JsonObject, results: list[object], problems: ProblemCounts
) -> None:
    """Add the objects and relations of an image.

    Several rectangles with one id are one, with the labels of all. Those in further images of the
    task do not count.

    Raises:
        FieldError: a value is missing or malformed.
    """
    regions, links = _regions_and_links(results, problems)
    numbers = mapping(data.get("category_ids"))
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


def _regions_and_links(
    results: list[object], problems: ProblemCounts
) -> tuple[_Regions, list[JsonObject]]:
    """Return the rectangles by id, each with all its labels, and the relations."""
    regions: _Regions = {}
    links: list[JsonObject] = []
    for number, item in enumerate(map(mapping, results)):
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


def _is_rectangle(item: JsonObject) -> bool:
    """Return whether a result is a rectangle in the first image of its task."""
    is_rectangle = item.get("type") in _RECTANGLES and "x" in mapping(item.get("value"))
    return is_rectangle and not item.get("item_index")


def _labels(item: object, *keys: str) -> list[str]:
    """Return the labels under the first of the keys.

    Raises:
        FieldError: they are not names.
    """
    values = mapping(item)
    listed = [values[key] for key in keys if values.get(key) is not None]
    labels = listed[0] if listed else []
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise FieldError(f"{keys[0]!r} is not a list of names")
    return [fields.clean(label) for label in labels]


def _box(item: JsonObject, name: str, numbers: JsonObject, record: Record) -> Box:
    value = mapping(item["value"])
    if item.get("image_rotation") or value.get("rotation"):
        raise FieldError("its image or a rectangle was rotated in Label Studio")
    percent = fields.numbers([value.get(key) for key in ("x", "y", "width", "height")], 4)
    sides = (record.width, record.height) * 2
    x, y, width, height = (number * side / 100 for number, side in zip(percent, sides, strict=True))
    try:
        category = fields.integer(numbers, name)
    except FieldError:
        category = 0
    texts = fields.as_list(mapping(item.get("meta")).get("text"))
    return Box(name, category, (x, y, width, height), CROWD in texts)


def _relations(
    link: JsonObject, indices: Mapping[str, int], problems: ProblemCounts
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
    if direction not in _DIRECTIONS:
        raise FieldError(
            f"the direction of a relation is {direction[:80]!r}, expected right, left or bi"
        )
    relations: list[Relation] = []
    is_forward, is_backward = _DIRECTIONS[direction]
    if is_forward:
        relations += [Relation(first, second, label, score) for label, score in labels]
    if is_backward:
        relations += [Relation(second, first, label, score) for label, score in labels]
    return relations


def _labels_with_scores(link: JsonObject) -> list[tuple[str, float | None]]:
    """Return the labels of a link, and the confidences that `sgpipe export` writes beside them;
    Label Studio keeps these in predictions only.
    """
    labels = _labels(link, "labels")
    confidences: Sequence[float | None] = [None] * len(labels)
    if link.get("scores") is not None:
        confidences = [fields.confidence(score) for score in fields.as_list(link["scores"])]
    if len(confidences) != len(labels):
        raise FieldError(
            f"a relation has {count(len(labels), 'label')} and {count(len(confidences), 'score')}"
        )
    pairs = zip(labels, confidences, strict=True)
    return [(label, score) for label, score in pairs if label.strip()]


LABEL_STUDIO = Source("label-studio", open=label_studio_source, states_split=True)
