"""The nouns that flow through the pipeline, and the one Arrow schema they are stored in.

A `Record` is one image with everything known about it. Sources make records, stages fill their
columns, shards store them. Boxes are `xywh` in pixels of the original image everywhere in this
module.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import accumulate, pairwise
from numbers import Integral, Real
from operator import itemgetter
from reprlib import repr as shortened
from typing import Any, Literal, NamedTuple, get_args

import pyarrow as pa
import pyarrow.compute as pc

SCHEMA_VERSION = 3

NO_OBJECT = "missing objects"
TRAINING_CONFIDENCE = 0.2  # RLIPv2 trains on relations of at least this confidence
FOLDER_DATASET = "folder"  # the dataset of images without annotations
# the dataset of images in Parquet files, which `datasets` shows as EXIF rotates them
HUB_DATASET = "hub"
# the dataset of images that were annotated as a browser shows them
LABEL_STUDIO_DATASET = "label_studio"

Scope = Literal["image", "box", "pair"]
Status = Literal["ok", "error"]
BoxOrigin = Literal["annotation", "detector", "grounded"]
RelationOrigin = Literal[
    "annotated", "person", "tagger", "clip", "vlm", "layout", "marks", "captions"
]
ORIGINS: tuple[RelationOrigin, ...] = get_args(RelationOrigin)
# What a row can lack, and why.
LEFT_OUT = {
    "boxes": "boxes beyond detect.max_boxes",
    "captions": "captions that are blank or too many",
    "regions": "regions beyond caption.max_crops",
    "words": "words beyond ground.max_words",
    "grounded": "boxes of words beyond ground.max_boxes",
    "pairs": "pairs beyond pair.max_pairs",
    "marks": "boxes beyond pair.max_marks",
    "answers": "answers of pair.model that are unusable, at least in part",
}

_BBOX = "tuple[float, float, float, float]"
# How the nouns are stored, by the types of their fields: coordinates in full precision, scores not.
_ARROW = {
    **dict.fromkeys(("str", "Scope", "Status", "BoxOrigin"), pa.string()),
    "int": pa.int32(), "float": pa.float32(), "bool": pa.bool_(),
    "list[int]": pa.list_(pa.int32()), "list[str]": pa.list_(pa.string()),
    _BBOX: pa.list_(pa.float64()),
    "dict[str, int]": pa.struct([(name, pa.int64()) for name in LEFT_OUT]),
}  # fmt: skip

# The same for values of code that others wrote: what they must be, and how this is called.
_VALUES: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(("str", "Scope", "Status", "BoxOrigin"), (str, "a str")),
    "int": (Integral, "an int"),
    "float": (Real, "a number"),
    "bool": (bool, "a bool"),
    "dict[str, int]": (dict, "a dict"),
    _BBOX: ((list, tuple), "four numbers"),
}

# What every row has.
IMAGE_FIELDS = ("image_id", "dataset", "split", "file_name", "width", "height", "status")


@dataclass(slots=True)
class Attribute:
    """What an object is like ("red", "two"); `caption` indexes the captions of its record, None: it
    was annotated.
    """

    name: str
    caption: int | None = None


@dataclass(slots=True)
class Box:
    """One object. `bbox` is xywh in pixels of the original image, already clipped to it.

    `origin` says who put the box there; `score` is the detector's, None without one; `phrase` has
    the words of a caption by which it was grounded; `segmentation` is the JSON of COCO's: polygons,
    or run lengths.

    V-COCO annotates what people do without an object: "smile". The relation then points to an
    object of category `NO_OBJECT` whose bbox is (0, 0, 0, 0), at most one in an image.
    """

    category: str
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: bool = False
    origin: BoxOrigin = "annotation"
    score: float | None = None
    phrase: str | None = None
    attributes: list[Attribute] = field(default_factory=list)
    segmentation: str | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether it stands for the object that a relation does not have."""
        return self.category == NO_OBJECT and not any(self.bbox)

    @property
    def rank(self) -> tuple[float, tuple[float, float, float, float], str]:
        """A key that sorts boxes, the largest first, by what they are: never by their order in a
        file.
        """
        return -self.bbox[2] * self.bbox[3], self.bbox, self.category


@dataclass(slots=True)
class Caption:
    """One sentence about the image (`boxes` empty), one box, or the union of a pair of boxes."""

    text: str
    scope: Scope = "image"
    boxes: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Triplet:
    """A relation stated by a caption: noun phrases, predicate, and the class names they were
    matched to.

    `predicate` is the surface form ("sitting on"), `predicate_lemma` its lemma ("sit on");
    `caption` indexes the record's captions; the categories are None until the pair stage matches
    them, and stay None if no object of the image has such a name.
    """

    subject: str
    predicate: str
    object: str
    subject_head: str
    object_head: str
    predicate_lemma: str
    caption: int
    subject_category: str | None = None
    object_category: str | None = None


