"""Images in the rows of Parquet files, in folders and on the hub."""

from __future__ import annotations

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sgpipe.errors import EngineError, ImageError
from sgpipe.files.hub import HubDataset, MissingFileError
from sgpipe.files.image_roots import image_root
from sgpipe.files.roots import HubRoot
from sgpipe.generation.run import open_image_roots
from sgpipe.recipe import SourceConfig, SplitConfig
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import RunFolder
from sgpipe.utils.console import Progress
from tests.sgpipe.sources.hub.parquet_files import row, write

FILE = "data/train-00000-of-00001.parquet"
LOCATION = "hf://datasets/anna/set@main"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / FILE, [row(0), row(1) | {"image": None}, row(2)])
    (tmp_path / "a.png").write_bytes(row(9)["image"]["bytes"])
    (tmp_path / "cut.parquet").write_bytes((tmp_path / FILE).read_bytes()[:-9])
    return tmp_path


@pytest.fixture
def downloads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is fetched from a hub that has the folder as a dataset."""
    fetched: list[str] = []

    def fetch(dataset: HubDataset, file: str) -> Path:
        assert (dataset.name, dataset.revision) == ("anna/set", "main")
        fetched.append(file)
        if not (folder / file).exists():
            raise MissingFileError(f"{file} of the dataset anna/set does not exist on the hub")
        return folder / file

    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*.p*") if path.is_file()]
    monkeypatch.setattr(HubDataset, "fetch", fetch)
    monkeypatch.setattr(HubDataset, "list", lambda dataset: (dataset, files))
    return fetched


def data(file: Any) -> bytes:
    return file.getvalue() if isinstance(file, BytesIO) else file.read_bytes()


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_rows_are_images_and_files_still_are(place, folder, downloads):
    root = image_root(folder if place == "folder" else LOCATION)
    for each in (root, pickle.loads(pickle.dumps(root))):  # noqa: S301 - our own
        assert data(each.open(f"{FILE}#2")) == data(each.peek(f"{FILE}#image:2")) == row(2)["image"]["bytes"]
        assert data(each.open("a.png")) == row(9)["image"]["bytes"]
    assert root.contains(f"{FILE}#0")
    assert root.contains("a.png")
    assert not root.contains("b.png")
    assert {entry.name for entry in root.entries()} == {FILE, "a.png", "cut.parquet"}
    for name, message in [
        (f"{FILE}#1", "not found: .*#1"),
        (f"{FILE}#3", "not found"),
        ("cut.parquet#0", "cannot be read"),
        (f"../{folder.name}/{FILE}#0", "not inside"),
    ]:
        with pytest.raises(ImageError, match=message):
            root.open(name)


def test_a_dataset_of_the_hub_stays_at_its_commit(tmp_path, monkeypatch):
    commits = ["1" * 40, "2" * 40]

    def listed(dataset: HubDataset) -> tuple[HubDataset, list[str]]:
        return HubDataset(dataset.name, dataset.revision or commits.pop(0)), []

    monkeypatch.setattr(HubDataset, "list", listed)
    source = SourceConfig(splits={"train": SplitConfig(images="hf://datasets/anna/set", annotations="a.json")})

    def location(out: str) -> str:
        folder = RunFolder(tmp_path / out)
        return open_image_roots(source, folder, Progress(Console(quiet=True)))["train"].location

    first = location("run")
    assert first == f"hf://datasets/anna/set@{'1' * 40}"
    (tmp_path / "run").mkdir()
    Manifest.create(tmp_path / "run", {"images": {"train": first}})
    assert location("run") == first
    assert location("other") == f"hf://datasets/anna/set@{'2' * 40}"


def test_a_dataset_of_the_hub_is_fetched_by_file(folder, downloads):
    root = HubRoot(LOCATION)
    root.open(f"{FILE}#0")
    root.open(f"{FILE}#2")
    assert downloads == [FILE]
    for name in ("b.png", "b.parquet#0"):
        with pytest.raises(ImageError, match="does not exist on the hub"):
            root.open(name)
    with pytest.raises(EngineError, match="is not a dataset of the hub"):
        HubRoot("hf://models/x").open("a")
