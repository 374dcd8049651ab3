"""A folder of small images with awkward names, and archives of it."""

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

NAMES = ("a.jpg", "A.jpg", "patch1/b c.png", "patch1/deep/ü#%.jpg", f"patch2/{'long' * 40}.jpg", "patch2/d.png")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((24 + number, 16), 60 + number).convert("RGB").save(path)
    return tmp_path / "images"


def make_zip(folder: Path, out: Path, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(out, "w", method) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return out


def make_tar(folder: Path, out: Path) -> Path:
    with tarfile.open(out, "w") as archive:
        archive.add(folder, ".")
    return out


def make_patches(folder: Path, out: Path) -> Path:
    """A tar for each folder of the first level, named within as in the folder; other files in one more."""
    out.mkdir()
    with tarfile.open(out / "rest.tar", "w") as rest:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                rest.add(path, path.name)
                continue
            with tarfile.open(out / f"{path.name}.tar", "w") as archive:
                archive.add(path, path.name)
    return out


def make_shards(folder: Path, out: Path) -> Path:
    """As WebDataset's: flat members, numbered archives."""
    out.mkdir()
    for number, name in enumerate(NAMES):
        with tarfile.open(out / f"train-{number // 2:06d}.tar", "a") as archive:
            archive.add(folder / name, f"{number:04d}{Path(name).suffix}")
    return out / "train-{000000..000002}.tar"


FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "zip": lambda folder, out: make_zip(folder, out.with_suffix(".zip")),
    "deflated zip": lambda folder, out: make_zip(folder, out.with_suffix(".zip"), zipfile.ZIP_DEFLATED),
    "tar": lambda folder, out: make_tar(folder, out.with_suffix(".tar")),
    "patches": make_patches,
}