class Mention(NamedTuple):
    """A thing that a caption names: the name, its head noun, what it is like ("red", "two"), and
    the caption's number.

    Mentions are not stored: the pair stage turns them into attributes of objects.
    """

    phrase: str
    head: str
    attributes: tuple[str, ...]
    caption: int


@dataclass(slots=True)
class Pair:
    """An ordered pair of boxes (indices into `Record.objects`) and the predicates it may carry."""

    subject: int
    object: int
    predicates: list[str]


@dataclass(slots=True)
class Relation:
    """A predicate between two boxes (indices into `Record.objects`); confidence is None for ground
    truth.

    `origin` says who stated it: the annotations, a person who judged the run, the model of
    `tag.method`, the direct questions of `pair.candidates`, or the captions alone. In a merged run
    it may be several `RelationOrigin`s, the strongest first, joined by "+".
    """

    subject: int
    object: int
    predicate: str
    confidence: float | None = None
    origin: str = "annotated"

    @property
    def origins(self) -> list[str]:
        """All that stated it, the strongest first."""
        return self.origin.split("+")


@dataclass(slots=True)
class Record:
    """One image and everything the pipeline knows about it; `file_name` is relative to the image
    root.

    `left_out` has the number of each of `LEFT_OUT` that are missing from the row, if there are any.
    `mentions` are not
    stored: the parse stage leaves them to the pair stage; None: it did not run, and attributes
    stay.
    """

    image_id: str
    dataset: str
    split: str
    file_name: str
    width: int
    height: int
    objects: list[Box] = field(default_factory=list)
    captions: list[Caption] = field(default_factory=list)
    triplets: list[Triplet] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    status: Status = "ok"
    error: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    mentions: list[Mention] | None = None

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    def copy(self) -> Record:
        """Return a record with lists of its own, of the same boxes, captions and so on."""
        return Record(
            self.image_id,
            self.dataset,
            self.split,
            self.file_name,
            self.width,
            self.height,
            self.objects.copy(),
            self.captions.copy(),
            self.triplets.copy(),
            self.pairs.copy(),
            self.relations.copy(),
            self.status,
            self.error,
            self.left_out.copy(),
            self.mentions,
        )

    def fail(self, stage: str, reason: str) -> None:
        """Turn the record into an error row, which has no relations; later stages skip it."""
        self.status = "error"
        self.relations = []
        self.error = f"{stage}: {reason}"


def _declared(noun: type) -> dict[str, str]:
    """Return the types of the fields of a noun that are stored, by name."""
    return {column.name: str(column.type) for column in fields(noun) if column.name != "mentions"}


def list_of(**columns: pa.DataType) -> pa.DataType:
    return pa.list_(pa.struct(list(columns.items())))


def _columns(noun: type) -> dict[str, pa.DataType]:
    kinds = _declared(noun)
    return {name: _ARROW[kind.removesuffix(" | None")] for name, kind in kinds.items()}


_NOUNS = {noun.__name__: noun for noun in (Attribute, Box, Caption, Triplet, Pair, Relation)}
for _name, _noun in _NOUNS.items():
    _ARROW[f"list[{_name}]"] = list_of(**_columns(_noun))
SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=name not in IMAGE_FIELDS)
        for name, kind in _columns(Record).items()
    ],
    metadata={"sgpipe.schema_version": str(SCHEMA_VERSION)},
)

_NESTED = {
    "objects": Box,
    "captions": Caption,
    "triplets": Triplet,
    "pairs": Pair,
    "relations": Relation,
}
_KINDS = {noun: _declared(noun) for noun in (Record, *_NOUNS.values())}
_FIELDS = {noun: [f.name for f in fields(noun)] for noun in (Record, Attribute, *_NESTED.values())}


def to_table(records: Iterable[Record]) -> pa.Table:
    """Return records as an Arrow table of `SCHEMA`."""
    return pa.Table.from_pylist([_row_of(record) for record in records], schema=SCHEMA)


def _row_of(record: Record) -> dict[str, Any]:
    # not `dataclasses.asdict`, whose deep copies would take most of the time
    row = _values(record)
    row["left_out"] = {name: record.left_out.get(name, 0) for name in LEFT_OUT}
    for name in _NESTED:
        row[name] = [_values(item) for item in row[name]]
    for item in row["objects"]:
        item["attributes"] = [_values(attribute) for attribute in item["attributes"]]
    return row


def _values(noun: Any) -> dict[str, Any]:
    return {name: getattr(noun, name) for name in _FIELDS[type(noun)]}


