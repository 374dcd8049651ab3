"""Models in an object store: a server of moto's that speaks S3."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.files.object_store import StorePath
from sgpipe.recipe import packaged_model
from tests.integration.faults.runs import rows
from tests.sgpipe.generation.in_process import without_ray

IMAGES = 6


@pytest.fixture
def models(store: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The packaged models in the store, and an empty cache."""
    monkeypatch.setenv("SGPIPE_CACHE", str(tmp_path / "cache"))
    for name in ("tagger", "captioner"):
        for file in packaged_model(name).iterdir():  # type: ignore[arg-type]
            store.put(f"{name}/{file.name}", file.read_bytes())
    return [f"--{name}={store.uri}/{name}" for name in ("tagger", "captioner")]


def words_for(out: Path, *options: str) -> list[str]:
    return ["generate", "miniworld", "--set", f"source.miniworld.images={IMAGES}", "--out", str(out), *options]


def generate(out: Path, *options: str, code: int = 0) -> str:
    words = words_for(out, *options)
    with without_ray():
        done = CliRunner().invoke(app, words)
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.slow
def test_a_run_with_models_of_a_store_is_that_with_their_folders(models, tmp_path):
    by_uri, by_folder = tmp_path / "uri", tmp_path / "folder"
    assert "fetching the model s3://" in generate(by_uri, *models)
    generate(by_folder)
    assert rows(by_uri) == rows(by_folder)
    again = generate(by_folder, *models)
    assert "nothing left to do" in again
    assert "fetching" not in again
