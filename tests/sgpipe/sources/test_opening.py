import os

import pytest
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.images import ImageError, decode, reads_heif
from sgpipe.recipe import SourceConfig, SplitConfig
from sgpipe.sources.folder import list_folder, read_folder
from sgpipe.sources.opening import open_source
from tests.values import values_of


def save(path, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    save(root / "b/2.jpg")
    save(root / "a.PNG")
    save(root / ".hidden/3.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    save(root / "c.jpg", exif=turned)
    (root / "broken.jpg").write_bytes(b"no image")
    (root / "notes.txt").write_text("no image")
    (root / "link.png").symlink_to("nowhere")
    (root / "folder.png").mkdir()
    return root


def index(photos, tmp_path):
    config = SourceConfig(format="folder", splits={"all": SplitConfig(images=photos)})
    return open_source(config, "all", tmp_path / "index.arrow")


def test_images_are_found_with_their_displayed_size(photos, tmp_path):
    indexed = index(photos, tmp_path).records(0, 5)
    sizes = {record.image_id: (record.width, record.height) for record in indexed if record.ok}
    assert sizes == {"a.PNG": (40, 30), "b/2.jpg": (40, 30), "c.jpg": (30, 40)}
    failed = {record.image_id: record.error for record in indexed if not record.ok}
    assert list(failed) == ["broken.jpg", "link.png"]
    assert "source: image cannot be read" in failed["broken.jpg"]
    assert values_of(indexed, "image_id") == sorted(values_of(indexed, "image_id"))
    assert set(values_of(indexed, "dataset", "split")) == {("folder", "all")}


def test_names_that_are_not_utf8_are_called_so(tmp_path):
    root = tmp_path / "photos"
    for name in (b"caf\xe9.png", b"caf\xe8.png", "café.png".encode()):
        save(root / os.fsdecode(name))
    first, second, third = index(root, tmp_path).records(0, 3)
    assert [first.image_id, second.image_id, third.image_id] == [
        "café.png",
        "caf\\xe8.png",
        "caf\\xe9.png",
    ]
    assert first.ok
    assert "not UTF-8: caf\\xe9.png; rename" in third.error


def test_a_folder_that_cannot_be_entered_is_named(photos, monkeypatch):
    listed = os.scandir

    def scandir(path):
        if str(path) in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    closed = [str(photos / "b")]
    assert read_folder(photos, split="all")[1]["notes"] == ["2 files not read: b, notes.txt"]
    closed = [str(photos)]
    with pytest.raises(PermissionError):
        read_folder(photos, split="all")


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no images"):
        index(tmp_path / "empty", tmp_path)
    assert not list_folder(tmp_path / "empty").images
    (tmp_path / "empty/a.raw").touch()
    with pytest.raises(UserError, match=r"contains no images .*; 1 file not read: a\.raw"):
        index(tmp_path / "empty", tmp_path)


def test_files_that_are_not_read_are_counted_and_named(photos, tmp_path):
    names = (
        "b/d.RAW",
        "e.raw",
        "none",
        "video.mp4",
        "o\ndd.psd",
        "readme.md",
        "a.json",
        "b/2.jpg.xmp",
    )
    for name in (*names, ".DS_Store", ".hidden/4.raw", "__MACOSX/._a.raw"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"no image")
    (photos / "linked").symlink_to(photos / "b")
    read = index(photos, tmp_path)
    assert read.meta["notes"] == [
        "8 files not read: b/d.RAW, e.raw, linked, none, notes.txt and 3 others",
    ]
    assert read.meta["problems"]["unread_files"] == 8
    assert index(photos, tmp_path).meta == read.meta
    (photos / "new.raw").touch()
    save(photos / "d.png")
    after = index(photos, tmp_path)
    assert (after.meta["problems"]["unread_files"], len(after)) == (9, 6)
    assert after.meta["annotations_sha256"] != read.meta["annotations_sha256"]


@pytest.mark.skipif(not reads_heif(), reason="needs pillow-heif")
def test_heic_is_read_within_pillows_limit_and_not_rotated_again(tmp_path, monkeypatch):
    name = "a.HEIF"
    turned = Image.Exif()
    # in HEIC this only repeats what the container says, which the decoder has done
    turned[0x0112] = 6
    save(tmp_path / "photos" / name, (64, 48), format="HEIF", exif=turned)
    (record,) = index(tmp_path / "photos", tmp_path).records(0, 1)
    assert (record.ok, record.width, record.height) == (True, 64, 48)
    assert decode(tmp_path / "photos" / name, (64, 48), name, upright=True).size == (64, 48)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="safety limit of pixels"):
        decode(tmp_path / "photos" / name, (64, 48), name, upright=True)
