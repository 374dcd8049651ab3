"""`sgpipe push` of a run in an object store, which is neither fetched first nor changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.files.object_store import StorePath
from tests.sgpipe.export.hub_stub import TOKEN, HubStub, serving
from tests.sgpipe.export.runs import records
from tests.sgpipe.stats.runs import make_shards


def test_a_run_in_a_store_is_pushed(store: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_shards(tmp_path / "run", records(20), rows=6)
    names = [path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()]
    for name in names:
        store.put(name, (run / name).read_bytes())
    monkeypatch.setenv("SGPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with serving(HubStub(failures={"/commit/": [0, 409]})) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        codes = [CliRunner().invoke(app, ["push", store.uri, "--to", "anna/stored"]).exit_code for _ in range(2)]
    assert codes == [1, 0]
    assert len([name for name in hub.repositories["anna/stored"] if name.endswith(".parquet")]) == 4
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".parquet"]
