"""Images over HTTP: small ones, whole ones, and placeholders that say why there is none."""

from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import ExifTags, Image
from starlette.testclient import TestClient

from sgpipe.view.pages import photo_url
from tests.sgpipe.training.data.runs import make_run
from tests.sgpipe.view.gallery_run import STRANGE, open_client, record


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with images of several kinds."""
    root = tmp_path_factory.mktemp("view") / "run"
    rows = [
        record("a", file_name="a.png"), record(STRANGE), record("gone"),
        record("outside", file_name="../outside.png"), record("large", width=1000, height=500),
        record("turned", file_name="turned.jpg"), record("tiff", file_name="a.tiff"),
    ]  # fmt: skip
    make_run(root, rows, spoilt={"gone": None, "outside": None})
    (root / "outside.png").write_bytes(b"secret")
    left_red = Image.new("RGB", (24, 16), "blue")
    left_red.paste("red", (0, 0, 8, 16))
    left_red.save(root / "images" / "a.tiff")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    left_red.save(root / "images" / "turned.jpg", exif=exif, quality=95)
    return root


@pytest.fixture(scope="module")
def client(root: Path) -> TestClient:
    return open_client(root)


def opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data))


@pytest.mark.parametrize("image_id", ["a", STRANGE])
def test_an_image_is_served_small_and_whole(client: TestClient, image_id: str) -> None:
    for address in (photo_url("val", image_id, 320), photo_url("val", image_id)):
        shown = client.get(address)
        assert (shown.headers["content-type"], opened(shown.content).size) == (
            "image/jpeg",
            (24, 16),
        )


def test_a_large_image_is_scaled_down_to_one_of_two_widths(client: TestClient) -> None:
    sizes = {
        width: opened(client.get(photo_url("val", "large", width)).content).size
        for width in (320, 640)
    }
    assert sizes == {320: (320, 160), 640: (640, 320)}
    for width in ("x", "-1", "1.5", "", "²", "1000000"):
        assert opened(client.get(f"/photo/val/large?width={width}").content).size == (1000, 500)


@pytest.mark.parametrize(
    ("image_id", "reason"),
    [("gone", "image file not found"), ("outside", "inside the image folder")],
)
def test_a_missing_image_or_one_out_of_its_folder_is_a_placeholder_with_the_reason(
    client: TestClient, image_id: str, reason: str
) -> None:
    for address in (photo_url("val", image_id), photo_url("val", image_id, 320)):
        shown = client.get(address)
        assert (shown.status_code, shown.headers["content-type"]) == (200, "image/svg+xml")
        assert reason in shown.text
        assert "secret" not in shown.text
        assert shown.headers["cache-control"] == "no-store"  # it may come back


@pytest.mark.parametrize(
    "name",
    [
        "../manifest.jsonl",
        "manifest.jsonl",
        "a.png",
        "..%2f..%2foutside.png",
        quote("/etc/passwd"),
        "",
        "A",
    ],
)
def test_only_images_of_rows_are_served(client: TestClient, name: str) -> None:
    for split in ("val", "train"):
        assert client.get(f"/photo/{split}/{name}").status_code == 404


@pytest.mark.parametrize("image_id", ["tiff", "turned"])
def test_what_a_browser_would_not_show_like_the_boxes_is_converted(
    client: TestClient, image_id: str
) -> None:
    """A TIFF it cannot show; a JPEG it would turn as EXIF says, but COCO's boxes are of the pixels
    as stored.
    """
    shown = opened(client.get(photo_url("val", image_id)).content)
    assert (shown.format, shown.size, shown.getexif().get(ExifTags.Base.Orientation)) == (
        "JPEG",
        (24, 16),
        None,
    )
    red, _, blue = shown.convert("RGB").getpixel((2, 8))
    assert red > 200 > 60 > blue


def test_a_folder_of_moved_images_takes_precedence(root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (24, 16), "red").save(tmp_path / "a.png")
    client = open_client(root, images=tmp_path)
    for address in (photo_url("val", "a"), photo_url("val", "a", 320)):
        assert opened(client.get(address).content).getpixel((5, 5)) == (254, 0, 0)


def test_images_in_the_shards_are_served(tmp_path: Path) -> None:
    rows = [record("a"), record("b")]
    make_run(tmp_path / "run", rows, embedded=True, spoilt={"b": b"broken"})
    client = open_client(tmp_path / "run")
    assert opened(client.get(photo_url("val", "a")).content).size == (24, 16)
    assert opened(client.get(photo_url("val", "a", 320)).content).size == (24, 16)
    assert "image cannot be read" in client.get(photo_url("val", "b", 320)).text
    next((tmp_path / "run" / "data").iterdir()).write_bytes(b"broken")
    for address in (photo_url("val", "b"), photo_url("val", "b", 320)):
        assert client.get(address).text.startswith("<svg")
