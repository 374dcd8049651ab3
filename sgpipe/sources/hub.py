"""Datasets in the hub's form: Parquet files, to be labelled or imported; images in their rows are
not unpacked.

What `sgpipe export --to hf` wrote has sgpipe's columns. Of others, SGG-Benchmark's are understood
without a mapping (github.com/Maelic/SGG-Benchmark, sgg_benchmark/data/datasets/download.py):
`image_id` `width` `height` `file_name`, `objects` (`id` `bbox` `category_id` `iscrowd`),
`relations` (`subject_id` `object_id` `predicate_id`), and names in categories.json, by id.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImageRoot
from sgpipe.files.locations import Location
from sgpipe.files.roots import ParquetImages, image_columns, row_name
from sgpipe.images import read_size
from sgpipe.recipe import HubConfig, Recipe, SourceConfig, SplitConfig
from sgpipe.records import HUB_DATASET, SCHEMA, Box, Record, Relation, from_table
from sgpipe.sources import fields
from sgpipe.sources.annotated import (
    AnnotationSource,
    DatasetClasses,
    ProblemCounts,
    drop_nameless,
    read_records,
)
from sgpipe.sources.coco import CocoInstances
from sgpipe.sources.detections import Detections, Origin, size_or_reason
from sgpipe.sources.doubts import settle_boxes
from sgpipe.sources.fields import FieldError
from sgpipe.sources.hoi import HoiaSchema, read_classes
from sgpipe.sources.hub_columns import (
    REQUIRED,
    USUAL_COLUMNS,
    ColumnsByKey,
    all_columns,
    file_metadata,
    find_columns,
    is_text,
    iter_values,
    map_columns,
    number_names,
)
from sgpipe.sources.hub_files import find_files, open_parquet
from sgpipe.storage.shards import IMAGE_COLUMN, open_shard, row_faults
from sgpipe.utils.console import count

# Keys of the file metadata: the closed class lists, or null; and the identities of the runs that
# the rows come from.
CLASSES_KEY = "sgpipe.classes"
ORIGIN_KEY = "sgpipe.origin"
_CLASSES_OPTION = "--set 'source.hub.classes=[NAME, …]'"
# The columns of a group as COCO with rel_annotations calls them.
_OBJECT_KEYS = ("bbox", "category_id", "id", "iscrowd", "segmentation")
_RELATION_KEYS = ("subject_id", "object_id", "predicate_id", "confidence")


def class_table(root: ImageRoot, files: Iterable[str], config: HubConfig) -> dict[int, str]:
    """Return class names by number, sorted if the files have names.

    Raises:
        UserError: the files have only numbers.
    """
    if config.classes is not None:
        return dict(enumerate(config.classes))
    names: set[str] = set()
    for file in files:
        with open_parquet(root, file) as parquet:
            schema = parquet.schema_arrow
            columns, _ = find_columns(schema, config.columns, file)
            column = str(columns["classes"])
            if not is_text(all_columns(schema)[column][1]):
                return number_names(root, schema, column, "categories", _CLASSES_OPTION)
            for row in iter_values(parquet, {"classes": column}):
                names.update(str(name) for name in fields.as_list(row["classes"]) if name)
    return dict(enumerate(sorted(fields.clean(name) for name in names if name.strip())))


def read_split(source: SourceConfig, split: str) -> tuple[Detections, Origin]:
    """Return the images and boxes of a split, in the order of its files, and their origin."""
    config = source.hub
    root, splits = find_files(config)
    names = class_table(root, itertools.chain.from_iterable(splits.values()), config)
    numbers = {name: number for number, name in names.items()}
    detections = Detections(HUB_DATASET, split, dict(names))
    ids: list[str | None] = []
    for file in splits[split]:
        with open_parquet(root, file) as parquet:
            columns, image_column = find_columns(parquet.schema_arrow, config.columns, file)
            for number, row in enumerate(iter_values(parquet, columns)):
                image_id = len(ids) if config.columns.id is None else row["id"]
                ids.append(fields.identifier(row["id"]))
                name = row_name(file, number, image_column)
                _add_row(
                    detections, root, row, columns, {"id": image_id, "file_name": name}, numbers
                )
    has_ids = None not in ids and len(set(ids)) == len(ids)
    if config.columns.id is None and has_ids:  # a column of a usual name has ids of the images
        detections.position = {str(image_id): row for row, image_id in enumerate(ids)}
    notes = settle_boxes(detections, source.boxes, f"{config.dataset} ({split})", choose=True)
    origin = Origin(
        annotations=str(config.dataset),
        captions=config.columns.captions or "",
        annotations_sha256=_fingerprint(detections),
        notes=notes,
    )
    if config.columns.captions:
        origin["captions_sha256"] = _sha256(detections.captions).hexdigest()
    return detections, origin


def _add_row(
    detections: Detections,
    root: ImageRoot,
    row: Mapping[str, Any],
    columns: ColumnsByKey,
    item: dict[str, Any],
    numbers: Mapping[str, int],
) -> None:
    """Add the image, boxes and captions of a row.

    Args:
        item: the id and file name of the image.
        numbers: of classes, by name.
    """
    size = {"width": row["width"], "height": row["height"]}
    failure = ""
    if columns["width"] is None:
        (width, height), failure = size_or_reason(root, item["file_name"])
        size = {"width": width, "height": height}
    boxes = fields.as_list(row["boxes"])
    classes = fields.as_list(row["classes"])
    crowds = fields.as_list(row["crowd"]) if columns["crowd"] else [False] * len(boxes)
    has_one_length = len(boxes) == len(classes) == len(crowds)
    if not (failure or has_one_length):
        failure = (
            f"it has {count(len(boxes), 'box', 'boxes')} and"
            f" {count(len(classes), 'class', 'classes')}"
        )
        if columns["crowd"]:
            failure += f", {count(len(crowds), 'value')} of {columns['crowd']}"
    image = detections.attempt(detections.add_image, item | size, failure)
    if image is None:
        return
    if has_one_length:
        for box, category, crowd in zip(boxes, classes, crowds, strict=True):
            number = _class_number(category, numbers)
            detections.attempt(detections.add_row_box, image, number, box, crowd)
    for text in fields.as_list(row["captions"]):
        detections.attempt(detections.add_text, image, text)


def _class_number(category: Any, numbers: Mapping[str, int]) -> Any:
    """Return the number of a class, -1 of an unknown name, or a number as it is."""
    if category is None or isinstance(category, str):
        return numbers.get(fields.clean(category or ""), -1)
    return category


def _sha256(*values: Any) -> Any:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode())


def _fingerprint(detections: Detections) -> str:
    """Return a hash of images and boxes."""
    digest = _sha256(detections.categories, list(detections.position), detections.file_names)
    for values in (
        detections.sizes,
        detections.box_rows,
        detections.box_categories,
        detections.box_crowds,
        detections.boxes,
    ):
        digest.update(values.tobytes())
    return str(digest.hexdigest())


def check_hub(recipe: Recipe) -> None:
    """Check that a recipe names a dataset of the hub and what gives captions.

    Raises:
        UserError: the recipe names no dataset, or nothing gives captions.
    """
    hub = recipe.source.hub
    if hub.dataset is None:
        raise UserError("source.hub.dataset is not set (--dataset)")
    if hub.columns.captions is None and recipe.needs_captions:
        raise UserError(
            "no captions: set caption.captioner (--captioner) or source.hub.columns.captions"
        )


def prepare_hub(source: SourceConfig) -> SourceConfig:
    """Return the source with its splits, and with the dataset at the commit that it has now.

    Raises:
        UserError, StoreError: as `find_files`.
    """
    root, files = find_files(source.hub)
    splits = {split: SplitConfig(images=root.location) for split in files}
    hub = source.hub.model_copy(update={"dataset": root.location})
    return source.model_copy(update={"root": None, "splits": splits, "hub": hub})


def stamp_split(source: SourceConfig, split: str) -> dict[str, Any]:
    """Return what identifies the files and settings that the records of a split are read with."""
    root, files = find_files(source.hub)
    entries = [entry for entry in root.entries() if entry.name in files[split]]
    stamps = sorted([entry.name, entry.size, entry.state] for entry in entries)
    return {
        "hub": source.hub.model_dump(mode="json", exclude={"split"}),
        "boxes": source.boxes,
        "contents": [root.location, stamps],
    }


def _exported(split: str, root: ImageRoot, files: Mapping[str, Location]) -> AnnotationSource:
    """Return a split of what `sgpipe export --to hf` wrote, or of what others made of it."""
    first, *further = files.items()
    with open_shard(first[1], SCHEMA.names) as shard:
        schema = shard.schema_arrow
    origin = file_metadata(schema, ORIGIN_KEY)
    if not isinstance(origin, list):
        origin = []
    image_rows: dict[str, str] = {}
    images = ParquetImages(root.open_file)

    def read(problems: ProblemCounts) -> Iterator[Record]:
        for name, file in files.items():
            for number, record in enumerate(_iter_records(file, split)):
                # Repeated ones are dropped.
                image_rows.setdefault(record.image_id, row_name(name, number, IMAGE_COLUMN))
                yield record

    def image(record: Record) -> bytes | None:
        with suppress(FileNotFoundError):
            return images.read(image_rows[record.image_id])
        return None

    return AnnotationSource(
        dataset="hf",
        split=split,
        read=read,
        files={"annotations": first[1], **dict(further)},
        classes=_stated_classes(schema, first[1]),
        image=image if IMAGE_COLUMN in schema.names else None,
        origin=[identity for identity in origin if isinstance(identity, dict)],
    )


def _stated_classes(schema: pa.Schema, file: Location) -> DatasetClasses | None:
    """Return the closed class lists of the metadata, if it has some.

    Raises:
        UserError: they are not two lists.
    """
    lists = file_metadata(schema, CLASSES_KEY)
    if lists is None:
        return None
    try:
        return DatasetClasses(
            tuple(map(str, lists["objects"])), tuple(map(str, lists["relations"]))
        )
    except (KeyError, TypeError):
        raise UserError(
            f"{file}: the metadata {CLASSES_KEY!r} is not the lists objects and relations"
        ) from None


def _iter_records(file: Location, split: str) -> Iterator[Record]:
    """Yield the records of a shard.

    Raises:
        UserError: its rows are not sgpipe's.
    """
    with open_shard(file, SCHEMA.names) as shard:
        for group in range(shard.num_row_groups):
            table = shard.read_row_group(group, columns=SCHEMA.names)
            table = table.select(SCHEMA.names).cast(SCHEMA)
            for fault in row_faults(table, split):
                raise UserError(f"{file}: {fault}")
            yield from from_table(table)


def dataset_source(
    dataset: str,
    split: str | None = None,
    mapping: Sequence[str] = (),
    classes: Path | None = None,
    subset: str | None = None,
    own_images: bool = True,
) -> tuple[AnnotationSource, str]:
    """Return a split of what sgpipe exported, or of other objects and relations.

    Args:
        dataset: a folder, also in a store, or the id of a dataset on the hub.
        mapping: `KEY=COLUMN`, for columns with unusual names; an empty column: it has none.
        classes: JSON with the names of classes and predicates, as `read_classes` reads it.
        own_images: take images from the rows, if they have them, not from files of the name in
            `file_name`.

    Returns:
        The split, and where its files are.

    Raises:
        UserError: there is no such split, or a column is missing.
        StoreError: the hub or a store does not answer.
    """
    root, splits = find_files(HubConfig(dataset=dataset, split=split, subset=subset))
    if len(splits) > 1:
        raise UserError(f"{dataset} has several splits: pass --split {' or '.join(splits)}")
    ((split, names),) = splits.items()
    files = {name: root.file(name) for name in names}
    with open_parquet(root, names[0]) as parquet:
        schema = parquet.schema_arrow
    is_ours = {"triplets", "status"} <= set(schema.names)
    if is_ours and not mapping and not classes:
        return _exported(split, root, files), root.location
    graphs = _Graphs.of_files(root, split, names, schema, mapping, classes, own_images)
    closed_classes = None
    if graphs.categories and graphs.predicates:
        class_names = tuple(graphs.categories.values())
        closed_classes = DatasetClasses(class_names, tuple(graphs.predicates.values()))
    roles: dict[str, Location] = {"annotations": files.pop(names[0]), **files}
    if classes:
        roles["classes"] = classes
    options = {"map": graphs.columns}
    source = AnnotationSource(
        "hf", split, graphs.read, roles, options, closed_classes, boxes="xywh"
    )
    return source, root.location


class _Item(NamedTuple):
    """A row of a split, by its position, and the name of its image in the files."""

    position: int
    image: str
    row: dict[str, Any]


@dataclass(frozen=True)
class _Graphs:
    """A split with objects and relations that sgpipe did not export.

    Attributes:
        names: of the files.
        stated_columns: by key, as the user names them.
        has_images: the images are in the rows.
        categories, predicates: names of the numbers; empty where the rows have names.
    """

    root: ImageRoot
    split: str
    names: Sequence[str]
    stated_columns: Mapping[str, str]
    columns: ColumnsByKey
    has_images: bool
    categories: Mapping[int, str]
    predicates: Mapping[int, str]

    @classmethod
    def of_files(
        cls,
        root: ImageRoot,
        split: str,
        names: Sequence[str],
        schema: pa.Schema,
        mapping: Sequence[str],
        classes: Path | None,
        own_images: bool,
    ) -> _Graphs:
        """Return the split by the columns of its first file; otherwise as `dataset_source`."""
        first = names[0]
        stated_columns = dict(entry.partition("=")[::2] for entry in mapping)
        unknown = stated_columns.keys() - USUAL_COLUMNS.keys()
        if unknown:
            raise UserError(f"--map {min(unknown)}: expected one of {', '.join(USUAL_COLUMNS)}")
        columns = map_columns(schema, USUAL_COLUMNS, stated_columns, REQUIRED, first, "--map ")
        has_images = own_images and len(image_columns(schema)) == 1
        if not has_images and columns["file_name"] is None:
            raise UserError(
                f"{first} has neither images nor their names: pass --map file_name=COLUMN"
            )
        tables = _name_tables(root, schema, columns, classes)
        return cls(root, split, names, stated_columns, columns, has_images, *tables)

    def read(self, problems: ProblemCounts) -> Iterator[Record]:
        def fill(record: Record, item: _Item) -> None:
            if self.has_images and not (record.width and record.height):
                record.width, record.height = read_size(self.root, record.file_name, upright=True)
            graph = _graph(item.row, record, self.categories, self.predicates, problems)
            record.objects, record.relations = graph
            drop_nameless(record, problems)

        return read_records(self._items(), self._record, fill, problems)

    def _items(self) -> Iterator[_Item]:
        position = 0
        for file in self.names:
            with open_parquet(self.root, file) as parquet:
                schema = parquet.schema_arrow
                columns = map_columns(
                    schema, USUAL_COLUMNS, self.stated_columns, REQUIRED, file, "--map "
                )
                for number, row in enumerate(iter_values(parquet, columns)):
                    yield _Item(position, row_name(file, number), row)
                    position += 1

    def _record(self, item: _Item) -> Record:
        """Return the record of an image.

        Raises:
            FieldError: it has no id or file name.
        """
        image_id = str(item.position)
        if self.columns["image_id"] is not None:
            image_id = fields.required_id(item.row)
        file_name = item.image if self.has_images else item.row["file_name"]
        if file_name in (None, ""):
            raise FieldError("'file_name' is missing")
        # Images of HUB_DATASET are turned as EXIF says.
        kind = HUB_DATASET if self.has_images else "hf"
        name = fields.clean(str(file_name))
        return Record(image_id, kind, self.split, name, *fields.size(item.row))


def _name_tables(
    root: ImageRoot, schema: pa.Schema, columns: ColumnsByKey, classes: Path | None
) -> tuple[Mapping[int, str], Mapping[int, str]]:
    """Return the names of the numbers of classes and of predicates.

    They are empty where the rows have names.

    Raises:
        UserError: numbers have no names.
    """
    stated = read_classes(classes) if classes else HoiaSchema("", {}, {})

    def names_of(key: str, listed: str, stated_names: Mapping[int, str]) -> Mapping[int, str]:
        column = str(columns[key])
        if is_text(all_columns(schema)[column][1]):
            return {}
        if stated_names:
            return stated_names
        return number_names(root, schema, column, listed, "--classes FILE")

    categories = names_of("objects.category", "categories", stated.objects)
    predicates = names_of("relations.predicate", "rel_categories", stated.relations)
    return categories, predicates


def _graph(
    row: Mapping[str, Any],
    record: Record,
    categories: Mapping[int, str],
    predicates: Mapping[int, str],
    problems: ProblemCounts,
) -> tuple[list[Box], list[Relation]]:
    """Return objects and relations of a row.

    Raises:
        FieldError: lists differ in length, or a value is malformed.
    """
    graph = CocoInstances("", "", dict(categories), predicates=dict(predicates))
    for index, item in enumerate(_items(row, "objects", _OBJECT_KEYS)):
        _number_name(item, "category_id", graph.categories)
        graph.add_box({"id": index, "image_id": 0} | item)
    for index, item in enumerate(_items(row, "relations", _RELATION_KEYS)):
        _number_name(item, "predicate_id", graph.predicates)
        graph.add_relation({"id": index, "image_id": 0} | item)
    numbers = range(len(graph.box_ids))
    boxes = list(graph.objects(numbers, (record.width, record.height), problems))
    if not categories:
        boxes = [replace(box, category_id=0) for box in boxes]
    return boxes, graph.related("0", numbers, graph.predicates)


def _items(row: Mapping[str, Any], group: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the items of a group whose columns are lists, by keys of COCO.

    Raises:
        FieldError: the lists differ in length.
    """
    columns = [values for column, values in row.items() if column.startswith(group)]
    length = len(fields.as_list(columns[0]))
    items: list[dict[str, Any]] = [{} for _ in range(length)]
    for key, values in zip(keys, columns, strict=True):
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != length:
            raise FieldError(f"the columns of {group} are not lists of one length")
        for item, value in zip(items, values, strict=True):
            if value is not None:
                item[key] = value
    return items


def _number_name(item: dict[str, Any], key: str, names: dict[int, str]) -> None:
    """Replace a name by its number, which a new one gets for now."""
    name = item.get(key)
    if not isinstance(name, str):
        return
    item[key] = next((number for number in names if names[number] == name), len(names))
    names[item[key]] = name
