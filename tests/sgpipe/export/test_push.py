"""`sgpipe push` against a stub of the hub: what arrives, what is refused, and going on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.storage.manifest import Manifest
from tests.sgpipe.export.hub_stub import TOKEN, HubStub, serving
from tests.sgpipe.export.runs import records
from tests.sgpipe.stats.runs import make_shards

datasets = pytest.importorskip("datasets")
TO = "anna/relations"


@pytest.fixture
def hub(monkeypatch) -> Iterator[HubStub]:
    with serving(HubStub()) as stub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", stub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield stub


@pytest.fixture
def run(tmp_path) -> Path:
    return make_shards(tmp_path / "run", records(20), rows=6)


def push(run: Path, *options: str, code: int = 0):
    done = CliRunner().invoke(app, ["push", str(run), "--to", TO, *options])
    assert done.exit_code == code, done.output
    assert TOKEN not in done.output
    assert "Traceback" not in done.output
    return done


def stored(hub: HubStub, folder: Path) -> Path:
    """What the hub has, as a folder."""
    for name, data in hub.repositories[TO].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_the_hub_has_what_export_writes(hub, run, tmp_path, monkeypatch, mode):
    hub.mode = mode
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", mode == "lfs")
    done = push(run, "--json")
    printed = json.loads(done.stdout)
    assert printed["url"] == f"{hub.url}/datasets/{TO}"
    assert printed["private"] is hub.private[TO] is True
    folder = stored(hub, tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert sum(map(len, loaded.values())) == 20
    assert TO in (folder / "README.md").read_text()
    assert not (run / ".sgpipe" / "push").exists()
    assert TOKEN not in "".join(path.read_text(errors="replace") for path in run.rglob("*") if path.is_file())


def test_a_dataset_of_others_is_not_touched(hub, run):
    hub.repositories[TO] = {"README.md": b"# mine", "data/train-00000-of-00001.parquet": b"PAR1"}
    hub.private[TO] = False
    done = push(run, code=2)
    assert "has files that sgpipe did not push (README.md, data/train-00000-of-00001.parquet)" in done.stderr
    assert hub.commits == []


def test_an_interrupted_upload_goes_on_with_the_same_command(hub, run):
    hub.failures = {"/commit/": [0, 409]}  # the card arrives, the data do not
    done = push(run, code=1)
    assert "run the same command again to resume" in done.stderr
    assert set(hub.repositories[TO]) == {".gitattributes", "README.md"}
    assert not (run / ".sgpipe" / "push").exists()
    push(run, "--threshold", "0.9")
    assert len([name for name in hub.repositories[TO] if name.endswith(".parquet")]) == len(Manifest.load(run).shards)
    assert "0.9" in hub.repositories[TO]["README.md"].decode()


@pytest.mark.parametrize(
    ("failures", "code", "message"),
    [
        ({"datasets": [401]}, 2, "refuses this user"),
        ({"datasets": [403]}, 2, "refuses"),
        ({"datasets": [500]}, 1, "500"),
    ],
)
def test_answers_of_the_hub_become_one_line(hub, run, failures, code, message):
    hub.failures = failures
    done = push(run, code=code)
    assert message in done.stderr


def test_what_is_refused_before_anything_is_sent(hub, run, monkeypatch, tmp_path):
    for to in ("relations", "a/b/c", "anna/"):
        assert "expected USER/NAME" in CliRunner().invoke(app, ["push", str(run), "--to", to]).stderr
    done = CliRunner().invoke(app, ["push", str(run), "--to", "berta/relations"])
    assert "the hub refuses this user (403)" in done.stderr
    assert not (run / ".sgpipe" / "push").exists()
    assert "is not an sgpipe run" in push(tmp_path, code=2).stderr
    assert hub.repositories == {}
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "log in with `hf auth login`, or set HF_TOKEN" in push(run, code=2).stderr
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in push(run, code=2).stderr
    assert hub.commits == []
    assert Manifest.load(run).shards
