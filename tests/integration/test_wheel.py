"""The wheel alone, in an environment of its own away from the repository, is a whole sgpipe."""

import os
import re
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: object, folder: Path) -> str:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL", "SGPIPE"))
    }
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_alone(tmp_path: Path) -> None:
    """Its dependencies are those of this environment, which has been installed from the same
    list.
    """
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--outdir",
        tmp_path / "dist",
        ROOT,
        folder=tmp_path,
    )
    [wheel] = (tmp_path / "dist").glob("*.whl")
    assert wheel.stat().st_size < 15_000_000
    venv.create(tmp_path / "env")
    python = tmp_path / "env/bin/python"
    packages = Path(
        run(python, "-c", "import site; print(site.getsitepackages()[0])", folder=tmp_path).strip()
    )
    with zipfile.ZipFile(wheel) as content:
        content.extractall(packages)
        [metadata] = (
            content.read(name).decode() for name in content.namelist() if name.endswith("/METADATA")
        )
    # PyPI shows the README without the repository
    assert set(re.findall(r"\]\((?!https://)[^)]*", metadata)) == set()
    dependencies = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    sgpipe = [python, "-c", "from sgpipe.cli.main import main; main()"]
    where = run(python, "-c", "import sgpipe; print(sgpipe.__file__)", folder=tmp_path)
    assert where.startswith(str(tmp_path / "env"))
    run(*sgpipe, "generate", "--limit", "8", "--set", "source.miniworld.images=8", folder=tmp_path)
    assert "8 images in " in run(*sgpipe, "verify", "miniworld-relations", folder=tmp_path)
    list_pages = (
        "from sgpipe.view.pages import FOLDER; print(*(path.name for path in FOLDER.glob('*/*.*')))"
    )
    pages = {
        path.name
        for kind in ("templates", "static")
        for path in (ROOT / "sgpipe/view" / kind).iterdir()
    }
    assert pages <= set(run(python, "-c", list_pages, folder=tmp_path).split())
    images = sorted((tmp_path / "miniworld-relations").rglob("*.jpg"))[:2]
    assert (
        run(*sgpipe, "label", *images, "--recipe", "miniworld", folder=tmp_path).count(" objects, ")
        == 2
    )
    run(*sgpipe, "export", "miniworld-relations", "--to", "hf", "--out", "hub", folder=tmp_path)
    assert "## Licence" in (tmp_path / "hub/README.md").read_text()
