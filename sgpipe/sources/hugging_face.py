"""Datasets of Parquet files: those of `sgpipe export --to hf`, with sgpipe's columns, and those with columns of others.

Of the others, SGG-Benchmark's are understood without a mapping (github.com/Maelic/SGG-Benchmark,
sgg_benchmark/data/datasets/download.py): `image_id` `width` `height` `file_name`, `objects` (`id` `bbox` `category_id`
`iscrowd`), `relations` (`subject_id` `object_id` `predicate_id`), and names in categories.json, by id.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImageRoot
from sgpipe.files.locations import Location
from sgpipe.files.parquet_images import ParquetImages, image_columns, row_name
from sgpipe.images import read_upright_size
from sgpipe.recipe import HubConfig
from sgpipe.records import HUB_DATASET, SCHEMA, Box, Record, Relation, from_table
from sgpipe.sources import fields, hub
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses, ProblemCounts, drop_nameless, error_row
from sgpipe.sources.coco import CocoInstances
from sgpipe.sources.fields import FieldError
from sgpipe.sources.hoi import read_classes
from sgpipe.storage.shards import IMAGE_COLUMN, open_shard, row_faults

# Keys of the file metadata: the closed class lists, or null; and the identities of the runs that the rows come from.
CLASSES, ORIGIN = "sgpipe.classes", "sgpipe.origin"


def _exported(split: str, root: ImageRoot, files: Mapping[str, Location]) -> AnnotationSource:
    """Return a split of what `sgpipe export --to hf` wrote, or of what others made of it."""
    first, *others = files.items()
    with open_shard(first[1], SCHEMA.names) as opened:
        schema = opened.schema_arrow
    lists, origin = (_metadata(schema, key) for key in (CLASSES, ORIGIN))
    try:
        names = [tuple(map(str, lists[kind])) for kind in ("objects", "relations")] if lists is not None else None
    except (KeyError, TypeError):
        raise UserError(f"{first[1]}: the metadata {CLASSES!r} is not the lists objects and relations") from None
    rows, images = dict[str, str](), ParquetImages(root.open_file)

    def read(problems: ProblemCounts) -> Iterator[Record]:
        for name, file in files.items():
            numbers = itertools.count()
            with open_shard(file, SCHEMA.names) as shard:
                for group in range(shard.num_row_groups):
                    table = shard.read_row_group(group, columns=SCHEMA.names).select(SCHEMA.names).cast(SCHEMA)
                    for fault in row_faults(table, split):
                        raise UserError(f"{file}: {fault}")
                    for record, row in zip(from_table(table), numbers, strict=False):
                        rows.setdefault(record.image_id, row_name(name, row, IMAGE_COLUMN))  # repeated ones are dropped
                        yield record

    def image(record: Record) -> bytes | None:
        """Return the image file of a record, if it has one."""
        with suppress(FileNotFoundError):
            return images.read(rows[record.image_id])
        return None

    return AnnotationSource(
        dataset="hf",
        split=split,
        read=read,
        files={"annotations": first[1], **dict(others)},
        classes=DatasetClasses(*names) if names else None,
        image=image if IMAGE_COLUMN in schema.names else None,
        origin=[each for each in origin if isinstance(each, dict)] if isinstance(origin, list) else (),
    )


def _metadata(schema: pa.Schema, key: str) -> Any:
    """Return a value of the file metadata, which others may have changed; None if it is missing or not JSON."""
    try:
        return json.loads((schema.metadata or {}).get(key.encode(), b"null"))
    except (ValueError, RecursionError):
        return None


_COLUMNS: dict[str, tuple[str, Sequence[str]]] = {  # the keys of --map, their groups and usual names
    **{"image_id": ("", hub.IDS), "file_name": ("", ("file_name", "filename", "image_path"))},
    **{"width": ("", ("width",)), "height": ("", ("height",))},
    "objects.bbox": ("objects", hub.BOXES),
    "objects.category": ("objects", hub.CLASSES),
    "objects.id": ("objects", ("id", "object_id")),
    "objects.iscrowd": ("objects", hub.CROWDS),
    "objects.segmentation": ("objects", ("segmentation",)),
    "relations.subject": ("relations", ("subject_id", "subject")),
    "relations.object": ("relations", ("object_id", "object")),
    "relations.predicate": ("relations", ("predicate_id", "predicate", "name", "label")),
    "relations.confidence": ("relations", ("confidence", "score")),
}
_REQUIRED = ("objects.bbox", "objects.category", "relations.subject", "relations.object", "relations.predicate")
_ITEMS = {  # the columns of a group as COCO with rel_annotations calls them, and which of them is a name
    "objects": ("annotations", ("bbox", "category_id", "id", "iscrowd", "segmentation"), "category_id"),
    "relations": ("rel_annotations", ("subject_id", "object_id", "predicate_id", "confidence"), "predicate_id"),
}


def dataset_source(
    dataset: str,
    split: str | None = None,
    mapping: Sequence[str] = (),
    classes: Path | None = None,
    subset: str | None = None,
    own_images: bool = True,
) -> tuple[AnnotationSource, str]:
    """Return a split of what sgpipe exported, or of other objects and relations, and where the files are.

    Args:
        dataset: a folder, also in a store, or the id of a dataset on the hub.
        mapping: `KEY=COLUMN`, for columns with unusual names; an empty column: it has none.
        classes: JSON with the names of classes and predicates, as `read_classes` reads it.
        own_images: take images from the rows, if they have them, not from files of the name in `file_name`.
    """
    files = hub.find_files(HubConfig(dataset=dataset, split=split, subset=subset))
    if len(files.splits) > 1:
        raise UserError(f"{dataset} has several splits: pass --split {' or '.join(files.splits)}")
    ((split, names),) = files.splits.items()
    paths, location = {name: files.root.file(name) for name in names}, files.root.location
    chosen = dict(each.partition("=")[::2] for each in mapping)
    if unknown := chosen.keys() - _COLUMNS.keys():
        raise UserError(f"--map {min(unknown)}: expected one of {', '.join(_COLUMNS)}")

    def columns(schema: pa.Schema, file: str) -> dict[str, str | None]:
        return hub.map_columns(schema, _COLUMNS, chosen, _REQUIRED, file, "--map ")

    with hub.open_parquet(files, names[0]) as parquet:
        schema = parquet.schema_arrow
        if not (mapping or classes) and {"triplets", "status"} <= set(schema.names):
            return _exported(split, files.root, paths), location
    of, has_own = columns(schema, names[0]), own_images and len(image_columns(schema)) == 1
    if not has_own and of["file_name"] is None:
        raise UserError(f"{names[0]} has neither images nor their names: pass --map file_name=COLUMN")
    given, tables = classes and read_classes(classes), list[Mapping[int, str]]()
    for key, listed in (("objects.category", "categories"), ("relations.predicate", "rel_categories")):
        column = str(of[key])
        if hub.is_text(hub.all_columns(schema)[column][1]):
            tables.append({})
        elif given:
            tables.append(given.objects if listed == "categories" else given.relations)
        else:
            tables.append(hub.number_names(files, schema, column, listed, "--classes FILE"))
    closed = DatasetClasses(*(tuple(table.values()) for table in tables)) if all(tables) else None

    def read(problems: ProblemCounts) -> Iterator[Record]:
        total = 0
        for name in names:
            with hub.open_parquet(files, name) as parquet:
                own = columns(parquet.schema_arrow, name)
                for number, row in enumerate(hub.iter_rows(parquet, own.values())):
                    values = {key: hub.value_of(row, column) for key, column in own.items()}
                    image_id = fields.identifier(values["image_id"]) if of["image_id"] else str(total)
                    total += 1
                    place = row_name(name, number) if has_own else values["file_name"]
                    if image_id is None or place in (None, ""):
                        problems["malformed"] += 1
                        continue
                    kind = HUB_DATASET if has_own else "hf"  # the former's images are turned as EXIF says
                    record = Record(image_id, kind, split, fields.clean(str(place)), *fields.size(values))
                    with error_row(record):
                        if has_own and not (record.width and record.height):
                            record.width, record.height = read_upright_size(files.root, record.file_name)
                        record.objects, record.relations = _graph(values, record, tables, problems)
                        drop_nameless(record, problems)
                    yield record

    roles = {"annotations": paths.pop(names[0]), **paths, **({"classes": classes} if classes else {})}
    return AnnotationSource("hf", split, read, roles, {"map": of}, closed, boxes="xywh"), location


def _graph(
    values: Mapping[str, Any], record: Record, tables: Sequence[Mapping[int, str]], problems: ProblemCounts
) -> tuple[list[Box], list[Relation]]:
    """Return objects and relations of a row. Raises FieldError: lists differ in length, or a value is malformed."""
    graph = CocoInstances({"0": ("", record.width, record.height)}, names=dict(tables[0]), predicates=dict(tables[1]))
    for (group, (items, keys, named)), known in zip(_ITEMS.items(), (graph.names, graph.predicates), strict=True):
        columns = [value for key, value in values.items() if key.startswith(group)]
        count = len(columns[0] or ())
        lists = [[None] * count if each is None else each for each in columns]
        if any(not isinstance(each, list) or len(each) != count for each in lists):
            raise FieldError(f"the columns of {group} are not lists of one length")
        for index, each in enumerate(zip(*lists, strict=True)):
            item = {key: value for key, value in zip(keys, each, strict=True) if value is not None}
            if isinstance(name := item.get(named), str):  # which gets a number, for now
                item[named] = next((number for number in known if known[number] == name), len(known))
                known[item[named]] = name
            graph.add(items, {"id": index, "image_id": 0} | item)
    boxes = [box if tables[0] else replace(box, category_id=0) for box in graph.objects("0", problems)]
    return boxes, graph.related("0", graph.predicates) if graph.relations else []
