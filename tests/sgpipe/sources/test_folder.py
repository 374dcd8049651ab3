import pytest
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.recipe import SourceConfig, SplitConfig
from sgpipe.sources import open_source
from sgpipe.sources.folder import iter_images


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
    found = index(photos, tmp_path).records(0, 6)
    assert [(record.image_id, record.width, record.height) for record in found] == [
        ("a.PNG", 40, 30),
        ("b/2.jpg", 40, 30),
        ("broken.jpg", 0, 0),
        ("c.jpg", 30, 40),
        ("folder.png", 0, 0),
        ("link.png", 0, 0),
    ]
    assert [record.ok for record in found] == [True, True, False, True, False, False]
    assert "source: image cannot be read" in found[2].error
    assert {(record.dataset, record.split) for record in found} == {("folder", "all")}


def test_a_changed_folder_is_read_again(photos, tmp_path):
    before = index(photos, tmp_path).meta
    assert index(photos, tmp_path).meta == before
    save(photos / "d.png")
    after = index(photos, tmp_path)
    assert len(after) == 7
    assert after.meta["annotations_sha256"] != before["annotations_sha256"]


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no images"):
        index(tmp_path / "empty", tmp_path)
    assert not list(iter_images(tmp_path / "empty"))
