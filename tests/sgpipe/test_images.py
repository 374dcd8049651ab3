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
from sgpipe.images import ImageError, open_ahead, open_row_image, read_size, upright_rgb
from sgpipe.records import Record

NUMBER = 20
WHOLE = 4 * 10 * 9  # bytes of the first two images


def record(name: str, width: int = 8, height: int = 6) -> Record:
    return Record("1", "coco", "val", name, width, height)


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x.jpg", "a/../../x.jpg", "..\\x.jpg", "a\0b.jpg", "a/.."]
)
def test_names_that_leave_the_root_are_refused(tmp_path, name):
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "x.jpg").touch()
    with pytest.raises(ImageError, match="image folder"):
        FolderRoot(root).open(name)


def test_backslashes_are_between_folders_as_on_windows_unless_a_file_has_them_in_its_name(tmp_path):
    root = FolderRoot(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.png").touch()
    assert root.open("a\\b.png") == tmp_path / "a/b.png"
    (tmp_path / "a\\b.png").touch()
    assert root.open("a\\b.png") == tmp_path / "a\\b.png"
    assert not root.contains("a\\c.png")


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("size", [(8, 6), (6, 6)])
def test_images_of_a_folder_are_turned_as_exif_says(tmp_path, orientation, size):
    """Even if their size does not show that they are turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise(size, 50).save(tmp_path / "a.png", exif=exif)
    stored = Image.open(tmp_path / "a.png")
    expected = ImageOps.exif_transpose(stored)
    row = Record("1", "folder", "val", "a.png", *expected.size)
    assert open_row_image({"val": tmp_path}, row).convert("L").tobytes() == expected.tobytes()
    assert upright_rgb(stored).tobytes() == expected.convert("RGB").tobytes()
    annotated = open_row_image({"val": tmp_path}, record("a.png", *size))
    assert annotated.convert("L").tobytes() == stored.tobytes()


@pytest.mark.parametrize(
    "fault", [RuntimeError("codec"), MemoryError(), struct.error("unpack"), KeyError("tag")]
)
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
    folders = {"val": tmp_path / "run"}
    embedded = (tmp_path / "a.png").read_bytes()
    red = (255, 0, 0)
    lime = (0, 255, 0)
    blue = (0, 0, 255)
    assert open_row_image(folders, record("a.png")).getpixel((0, 0)) == red
    assert open_row_image(folders, record("a.png"), embedded).getpixel((0, 0)) == lime
    assert (
        open_row_image(folders, record("a.png"), embedded, tmp_path / "moved").getpixel((0, 0))
        == blue
    )
    with pytest.raises(ImageError, match=r"neither in the shard nor in a known folder: a\.png"):
        open_row_image({}, record("a.png"))


def test_sizes_are_read_as_images_are_and_errors_name_the_file(tmp_path, monkeypatch):
    Image.new("RGB", (40, 30)).save(tmp_path / "1.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    assert read_size(tmp_path, "1.jpg") == (40, 30)
    bad = {
        "none.jpg": r"not found: .*none\.jpg",
        "text.jpg": r"cannot be read: .*text\.jpg",
        "../1.jpg": "is not inside",
    }
    for name, reason in bad.items():
        with pytest.raises(ImageError, match=reason):
            read_size(tmp_path, name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="larger than Pillow's safety limit"):
        read_size(tmp_path, "1.jpg")


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
    drawn = [
        Record(str(number), "coco", "val", f"{number}.png", 10, 8 + number)
        for number in range(NUMBER)
    ]
    drawn[6].fail("source", "known to be bad")
    drawn[7].height = 1
    return drawn


def content(image: Image.Image, file: ImageFile) -> bytes:
    return image.tobytes()


def test_threads_change_no_image_and_no_error(folder: Path) -> None:
    seen = []
    for threads in (0, 1, 3):
        opened = open_ahead({"val": folder}, feed_records(), content, threads, batch=2)
        seen.append(
            [
                (record.image_id, image if isinstance(image, bytes) else str(image))
                for record, image in opened
            ]
        )
    assert seen[0] == seen[1] == seen[2]
    assert [number for number, _ in seen[0]] == [
        str(number) for number in range(NUMBER) if number != 6
    ]
    assert [number for number, image in seen[0] if isinstance(image, str)] == ["3", "4", "7"]


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


def name_of_thread(image: Image.Image, file: ImageFile) -> str:
    return threading.current_thread().name


def small(image: Image.Image, file: ImageFile) -> np.ndarray:
    return np.zeros(90, np.uint8)


@pytest.mark.parametrize(("most_bytes", "prepare", "threads", "expected"), [
    (module._MOST_BYTES, name_of_thread, 2, 7), (WHOLE, name_of_thread, 2, 2), (WHOLE, small, 2, 4),
    (module._MOST_BYTES, name_of_thread, 0, 7),  # those of a store are read in threads in any case
])  # fmt: skip
def test_only_a_few_images_are_opened_before_they_are_needed(
    folder, monkeypatch, most_bytes, prepare, threads, expected
):
    started = list[str]()
    original = module.image_file
    monkeypatch.setattr(module, "image_file", lambda *at: started.append(at[-1]) or original(*at))
    monkeypatch.setattr(module, "_MOST_BYTES", most_bytes)
    monkeypatch.setattr(module, "ThreadPoolExecutor", AtOnce)
    root = folder if threads else Store(folder)
    images = open_ahead({"val": root}, feed_records(), prepare, threads, 3)
    _, opened = next(images)
    images.close()
    assert len(started) == expected
    assert prepare is small or opened.startswith("images")
