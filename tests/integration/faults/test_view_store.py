"""The viewer's index of a run whose shards are in an object store."""

from pathlib import Path

import pytest
from rich.console import Console

from sgpipe.errors import UserError
from sgpipe.files.object_store import StorePath
from sgpipe.storage.index import Index, read_embedded, read_record
from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.shards import shard_name, write_shard
from sgpipe.utils.console import Progress
from sgpipe.view.search import Filters, search
from tests.sgpipe.training.data.runs import make_run, plain_record

QUIET = Progress(Console(quiet=True))


def upload(root: Path, store: StorePath) -> None:
    for shard in Manifest.load(root).shards:
        store.put(shard.file, root / shard.file)
    store.put(MANIFEST, root / MANIFEST)


def images(index: Index) -> set[str]:
    return {hit.image_id for hit in search(index, Filters()).hits}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_run(tmp_path / "run", [plain_record(name) for name in "abcd"], rows=2, embedded=True)
    return tmp_path / "run"


def test_a_run_in_a_store_is_indexed_and_read(root: Path, store: StorePath, tmp_path: Path) -> None:
    upload(root, store)
    index = Index.open(store.uri, QUIET)
    assert images(index) == set("abcd")
    assert index.cache.is_relative_to(tmp_path / "cache")
    found, local = read_record(index, "train", "c"), read_record(Index.open(root, QUIET), "train", "c")
    assert found == local
    assert read_embedded(index, "train", "c") == read_embedded(Index.open(root, QUIET), "train", "c") is not None
    Manifest.load(root).commit(write_shard(root, shard_name("train", 4, 5), "train", 4, [plain_record("e")], {}))
    assert not index.refresh()
    upload(root, store)
    assert index.refresh()
    assert images(index) == set("abcde")


def test_a_folder_whose_shards_are_in_a_store_is_indexed(root: Path, store: StorePath, tmp_path: Path) -> None:
    upload(root, store)
    manifest, out = Manifest.load(root), tmp_path / "out"
    out.mkdir()
    copy = Manifest.create(out, {**manifest.run, "store": store.uri})
    for shard in manifest.shards:
        copy.commit(shard)
    assert images(Index.open(out, QUIET)) == set("abcd")


def test_what_is_missing_in_the_store_is_named(root: Path, store: StorePath) -> None:
    upload(root, store)
    store.delete(shard_name("train", 0, 2))
    index = Index.open(store.uri, QUIET)
    assert images(index) == set("cd")
    [problem] = index.problems
    assert shard_name("train", 0, 2) in problem


def test_a_store_without_a_run_is_refused(store: StorePath) -> None:
    with pytest.raises(UserError, match="not an sgpipe run"):
        Index.open(store.uri, QUIET)
