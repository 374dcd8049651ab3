"""Images in the rows of Parquet files, in folders and on the hub."""

from __future__ import annotations

import io
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from sgpipe.errors import ImageError, StoreError
from sgpipe.files.hub import HubDataset
from sgpipe.files.image_roots import image_root
from sgpipe.files.roots import ParquetImages
from sgpipe.generation.run import open_image_roots
from sgpipe.recipe import SourceConfig, SplitConfig
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import RunFolder
from sgpipe.utils.console import Progress
from tests.sgpipe.sources.hub_datasets import row, write
from tests.values import values_of

FILE = "data/train-00000-of-00001.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / FILE, [row(0), row(1) | {"image": None}, row(2)])
    (tmp_path / "a.png").write_bytes(row(9)["image"]["bytes"])
    (tmp_path / "cut.parquet").write_bytes((tmp_path / FILE).read_bytes()[:-9])
    return tmp_path


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that has the folder as a dataset."""

    def fetch(dataset: HubDataset, file: str) -> Path:
        assert (dataset.name, dataset.revision) == ("anna/set", "main")
        return folder / file

    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*.p*") if path.is_file()]
    monkeypatch.setattr(HubDataset, "fetch", fetch)
    monkeypatch.setattr(HubDataset, "list", lambda dataset: (dataset, files))


def data(file: Any) -> bytes:
    return file.getvalue() if isinstance(file, BytesIO) else file.read_bytes()


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_rows_are_images_and_files_still_are(place, folder, hub):
    root = image_root(folder if place == "folder" else "hf://datasets/anna/set@main")
    for opened in (root, pickle.loads(pickle.dumps(root))):  # noqa: S301 - our own
        assert (
            data(opened.open(f"{FILE}#2"))
            == data(opened.open(f"{FILE}#image:2", 9))
            == row(2)["image"]["bytes"]
        )
        assert data(opened.open("a.png")) == row(9)["image"]["bytes"]
    assert root.contains(f"{FILE}#0")
    assert root.contains("a.png")
    assert not root.contains("b.png")
    assert set(values_of(root.entries(), "name")) == {FILE, "a.png", "cut.parquet"}
    pq.write_table(pa.table({"n": [1]}), folder / "n.parquet")
    for name, message in [
        ("n.parquet#n:0", "not found"),
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
    source = SourceConfig(
        splits={"train": SplitConfig(images="hf://datasets/anna/set", annotations="a.json")}
    )

    def location(out: str) -> str:
        folder = RunFolder(tmp_path / out)
        return open_image_roots(source, folder, Progress(Console(quiet=True)))["train"].location

    first = location("run")
    assert first == f"hf://datasets/anna/set@{'1' * 40}"
    (tmp_path / "run").mkdir()
    Manifest.create(tmp_path / "run", {"images": {"train": first}})
    assert location("run") == first
    assert location("other") == f"hf://datasets/anna/set@{'2' * 40}"


def test_images_are_read_in_any_order(tmp_path):
    rows = list(map(row, range(60)))
    write(tmp_path / "a.parquet", rows[:50], batch=20)
    write(tmp_path / "b.parquet", rows[50:], batch=4)
    images = ParquetImages(tmp_path.joinpath)
    order = [*range(60), *reversed(range(60)), 3, 41, 22, 59, 4]
    for number in order:
        name = f"a.parquet#{number}" if number < 50 else f"b.parquet#image:{number - 50}"
        assert images.read(name) == rows[number]["image"]["bytes"]
    for absent in ("a.parquet#50", "c.parquet#0", "a.parquet#photo:1", "a.parquet"):
        with pytest.raises(FileNotFoundError):
            images.read(absent)


def test_images_are_read_after_a_failure_of_the_store(tmp_path):
    files = [bytes([number]) * 100_000 for number in range(40)]
    table = pa.table({"image": pa.array(files, pa.binary())})
    pq.write_table(
        table, tmp_path / "a.parquet", compression="none", data_page_size=1, write_batch_size=1
    )

    class Stored(io.BytesIO):
        fails = False

        def read(self, size: int | None = -1) -> bytes:
            if self.fails:
                raise StoreError("the store is gone")
            return super().read(size)

    stored = Stored((tmp_path / "a.parquet").read_bytes())
    images = ParquetImages(lambda name: stored)
    assert images.read("a.parquet#0") == files[0]
    stored.fails = True
    for _ in range(2):
        with pytest.raises(StoreError, match="the store is gone"):
            images.read("a.parquet#39")
    stored.fails = False
    assert images.read("a.parquet#39") == files[39]