def from_table(table: pa.Table) -> list[Record]:
    """Return the records stored in a table of `SCHEMA`; columns the table lacks keep their
    defaults.

    Values are taken from Arrow a column at a time: a dict for each item would take most of the
    time.
    """
    kinds = {name: kind for name, kind in _KINDS[Record].items() if name in table.column_names}
    with _collector_paused():
        columns = [_values_in(table[name].combine_chunks(), kind) for name, kind in kinds.items()]
        rows = zip(*columns, strict=True)
        return [Record(**dict(zip(kinds, row, strict=True))) for row in rows]


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector, which would look through all nouns again and again while they
    are made: none of them is part of a cycle.
    """
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()


def _values_in(column: pa.Array, kind: str) -> list[Any]:
    """Return the values of a column, which are of this type in Python."""
    kind = kind.removesuffix(" | None")
    if kind in _NOUNS:
        noun = _NOUNS[kind]
        fields_of_items = [
            _values_in(pc.struct_field(column, name), kind_of_field)
            for name, kind_of_field in _KINDS[noun].items()
        ]
        return list(map(noun, *fields_of_items))
    if kind == _BBOX:
        return list(map(tuple, _lists_in(column, "float")))
    if kind.startswith("list["):
        return _lists_in(column, kind.removeprefix("list[").removesuffix("]"))
    if kind == "dict[str, int]":
        return _counts_in(column)
    if pa.types.is_string(column.type):
        return _texts_in(column)
    if column.null_count:
        return column.to_pylist()
    return column.to_numpy(zero_copy_only=False).tolist()


def _texts_in(column: pa.Array) -> list[str | None]:
    """Return the texts of a column, most of which repeat."""
    encoded = column.dictionary_encode("encode")
    texts = encoded.dictionary.to_pylist()
    return list(map(texts.__getitem__, encoded.indices.to_numpy().tolist()))


def _lists_in(column: pa.Array, kind: str) -> list[list[Any]]:
    """Return the lists of a column, whose items are of this type; an empty one where it is null."""
    items = _values_in(pc.list_flatten(column), kind)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().tolist()
    bounds = pairwise(accumulate(lengths, initial=0))
    return [items[start:stop] for start, stop in bounds]


def _counts_in(column: pa.Array) -> list[dict[str, int]]:
    """Return the counts of each row that are not 0."""
    rows: list[dict[str, int]] = [{} for _ in range(len(column))]
    for name in LEFT_OUT:
        numbers = pc.fill_null(pc.struct_field(column, name), 0)
        for row in pc.indices_nonzero(numbers).to_pylist():
            rows[row][name] = numbers[row].as_py()
    return rows


def type_fault(noun: object, place: str = "") -> str | None:
    """Return which value of a record or another noun is not of its type, if one is not.

    Args:
        place: where the noun is, before the names of its fields.
    """
    for name, kind in _declared(type(noun)).items():
        fault = _value_fault(getattr(noun, name), kind, f"{place}{name}")
        if fault is not None:
            return fault
    return None


def _value_fault(value: object, declared: str, place: str) -> str | None:
    """Return what is wrong with a value of a declared type, if something is."""
    kind, _, optional = declared.partition(" | ")
    if optional and value is None:
        return None
    if kind.startswith("list["):
        return _list_fault(value, kind.removeprefix("list[").removesuffix("]"), place)
    if kind in _NOUNS and isinstance(value, _NOUNS[kind]):
        return type_fault(value, f"{place}.")
    expected = f"a sgpipe.{kind}"
    if kind in _VALUES:
        accepted, expected = _VALUES[kind]
        if _is_bbox(value) if kind == _BBOX else isinstance(value, accepted):
            return None
    return f"{place} is {shortened(value)}, expected {expected}"


def _list_fault(value: object, kind_of_item: str, place: str) -> str | None:
    if not isinstance(value, list):
        return f"{place} is {shortened(value)}, expected a list"
    for number, item in enumerate(value):
        fault = _value_fault(item, kind_of_item, f"{place}[{number}]")
        if fault is not None:
            return fault
    return None


def _is_bbox(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return False
    return len(value) == 4 and all(isinstance(number, Real) for number in value)


def origins_pattern(origins: Iterable[str]) -> str:
    """Return a regular expression that finds any of these origins in that of a relation."""
    return rf"(^|\+)({'|'.join(origins)})(\+|$)"


def deduplicate(relations: Iterable[Relation]) -> list[Relation]:
    """Of relations with the same subject, predicate and object, keep the first of highest
    confidence, in their order.

    Ground truth has a confidence of 1.
    """
    best: dict[tuple[int, str, int], tuple[float, int, Relation]] = {}
    for number, relation in enumerate(relations):
        key = relation.subject, relation.predicate, relation.object
        confidence = 1.0 if relation.confidence is None else relation.confidence
        if key not in best or confidence > best[key][0]:
            best[key] = confidence, number, relation
    return [relation for _, _, relation in sorted(best.values(), key=itemgetter(1))]
