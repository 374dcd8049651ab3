"""Visual Genome, and scene graphs in its format.

A relation refers to its objects by id, or contains them. Visual Genome's annotators saw one region
at a time, so one fact about an image may be annotated several times, with different boxes and
words. As in RLIPv2's published preprocessing "v1", repeated and redundant relations are removed,
and an image keeps at most a hundred relations.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location, read_text
from sgpipe.images import image_exists
from sgpipe.records import Attribute, Box, Record, Relation
from sgpipe.sources import annotated, fields
from sgpipe.sources.annotated import NO_CATEGORY_ID, AnnotationSource, ProblemCounts
from sgpipe.sources.fields import FieldError, JsonObject
from sgpipe.sources.plugin import Source

MAX_RELATIONS = 100  # the number of query pairs of RLIPv2
_IMAGE_FOLDERS = ("VG_100K", "VG_100K_2")  # of the two downloads of images
_SAME_BOX_IOU = 0.7


def visual_genome_source(
    annotations: Location,
    images: ImagePlace,
    split: str,
    image_data: Location | None = None,
    object_aliases: Path | None = None,
    predicate_aliases: Path | None = None,
    preprocess: bool = True,
) -> AnnotationSource:
    """Return Visual Genome's images.

    Args:
        image_data: image_data.json with the image sizes; without it, they come from the images.
        object_aliases, predicate_aliases: files of words with the same meaning, one group per line.
        preprocess: remove redundant relations.

    Raises:
        UserError: a file is missing or of another format, or there are aliases without
            preprocessing.
    """
    if (object_aliases or predicate_aliases) and not preprocess:
        raise UserError(
            "aliases are used only by the preprocessing: omit --no-preprocess or the alias files"
        )
    annotated.require_format(annotations, "vg", "relationships")
    if image_data:
        annotated.require_format(image_data, "image data")

    def read(problems: ProblemCounts) -> Iterator[Record]:
        objects = load_aliases(object_aliases)
        predicates = load_aliases(predicate_aliases)
        sizes = _image_sizes(image_data)

        def fill(record: Record, item: object) -> None:
            add_graph(record, item, problems)
            if preprocess:
                remove_redundant(record, objects, predicates, problems)
            annotated.drop_nameless(record, problems)
            if record.image_id in sizes:
                record.width, record.height = sizes[record.image_id]
            record.file_name = locate_image(images, record.file_name)

        def start(item: object) -> Record:
            return graph_record(item, "visual_genome", split)

        return annotated.read_records(iter_graphs(annotations), start, fill, problems)

    files = {
        "annotations": annotations,
        "image_data": image_data,
        "object_aliases": object_aliases,
        "predicate_aliases": predicate_aliases,
    }
    present = {role: path for role, path in files.items() if path}
    return AnnotationSource("visual_genome", split, read, present, {"preprocess": preprocess})


def _image_sizes(image_data: Location | None) -> dict[str, tuple[int, int]]:
    sizes: dict[str, tuple[int, int]] = {}
    if image_data is None:
        return sizes
    for _, item in JsonStream(image_data):
        with suppress(FieldError):
            sizes[fields.required_id(item)] = fields.size(item)
    return sizes


def locate_image(images: ImagePlace, name: str) -> str:
    """Return the name of an image below `images`, which may be in one of two folders."""
    names = [name, *(f"{folder}/{name}" for folder in _IMAGE_FOLDERS)]
    return next((candidate for candidate in names if image_exists(images, candidate)), name)


def iter_graphs(path: Location) -> Iterator[object]:
    """Yield the scene graphs of a file, which may also consist of a single one."""
    stream = JsonStream(path)
    single: dict[str, object] = {}
    arrays: dict[str, list[object]] = defaultdict(list)
    for key, item in stream:
        if key == "":
            yield item
        elif key in stream.arrays:
            arrays[key].append(item)
        else:
            single[key] = item
    if single or arrays:
        yield single | arrays


def graph_record(item: object, dataset: str, split: str) -> Record:
    """Return a record for a scene graph.

    Raises:
        FieldError: it has no image id.
    """
    image_id = fields.required_id(item)
    file_name = fields.clean(str(fields.mapping(item).get("file_name") or f"{image_id}.jpg"))
    return Record(image_id, dataset, split, file_name, *fields.size(item))


def add_graph(record: Record, item: object, problems: ProblemCounts) -> None:
    """Add the objects and relations of a scene graph, with unchanged names and predicates.

    Unreadable objects and relations are counted as malformed, relations of unlisted objects as
    unknown_object.
    """
    objects = _listed(item, "objects", problems)
    relationships = _listed(item, "relationships", problems)

    boxes: dict[int, Box] = {}  # the last object of an id counts, as in RLIPv2's preprocessing
    for entry in [*objects, *_inline_objects(relationships)]:
        with _malformed_counted(problems):
            object_id = fields.integer(entry, "object_id")
            box = _read_box(entry)
            box.attributes = _read_attributes(entry, problems)
            boxes[object_id] = box
    record.objects = list(boxes.values())

    indices = {object_id: index for index, object_id in enumerate(boxes)}
    for entry in relationships:
        with _malformed_counted(problems):
            predicate = fields.text(entry, "predicate")
            confidence = fields.confidence(fields.mapping(entry).get("confidence"))
            subject = indices.get(_end_id(entry, "subject"))
            object_ = indices.get(_end_id(entry, "object"))
            if subject is None or object_ is None:
                problems["unknown_object"] += 1
            else:
                record.relations.append(Relation(subject, object_, predicate, confidence))


@contextmanager
def _malformed_counted(problems: ProblemCounts) -> Iterator[None]:
    try:
        yield
    except FieldError:
        problems["malformed"] += 1


def _listed(item: object, key: str, problems: ProblemCounts) -> list[object]:
    """Return a list that may be missing; anything else is counted as malformed."""
    with _malformed_counted(problems):
        return fields.array({key: fields.mapping(item).get(key) or []}, key)
    return []


def _inline_objects(relationships: Iterable[object]) -> Iterator[JsonObject]:
    """Yield the objects that relations contain."""
    for entry in relationships:
        for end in ("subject", "object"):
            inline = fields.mapping(entry).get(end)
            if isinstance(inline, dict):
                yield inline


def _end_id(entry: object, end: str) -> int:
    """Return the object id of an end of a relation, which may contain the object."""
    inline = fields.mapping(entry).get(end)
    if isinstance(inline, dict):
        return fields.integer(inline, "object_id")
    return fields.integer(entry, f"{end}_id")


def _read_box(entry: object) -> Box:
    sides = [fields.required(entry, key) for key in ("x", "y", "w", "h")]
    x, y, width, height = fields.numbers(sides, 4)
    return Box(_object_name(entry), NO_CATEGORY_ID, (x, y, width, height))


def _object_name(entry: object) -> str:
    """Return the `name` of an object, or the first of its `names`."""
    if "name" in fields.mapping(entry):
        return fields.text(entry, "name")
    names = fields.required(entry, "names")
    if isinstance(names, list) and names:
        return fields.text({"names": names[0]}, "names")
    return fields.text(entry, "names")


def _read_attributes(entry: object, problems: ProblemCounts) -> list[Attribute]:
    words = _listed(entry, "attributes", problems)
    texts = [fields.clean(word).strip() for word in words if isinstance(word, str)]
    problems["malformed"] += len(words) - len(texts)
    return [Attribute(text) for text in dict.fromkeys(texts) if text]


def load_aliases(path: Path | None) -> dict[str, str]:
    """Read lines of words with the same meaning, separated by commas; map each to the first.

    Without a file, the result is empty.

    Raises:
        UserError: the file cannot be read, or has no comma.
    """
    if path is None:
        return {}
    groups = [line.strip().split(",") for line in read_text(path, "alias file").splitlines()]
    if not any(len(group) > 1 for group in groups):
        raise UserError(f"alias file {path}: expected lines such as 'tree,trees', found no comma")
    aliases: dict[str, str] = {}
    for group in groups:
        aliases |= dict.fromkeys(group, group[0])
    return aliases


def remove_redundant(
    record: Record,
    objects: Mapping[str, str],
    predicates: Mapping[str, str],
    problems: ProblemCounts,
) -> None:
    """Convert names to lower case, remove repeated and redundant relations, and keep the first
    hundred.

    A relation is repeated if an earlier one equals it. It is redundant if an earlier one has the
    same predicate, subject class and object class, and an IoU of at least 0.7 with it for both
    boxes.

    Args:
        objects: maps object names with the same meaning to one of them.
        predicates: maps predicates likewise.
    """
    _convert_to_lower_case(record)
    distinct: dict[tuple[int, int, str], Relation] = {}
    for relation in record.relations:
        key = (relation.subject, relation.object, relation.predicate)
        distinct.setdefault(key, relation)
    problems["repeated_relations"] += len(record.relations) - len(distinct)

    relations: list[Relation] = []
    by_meaning: dict[tuple[str, str, str], list[tuple[Box, Box]]] = {}
    for relation in distinct.values():
        subject = record.objects[relation.subject]
        object_ = record.objects[relation.object]
        meaning = (
            objects.get(subject.category, subject.category),
            objects.get(object_.category, object_.category),
            predicates.get(relation.predicate, relation.predicate),
        )
        earlier_pairs = by_meaning.setdefault(meaning, [])
        if not any(_is_same_pair((subject, object_), pair) for pair in earlier_pairs):
            earlier_pairs.append((subject, object_))
            relations.append(relation)
    problems["redundant_relations"] += len(distinct) - len(relations)
    problems["relations_beyond_100"] += max(0, len(relations) - MAX_RELATIONS)
    record.relations = relations[:MAX_RELATIONS]


def _convert_to_lower_case(record: Record) -> None:
    for box in record.objects:
        box.category = box.category.lower()
        names = dict.fromkeys(attribute.name.lower() for attribute in box.attributes)
        box.attributes = [Attribute(name) for name in names]
    for relation in record.relations:
        relation.predicate = relation.predicate.lower()


def _is_same_pair(pair: tuple[Box, Box], other: tuple[Box, Box]) -> bool:
    return min(map(pixel_iou, pair, other)) >= _SAME_BOX_IOU


def pixel_iou(a: Box, b: Box) -> float:
    """Return the IoU of two boxes in whole pixels, with their last row and column included."""
    ax, ay, aw, ah = a.bbox
    bx, by, bw, bh = b.bbox
    width = min(ax + aw, bx + bw) - max(ax, bx)
    height = min(ay + ah, by + bh) - max(ay, by)
    if width <= 0 or height <= 0:
        return 0.0
    intersection = (width + 1) * (height + 1)
    return intersection / ((aw + 1) * (ah + 1) + (bw + 1) * (bh + 1) - intersection)


VISUAL_GENOME = Source("vg", open=visual_genome_source)
