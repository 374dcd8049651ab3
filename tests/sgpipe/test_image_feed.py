"""Images that are opened and prepared in threads: the same, in the same order, and only a few of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgpipe import image_feed
from sgpipe.errors import ImageError
from sgpipe.files.image_roots import ImageFile
from sgpipe.files.roots import FolderRoot
from sgpipe.image_feed import ImageFeed
from sgpipe.records import Record

NUMBER = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(NUMBER):
        pixels = np.random.default_rng(number).integers(0, 256, (8 + number, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "3.png").unlink()
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:60])
    return folder


def records() -> list[Record]:
    made = [Record(str(number), "coco", "val", f"{number}.png", 10, 8 + number) for number in range(NUMBER)]
    made[6].fail("source", "known to be bad")
    made[7].height = 1
    return made


def outcome(images: ImageFeed[bytes], record: Record) -> bytes | str:
    try:
        return images.open(record)
    except ImageError as error:
        return str(error)


def content(image: Image.Image, file: ImageFile) -> bytes:
    return image.tobytes()


@pytest.mark.parametrize("step", [1, 3])  # every image, or only some of those that were announced
def test_threads_change_no_image_and_no_error(folder: Path, step: int) -> None:
    seen = []
    for threads in (0, 1, 3):
        given = records()
        with ImageFeed({"val": folder}, given, content, threads, batch=2) as images:
            seen.append([outcome(images, record) for record in given[::step] if record.ok])
    assert seen[0] == seen[1] == seen[2]
    assert sum(isinstance(each, str) for each in seen[0]) == {1: 3, 3: 1}[step]


def test_a_record_that_was_not_announced_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what was announced lost by that, or read twice."""
    read: list[str] = []
    original = image_feed.image_file
    monkeypatch.setattr(image_feed, "image_file", lambda roots, row: read.append(row.image_id) or original(roots, row))
    first, *others = records()
    others = [record for record in others if record.ok]
    with ImageFeed({"val": folder}, others, content, threads=2) as images:
        for record in others:
            outcome(images, record)
            assert images.open(first) == images.open(first)
    assert sorted(read) == sorted([*(record.image_id for record in others), *["0"] * 2 * len(others)])


class Store(FolderRoot):
    """A folder whose files threads read."""

    threads = 2

    def open(self, name: str) -> ImageFile:
        return BytesIO((self.folder / name).read_bytes())


class AtOnce(ThreadPoolExecutor):
    """Computes when it is asked to."""

    def submit(self, function, *args):
        future = super().submit(function, *args)
        wait([future])
        return future


@pytest.mark.parametrize(("most_bytes", "expected"), [(image_feed._MOST_BYTES, 2 * 2), (1, 1)])
def test_files_are_read_only_while_few_bytes_wait(
    folder: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int, expected: int
) -> None:
    started: list[Record] = []
    original = image_feed.image_file
    monkeypatch.setattr(image_feed, "image_file", lambda roots, row: started.append(row) or original(roots, row))
    monkeypatch.setattr(image_feed, "_MOST_BYTES", most_bytes)
    monkeypatch.setattr(image_feed, "ThreadPoolExecutor", AtOnce)
    given = records()[8:]
    with ImageFeed({"val": Store(folder)}, given, content) as images:
        for number, record in enumerate(given):
            assert len(images.open(record)) == 3 * record.width * record.height
            assert len(started) == min(number + expected, len(given))


def test_only_a_few_images_are_prepared_before_they_are_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Record] = []
    original = image_feed.image_file
    monkeypatch.setattr(image_feed, "image_file", lambda roots, row: started.append(row) or original(roots, row))
    monkeypatch.setattr(image_feed, "ThreadPoolExecutor", AtOnce)

    def name(image: Image.Image, file: ImageFile) -> str:
        return threading.current_thread().name

    def small(image: Image.Image, file: ImageFile) -> np.ndarray:
        return np.zeros(90, np.uint8)

    whole = 4 * 10 * 9  # bytes of the first two images
    for most, prepare, expected in ((image_feed._MOST_BYTES, name, 7), (whole, name, 2), (whole, small, 4)):
        monkeypatch.setattr(image_feed, "_MOST_BYTES", most)
        given = records()
        started.clear()
        with ImageFeed({"val": folder}, given, prepare, 2, 3) as images:
            found = images.open(given[0])
            images._pool.shutdown(wait=True)
        assert len(started) == expected
        assert prepare is small or found.startswith("images")
