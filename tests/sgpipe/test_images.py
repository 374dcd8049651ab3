import struct
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from sgpipe import images as module
from sgpipe.files.image_roots import ImageFile
from sgpipe.files.roots import FolderRoot
from sgpipe.images import ImageError, ImageFeed, open_row_image, read_image, read_size, upright_rgb
from sgpipe.records import Record


def record(name: str, width: int = 8, height: int = 6) -> Record:
    return Record("1", "coco", "val", name, width, height)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x.jpg", "a/../../x.jpg", "..\\x.jpg", "a\0b.jpg", "a/.."])
def test_names_that_leave_the_root_are_refused(tmp_path, name):
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "x.jpg").touch()
    with pytest.raises(ImageError, match="image folder"):
        FolderRoot(root).open(name)


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("size", [(8, 6), (6, 6)])
def test_images_of_a_folder_are_turned_as_exif_says(tmp_path, orientation, size):
    """Even if their size does not show that they are turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise(size, 50).save(tmp_path / "a.png", exif=exif)
    stored = Image.open(tmp_path / "a.png")
    expected = ImageOps.exif_transpose(stored)
    own = Record("1", "folder", "val", "a.png", *expected.size)
    assert open_row_image({"val": tmp_path}, own).convert("L").tobytes() == expected.tobytes()
    assert upright_rgb(stored).tobytes() == expected.convert("RGB").tobytes()
    annotated = open_row_image({"val": tmp_path}, record("a.png", *size))
    assert annotated.convert("L").tobytes() == stored.tobytes()


def test_unusable_images_in_memory_are_refused_with_a_reason(tmp_path):
    Image.effect_noise((80, 60), 50).save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-300])
    for image, reason in (
        (Image.open(tmp_path / "cut.jpg"), "truncated"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (Image.new("F", (4, 4)), "floating-point"),
    ):
        with pytest.raises(ImageError, match=reason):
            upright_rgb(image)


@pytest.mark.parametrize("fault", [RuntimeError("codec"), MemoryError(), struct.error("unpack"), KeyError("tag")])
def test_every_error_of_a_decoder_is_an_image_error(tmp_path, monkeypatch, fault):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")

    def decode(self):
        raise fault

    monkeypatch.setattr(PngImageFile, "load", decode)
    with pytest.raises(ImageError, match="cannot be read"):
        open_row_image({"val": tmp_path}, record("a.png"))


def test_an_image_is_taken_from_the_given_folder_then_the_row_then_the_folder_of_the_run(tmp_path):
    for name in ("run", "moved"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 6), "red" if name == "run" else "blue").save(tmp_path / name / "a.png")
    Image.new("RGB", (8, 6), "lime").save(tmp_path / "a.png")
    folders, embedded = {"val": tmp_path / "run"}, (tmp_path / "a.png").read_bytes()
    red, lime, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    assert open_row_image(folders, record("a.png")).getpixel((0, 0)) == red
    assert open_row_image(folders, record("a.png"), embedded).getpixel((0, 0)) == lime
    assert open_row_image(folders, record("a.png"), embedded, tmp_path / "moved").getpixel((0, 0)) == blue
    with pytest.raises(ImageError, match=r"neither in the shard nor in a known folder: a\.png"):
        open_row_image({}, record("a.png"))


def save(folder, name="1.jpg", size=(40, 30), orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", size).save(folder / name, exif=exif)


def test_the_annotated_size_of_a_turned_image_may_be_either(tmp_path):
    save(tmp_path, orientation=6)
    assert read_size(tmp_path, "1.jpg") == (40, 30)
    assert read_image(tmp_path, record("1.jpg", 30, 40))
    for orientation in (3, None):
        save(tmp_path, orientation=orientation)
        with pytest.raises(ImageError, match="is 40x30, the annotation says 30x40"):
            read_image(tmp_path, record("1.jpg", 30, 40))


def test_errors_name_the_file(tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("no image")
    for read in (lambda name: read_size(tmp_path, name), lambda name: read_image(tmp_path, record(name, 4, 3))):
        with pytest.raises(ImageError, match=r"not found: .*none\.jpg"):
            read("none.jpg")
        with pytest.raises(ImageError, match=r"cannot be read: .*text\.jpg"):
            read("text.jpg")
        with pytest.raises(ImageError, match="is not inside"):
            read("../text.jpg")
    save(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="larger than Pillow's safety limit"):
        read_size(tmp_path, "1.jpg")


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


def feed_records() -> list[Record]:
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
        given = feed_records()
        with ImageFeed({"val": folder}, given, content, threads, batch=2) as images:
            seen.append([outcome(images, record) for record in given[::step] if record.ok])
    assert seen[0] == seen[1] == seen[2]
    assert sum(isinstance(each, str) for each in seen[0]) == {1: 3, 3: 1}[step]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the images that a feed has begun to read."""
    ids, original = list[str](), module.image_file
    monkeypatch.setattr(module, "image_file", lambda roots, row: ids.append(row.image_id) or original(roots, row))
    return ids


def test_a_record_that_was_not_announced_is_opened(folder: Path, started: list[str]) -> None:
    """Nor is what was announced lost by that, or read twice."""
    first, *others = feed_records()
    others = [record for record in others if record.ok]
    with ImageFeed({"val": folder}, others, content, threads=2) as images:
        for record in others:
            outcome(images, record)
            assert images.open(first) == images.open(first)
    assert sorted(started) == sorted([*(record.image_id for record in others), *["0"] * 2 * len(others)])


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


@pytest.mark.parametrize(("most_bytes", "expected"), [(module._MOST_BYTES, 2 * 2), (1, 1)])
def test_files_are_read_only_while_few_bytes_wait(folder, monkeypatch, started, most_bytes, expected):
    monkeypatch.setattr(module, "_MOST_BYTES", most_bytes)
    monkeypatch.setattr(module, "ThreadPoolExecutor", AtOnce)
    given = feed_records()[8:]
    with ImageFeed({"val": Store(folder)}, given, content) as images:
        for number, record in enumerate(given):
            assert len(images.open(record)) == 3 * record.width * record.height
            assert len(started) == min(number + expected, len(given))


def test_only_a_few_images_are_prepared_before_they_are_needed(folder, monkeypatch, started):
    monkeypatch.setattr(module, "ThreadPoolExecutor", AtOnce)

    def name(image: Image.Image, file: ImageFile) -> str:
        return threading.current_thread().name

    def small(image: Image.Image, file: ImageFile) -> np.ndarray:
        return np.zeros(90, np.uint8)

    whole = 4 * 10 * 9  # bytes of the first two images
    for most, prepare, expected in ((module._MOST_BYTES, name, 7), (whole, name, 2), (whole, small, 4)):
        monkeypatch.setattr(module, "_MOST_BYTES", most)
        given = feed_records()
        started.clear()
        with ImageFeed({"val": folder}, given, prepare, 2, 3) as images:
            found = images.open(given[0])
            images._pool.shutdown(wait=True)
        assert len(started) == expected
        assert prepare is small or found.startswith("images")
