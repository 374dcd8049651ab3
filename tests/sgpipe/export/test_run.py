import errno
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.export import run as module
from sgpipe.export.run import FORMATS, export_run
from sgpipe.utils.locking import new_folder
from tests.sgpipe.export.runs import draw_images, records
from tests.sgpipe.stats.runs import make_shards


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    draw_images(folder / "images", made := records(8))
    return make_shards(folder / "run", made)


def write(root: Path, form: str, out: Path) -> module.Exported:
    """The run does not say where its images are, which WebDataset and FiftyOne contain."""
    images = root.parent / "images" if form in ("webdataset", "fiftyone") else None
    url = "https://example.org/" if form in ("label-studio", "instructions") else None
    return export_run(root, form, out, images=images, images_url=url)


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["export", *(str(argument) for argument in arguments)])


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_overwritten_and_equal_runs_give_equal_files(run, tmp_path, form):
    out = tmp_path / "out"
    out.mkdir()
    files = write(run, form, out).files  # an empty folder will do
    assert files
    assert write(run, form, tmp_path / "again").files == files
    before = [(out / file).read_bytes() for file in files]
    assert [(tmp_path / "again" / file).read_bytes() for file in files] == before
    with pytest.raises(UserError, match="exists and is not overwritten"):
        write(run, form, out)
    assert [(out / file).read_bytes() for file in files] == before
    with pytest.raises(UserError, match="exists and is not overwritten"):
        write(run, form, run)
    with pytest.raises(UserError, match="belongs to the run"):
        write(run, form, run / "data/new")


def test_a_failure_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def fail(labels, out):
        (out / "half.json").write_text("[")
        raise OSError("disk full")

    monkeypatch.setitem(module._WRITERS, "vg", fail)
    with pytest.raises(OSError, match="disk full"):
        export_run(run, "vg", tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_is_named_by_its_file_and_leaves_nothing_behind(run, tmp_path, monkeypatch, form):
    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    url = ["--images-url", "https://example.org/"] if form in ("label-studio", "instructions") else []
    images = ["--images", run.parent / "images"] if form == "webdataset" else []
    result = invoke(run, "--to", form, "--out", tmp_path / "out", *url, *images)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: No space left on device: {tmp_path / '.out.tmp'}")
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
