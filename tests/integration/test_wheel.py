"""The wheel alone, in an empty environment away from the repository, is a whole sgpipe."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: object, folder: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL", "SGPIPE"))}
    done = subprocess.run([str(part) for part in command], cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_alone(tmp_path):
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT, folder=tmp_path)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    assert wheel.stat().st_size < 20 << 20
    venv.create(tmp_path / "env", with_pip=True)
    programs = tmp_path / "env/bin"
    run(programs / "pip", "install", "--quiet", wheel, folder=tmp_path)
    sgpipe = programs / "sgpipe"
    where = run(programs / "python", "-c", "import sgpipe; print(sgpipe.__file__)", folder=tmp_path)
    assert where.startswith(str(tmp_path / "env"))
    assert "✗" not in run(sgpipe, "doctor", folder=tmp_path)
    run(sgpipe, "generate", "--limit", "8", "--set", "source.miniworld.images=8", folder=tmp_path)
    assert "8 images in " in run(sgpipe, "verify", "miniworld-relations", folder=tmp_path)
    list_pages = "from sgpipe.view.web import FOLDER; print(*(path.name for path in FOLDER.glob('*/*.*')))"
    pages = {path.name for kind in ("templates", "static") for path in (ROOT / "sgpipe/view" / kind).iterdir()}
    assert pages <= set(run(programs / "python", "-c", list_pages, folder=tmp_path).split())
    images = sorted((tmp_path / "miniworld-relations").rglob("*.jpg"))
    said = run(sgpipe, "label", *images, folder=tmp_path)
    assert said.count(" objects, ") == 8
    assert " · " in said
    assert len(list((tmp_path / "labelled").iterdir())) == 8
    run(sgpipe, "export", "miniworld-relations", "--to", "hf", "--out", "hub", folder=tmp_path)
    assert "## Licence" in (tmp_path / "hub/README.md").read_text()
