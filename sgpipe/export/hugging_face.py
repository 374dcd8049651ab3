"""A run with its images: Parquet files and a dataset card for the Hugging Face hub, and WebDataset's tar files."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgpipe.export.card import write_card
from sgpipe.export.rows import IMAGE_FIELDS, ExportRows, iter_groups, new_file
from sgpipe.images import open_header
from sgpipe.records import ORIGINS, from_table
from sgpipe.sources.hub import CLASSES_KEY, ORIGIN_KEY
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.shards import DATA, IMAGE_COLUMN, SCORES, SOURCES, open_shard, with_images

_ROWS_PER_GROUP = 512
_LABEL = "label"
_RELATIONS = (*IMAGE_FIELDS, "relations")
_IMAGES_PER_GROUP = 100  # as the hub's viewer needs it


def write_hugging_face(rows: ExportRows, out: Path) -> None:
    """Write all rows and columns, including error rows, one file per shard.

    An object also has the number of its class as `label`, a `ClassLabel` of `datasets`. Images that the shards hold
    are always kept. Raises UserError: the image folder is unknown.
    """
    (out / DATA).mkdir()
    tables = (group for shard in rows.manifest.shards for group in iter_groups(rows.root / shard.file, ("objects",)))
    found = {name for table in tables for name in pc.unique(_categories(table)).to_pylist()}
    listed = (rows.manifest.run.get("labels") or {}).get("objects", ())
    names = [*listed, *sorted(found - {*listed, None})]
    for split in rows.splits:
        shards = rows.shards(split)
        for number, shard in enumerate(shards):
            tables = (_with_labels(table, names) for table in _tables(rows, shard, embed=rows.embed))
            first = next(tables)
            schema = first.schema.with_metadata(_metadata(first.schema, rows, names))
            group_size = _IMAGES_PER_GROUP if IMAGE_COLUMN in schema.names else _ROWS_PER_GROUP
            path = out / DATA / f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
            with new_file(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for table in chain([first], tables):
                    writer.write_table(table.cast(schema), row_group_size=group_size)
    write_card(rows, out, embedded=IMAGE_COLUMN in schema.names)


def write_webdataset(rows: ExportRows, out: Path) -> None:
    """Write a SPLIT-000000.tar per shard: images, KEY.jpeg or so, and rows, KEY.json. Raises UserError: no images."""
    for split in rows.splits:
        for number, shard in enumerate(rows.shards(split)):
            with new_file(out / f"{split}-{number:06d}.tar") as file, tarfile.open(fileobj=file, mode="w") as tar:
                found = (row for table in _tables(rows, shard, embed=True) for row in table.to_pylist())
                for key, row in enumerate(row for row in found if row["status"] == "ok" and row[IMAGE_COLUMN]):
                    image = row.pop(IMAGE_COLUMN)["bytes"]
                    with open_header(BytesIO(image), row["file_name"]) as header:
                        suffix = str(header.format).lower().replace("mpo", "jpeg")  # a JPEG with further images
                    for end, content in ((suffix, image), ("json", json.dumps(row).encode())):
                        member = tarfile.TarInfo(f"{key:06d}.{end}")
                        member.size = len(content)
                        tar.addfile(member, BytesIO(content))


def _categories(table: pa.Table) -> pa.Array:
    return pc.struct_field(pc.list_flatten(table["objects"].combine_chunks()), "category")


def _with_labels(table: pa.Table, names: list[str]) -> pa.Table:
    """Return the table with the number of the class of each object."""
    column = table["objects"].combine_chunks()
    items, lengths = pc.list_flatten(column), pc.fill_null(pc.list_value_length(column), 0)
    labels = pc.index_in(_categories(table), pa.array(names, pa.string())).cast(pa.int64())
    kind = column.type.value_type
    parts = [pc.struct_field(items, number) for number in range(kind.num_fields)]
    structs = pa.StructArray.from_arrays([*parts, labels], fields=[*kind, pa.field(_LABEL, pa.int64())])
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int32)]).astype(np.int32)
    objects = pa.ListArray.from_arrays(offsets, structs)
    return table.set_column(table.schema.get_field_index("objects"), "objects", objects)


def _tables(rows: ExportRows, shard: ShardEntry, *, embed: bool) -> Iterator[pa.Table]:
    """Yield the row groups of a shard, with the relations that are exported and their scores, and with images."""
    path = rows.root / shard.file
    with open_shard(path) as file:
        columns = [name for name in file.schema_arrow.names if name != SOURCES]
    has_all = not rows.threshold and rows.certificate is None and len(rows.origins) == len(ORIGINS)
    for table in iter_groups(path, columns):
        chosen = [] if has_all else [rows.choose(each) for each in from_table(table.select(_RELATIONS))]
        for name in () if has_all else {"relations", *SCORES} & set(columns):
            pairs = zip(table[name].to_pylist(), chosen, strict=True)
            kept = [[item for item, keep in zip(*pair, strict=True) if keep] for pair in pairs]
            at, column = columns.index(name), table.field(name)
            table = table.set_column(at, column, pa.array(kept, column.type))
        if embed and IMAGE_COLUMN not in columns:
            records = from_table(table.select(IMAGE_FIELDS))
            table = with_images(table, [rows.read_image(record) if record.ok else None for record in records])
        yield table


def _metadata(schema: pa.Schema, rows: ExportRows, names: list[str]) -> dict[bytes | str, bytes | str]:
    """Return the metadata of the shard, a description for `datasets`, and the class lists and origin of the run."""
    features: dict[str, Any] = {
        field.name: {"_type": "Image"} if field.name == IMAGE_COLUMN else feature_of(field.type) for field in schema
    }
    features["objects"][0][_LABEL] = {"names": names, "_type": "ClassLabel"}
    described = {
        "huggingface": json.dumps({"info": {"features": features}}),
        CLASSES_KEY: json.dumps(rows.manifest.run.get("labels")),
        ORIGIN_KEY: json.dumps([*filter(None, Manifest.identities(rows.manifest.run)), rows.identity]),
    }
    return {**(schema.metadata or {}), **{key.encode(): value for key, value in described.items()}}


def feature_of(kind: pa.DataType) -> Any:
    """Describe a column for `datasets`; lists in the notation that all its versions read."""
    if pa.types.is_list(kind):
        return [feature_of(kind.value_type)]
    if pa.types.is_struct(kind):
        return {inner.name: feature_of(inner.type) for inner in kind}
    names = {pa.float32(): "float32", pa.float64(): "float64"}
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}
