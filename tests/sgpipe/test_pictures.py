import pytest
from PIL import Image

from sgpipe.images import ImageError, read_image, read_size
from sgpipe.records import Record


def save(folder, name="1.jpg", size=(40, 30), orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", size).save(folder / name, exif=exif)


def record(width, height, name="1.jpg") -> Record:
    return Record("1", "d", "val", name, width, height)


def test_sizes_come_from_the_header_as_stored(tmp_path):
    save(tmp_path, orientation=6)
    assert read_size(tmp_path, "1.jpg") == (40, 30)


def test_a_header_is_enough(tmp_path):
    save(tmp_path, size=(400, 300))
    path = tmp_path / "1.jpg"
    path.write_bytes(path.read_bytes()[:700])
    assert read_size(tmp_path, "1.jpg") == (400, 300)


def test_a_image_is_kept_byte_for_byte(tmp_path):
    save(tmp_path)
    assert read_image(tmp_path, record(40, 30)) == (tmp_path / "1.jpg").read_bytes()


@pytest.mark.parametrize(("orientation", "fits"), [(6, True), (3, False), (None, False)])
def test_the_annotated_size_may_be_that_of_the_turned_image(tmp_path, orientation, fits):
    save(tmp_path, orientation=orientation)
    if fits:
        assert read_image(tmp_path, record(30, 40))
    else:
        with pytest.raises(ImageError, match="is 40x30, the annotation says 30x40"):
            read_image(tmp_path, record(30, 40))


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("no image")
    for read in (lambda name: read_size(tmp_path, name), lambda name: read_image(tmp_path, record(4, 3, name))):
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
