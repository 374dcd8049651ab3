"""Shards of an earlier schema are read as if they were of this one."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from sgpipe.errors import UserError
from sgpipe.export.run import export_run
from sgpipe.records import SCHEMA, SCHEMA_VERSION, from_table, to_table
from sgpipe.storage.index import Index
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.run_records import Run, iter_records, iter_tables
from sgpipe.storage.shard_file import EARLIER_SCHEMAS, ColumnRule
from sgpipe.storage.shards import shard_name, write_copy, write_shard
from sgpipe.storage.verify import verify
from sgpipe.training.data.scan import scan
from sgpipe.training.recipe import ShardsConfig
from tests.sgpipe.sources.test_import_run import QUIET
from tests.sgpipe.training.data.runs import make_records

EARLIER = SCHEMA_VERSION - 1
ROWS = 6


def categories_of(table: pa.Table) -> pa.Array:
    """The objects with the field that they had not yet."""
    objects = table["objects"].combine_chunks()
    items = pc.list_flatten(objects)
    fields = SCHEMA.field("objects").type.value_type
    values = []
    for field in fields:
        is_new = items.type.get_field_index(field.name) < 0
        values.append(
            pa.nulls(len(items), field.type) if is_new else pc.struct_field(items, field.name)
        )
    structs = pa.StructArray.from_arrays(values, fields=list(fields))
    return pa.ListArray.from_arrays(objects.offsets, structs)


RULES = {
    "captions": ColumnRule(("texts",), lambda table: table["texts"]),  # renamed
    "objects": ColumnRule(("objects",), categories_of),  # with a further field
    "file_name": ColumnRule(  # of two that there were
        ("folder", "name"),
        lambda table: pc.binary_join_element_wise(table["folder"], table["name"], ""),
    ),
}


def as_earlier(table: pa.Table) -> pa.Table:
    """The same rows in the earlier schema."""
    objects = table["objects"].combine_chunks()
    items = pc.list_flatten(objects)
    older = [field for field in items.type if field.name != "segmentation"]
    values = [pc.struct_field(items, field.name) for field in older]
    structs = pa.StructArray.from_arrays(values, fields=older)
    columns = {name: table[name] for name in table.column_names}
    columns["objects"] = pa.ListArray.from_arrays(objects.offsets, structs)
    columns["texts"] = columns.pop("captions")
    columns["name"] = columns.pop("file_name")
    columns["folder"] = pa.array([""] * len(table))
    metadata = {"sgpipe.schema_version": str(EARLIER)}
    return pa.table(columns).replace_schema_metadata(metadata)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A run of this schema, and the same of the earlier one, whose last shard is of this one."""
    records = make_records(3 * ROWS)
    header = {"name": "drawn", "fingerprint": "drawn", "images": {"train": str(tmp_path)}}
    for name in ("now", "earlier"):
        (tmp_path / name).mkdir()
    now = Manifest.create(tmp_path / "now", header)
    earlier = Manifest.create(tmp_path / "earlier", {**header, "schema_version": EARLIER})
    for start in range(0, len(records), ROWS):
        stop = start + ROWS
        name = shard_name("train", start, stop)
        rows = records[start:stop]
        shard = write_shard(now.folder, name, "train", start, rows, {})
        now.commit(shard)
        table = to_table(rows)
        if stop < len(records):
            table = as_earlier(table)
        entry = ShardEntry("train", start, stop, name, "", 0, shard.counts)
        earlier.commit(write_copy(earlier.folder, entry, table, shard.counts))
    monkeypatch.setitem(EARLIER_SCHEMAS, EARLIER, RULES)
    return now.folder, earlier.folder


def test_readers_see_the_same(runs: tuple[Path, Path], tmp_path: Path) -> None:
    now, earlier = runs
    assert list(iter_records(earlier)) == list(iter_records(now))
    assert list(iter_records(earlier, "objects")) == list(iter_records(now, "objects"))
    assert Run(earlier).to_arrow().equals(Run(now).to_arrow())
    assert verify(earlier).problems == []
    indexes = [Index(place, QUIET) for place in runs]
    assert indexes[0].images == indexes[1].images == 3 * ROWS
    assert indexes[0].vocabulary == indexes[1].vocabulary
    sets = [scan([ShardsConfig(shards=place)], threshold=0.1) for place in runs]
    assert sets[0].objects == sets[1].objects
    exports = []
    for place in runs:
        out = tmp_path / f"export-{place.name}"
        export_run(place, "coco-rel", out)
        files = sorted(out.rglob("*.json"))
        exports.append([path.read_bytes() for path in files])
    assert exports[0] == exports[1]


def test_what_is_written_again_is_of_this_schema(runs: tuple[Path, Path]) -> None:
    for table in iter_tables(runs[1]):
        assert table.schema.metadata[b"sgpipe.schema_version"] == str(SCHEMA_VERSION).encode()
        assert {field.name: field.type for field in table.schema} == {
            field.name: field.type for field in SCHEMA
        }
        assert to_table(list(from_table(table))).equals(table.select(SCHEMA.names).cast(SCHEMA))


def test_other_schemas_are_refused_by_name(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(EARLIER_SCHEMAS, EARLIER)
    message = f"schema version {EARLIER}, this sgpipe reads {SCHEMA_VERSION}"
    with pytest.raises(UserError, match=message):
        list(iter_records(runs[1]))
