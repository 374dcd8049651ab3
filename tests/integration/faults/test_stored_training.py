"""`sgpipe train` on shards in a store, which fails in the middle."""

from pathlib import Path

import pytest

from sgpipe.errors import StoreError
from sgpipe.files.object_store import StorePath
from tests.integration.faults.test_view_store import upload
from tests.sgpipe.training.trainings import curve, different, make_run, recipe, training, weights


@pytest.mark.slow
def test_a_training_whose_store_fails_goes_on_and_gives_the_same_weights(
    tmp_path: Path, store: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    upload(run, store)
    training(run, tmp_path / "local")
    read_range, reads = StorePath.read_range, iter(range(10**6))

    def failing(self: StorePath, name: str, *rest: object) -> bytes:
        if name.startswith("data") and next(reads) >= 3:  # the scan, and the first epoch
            raise StoreError("s3://bucket: SlowDown: reduce your rate")
        return read_range(self, name, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(StorePath, "read_range", failing)
        with pytest.raises(StoreError, match="SlowDown"):
            training(Path(store.uri), tmp_path / "stored")
    assert 0 < len(curve(tmp_path / "stored")) < len(curve(tmp_path / "local"))
    training(Path(store.uri), tmp_path / "stored")
    assert not different(weights(tmp_path / "stored"), weights(tmp_path / "local"))
    assert store.uri in (tmp_path / "stored" / "recipe.yaml").read_text()
    assert recipe(Path(store.uri)).data.train[0].shards == Path(store.uri)
