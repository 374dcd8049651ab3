import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpipe.errors import UserError
from sgpipe.storage.manifest import MANIFEST, Manifest, ShardEntry


def entry(start: int, stop: int, split: str = "val", file: str | None = None) -> ShardEntry:
    return ShardEntry(split, start, stop, file or f"data/{split}-{start}-{stop}.parquet", "0" * 64, 10)


def test_what_is_committed_is_read_back_and_superseded_by_a_shard_done_again(tmp_path):
    manifest = Manifest.create(tmp_path, {"name": "x"})
    assert manifest.commit(entry(8, 16)) is None
    assert manifest.commit(entry(0, 8)) is None
    again = Manifest.load(tmp_path)
    assert again.shards == manifest.shards == [entry(0, 8), entry(8, 16)]
    assert again.run["name"] == "x"
    assert manifest.commit(entry(0, 8, file="data/again.parquet")) == entry(0, 8)
    assert [shard.file for shard in Manifest.load(tmp_path).shards] == ["data/again.parquet", entry(8, 16).file]


@pytest.mark.parametrize("torn", [b"{", b'{"crc32": "00000000", "shard": {}}', b'{"crc32'])
def test_a_torn_last_line_is_dropped_and_overwritten(tmp_path, torn):
    Manifest.create(tmp_path, {}).commit(entry(0, 8))
    with (tmp_path / MANIFEST).open("ab") as file:
        file.write(torn)
    manifest = Manifest.load(tmp_path)
    assert manifest.shards == [entry(0, 8)]
    manifest.commit(entry(8, 16))
    assert Manifest.load(tmp_path).shards == [entry(0, 8), entry(8, 16)]


def test_every_flipped_byte_is_found(tmp_path):
    Manifest.create(tmp_path, {"name": "x"}).commit(entry(0, 8))
    path = tmp_path / MANIFEST
    whole = path.read_bytes()
    for at in range(len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match="damaged"):
            Manifest.load(tmp_path)


@settings(max_examples=100, deadline=None)
@given(cuts=st.sets(st.integers(1, 39)), done=st.data(), rows=st.integers(0, 60))
def test_missing_ranges_and_shards_cover_every_row_once(tmp_path_factory, cuts, done, rows):
    ranges = list(itertools.pairwise([0, *sorted(cuts), 40]))
    shards = [entry(start, stop) for start, stop in done.draw(st.sets(st.sampled_from(ranges)))]
    manifest = Manifest(tmp_path_factory.getbasetemp(), {}, [*shards, entry(0, 99, split="train")], 0)
    gaps = manifest.missing("val", rows)
    covered = [row for start, stop in gaps for row in range(start, stop)]
    committed = {row for shard in shards for row in range(shard.start, shard.stop)}
    assert covered == [row for row in range(rows) if row not in committed]


def test_a_failed_append_leaves_the_manifest_as_it_was(tmp_path, monkeypatch):
    manifest = Manifest.create(tmp_path, {})
    before = (tmp_path / MANIFEST).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        manifest.commit(entry(0, 8))
    monkeypatch.undo()
    assert (tmp_path / MANIFEST).read_bytes() == before
    manifest.commit(entry(0, 8))
    assert Manifest.load(tmp_path).shards == [entry(0, 8)]


def test_no_manifest_and_another_schema_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not an sgpipe run"):
        Manifest.load(tmp_path)
    Manifest.create(tmp_path, {"schema_version": 99})
    with pytest.raises(UserError, match="schema version 99"):
        Manifest.load(tmp_path)
