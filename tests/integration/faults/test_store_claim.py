"""Two runs into one object store: the later one takes over, and the earlier one ends before it harms anything."""

import threading
from pathlib import Path

import pytest

from sgpipe.errors import StoreError, UserError
from sgpipe.files.object_store import StorePath
from sgpipe.recipe import Recipe
from sgpipe.storage.manifest import MANIFEST, Manifest, WriterClaim
from sgpipe.storage.mirror import ManifestMirror
from sgpipe.storage.run_folder import RunFolder


def test_a_run_that_was_taken_over_changes_nothing_in_the_store(store: StorePath, tmp_path: Path) -> None:
    folder, shard = RunFolder(tmp_path / "out", store), "data/val-000000000-000000002.parquet"
    with folder.lock():
        manifest = Manifest.create(folder.root, {})
        folder.describe(Recipe(name="mine"), manifest)
        store.put(shard, b"the other run's")
        folder.claim.make()
        other = RunFolder(tmp_path / "other", store)
        with other.lock(), ManifestMirror(other).reconciled():
            pass
        for forbidden in (lambda: folder.sweep(manifest), ManifestMirror(folder).copy):
            with pytest.raises(StoreError, match=r"^s3://.*: another run took over"):
                forbidden()
    assert store.read(shard) == b"the other run's"
    assert store.read(MANIFEST) is None


def test_of_runs_that_claim_a_store_at_once_one_keeps_it(store: StorePath) -> None:
    for number in range(10):
        claims = [WriterClaim(store) for _ in range(2 + number % 3)]
        start, kept = threading.Barrier(len(claims)), list[WriterClaim]()

        def claim(claim: WriterClaim, start: threading.Barrier = start, kept: list[WriterClaim] = kept) -> None:
            start.wait()
            try:
                claim.make()
            except (UserError, StoreError):
                return
            kept.append(claim)

        threads = [threading.Thread(target=claim, args=(each,)) for each in claims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        holders = 0
        for each in kept:  # one that was claimed a moment before another began has lost it
            try:
                each.check()
                holders += 1
            except StoreError:
                pass
        assert holders == 1
