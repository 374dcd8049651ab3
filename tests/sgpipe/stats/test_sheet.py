import pytest
from PIL import Image

from sgpipe.stats.gallery import open_records, sample_images, write_sheet
from sgpipe.storage.index import open_run
from tests.sgpipe.training.data.runs import make_run, plain_record


def run_of(root, confidences, **options):
    make_run(root, [plain_record(str(n), confidence=c) for n, c in enumerate(confidences)], rows=3, **options)
    return root


def chosen(root, count, threshold=0.2) -> list[str]:
    with open_run(root) as database:
        return [record.image_id for record, _ in open_records(database, sample_images(database, count, threshold))]


def test_samples_are_evenly_spaced_among_images_with_relations_and_others_fill_up(tmp_path):
    root = run_of(tmp_path / "run", [0.9, 0.1, 0.2, None, 0.3, 0.0, 0.5, 0.6])
    assert chosen(root, 2) == ["0", "4"]
    assert chosen(root, 6) == ["0", "2", "3", "4", "6", "7"]
    assert chosen(root, 7) == ["0", "1", "2", "3", "4", "6", "7"]
    assert len(chosen(root, 2**63)) == 8


@pytest.mark.parametrize("embedded", [True, False])
def test_images_are_found_where_they_are_and_missing_ones_are_none(tmp_path, embedded):
    root = run_of(tmp_path / "a [b] *", [0.9, 0.9, 0.9], embedded=embedded, spoilt={"1": b"no image", "2": None})
    with open_run(root) as database:
        images = [image for _, image in open_records(database, sample_images(database, 3, 0.2))]
        assert [image is not None for image in images] == [True, False, False]
    elsewhere = tmp_path / "moved"
    elsewhere.mkdir()
    Image.new("RGB", (24, 16), "red").save(elsewhere / "1.png")
    with open_run(root) as database:
        images = [image for _, image in open_records(database, sample_images(database, 3, 0.2), elsewhere)]
    assert [image is not None for image in images] == [False, True, False]


def test_the_sheet_is_an_image_with_a_card_for_each_image(tmp_path):
    root = run_of(tmp_path / "run", [0.9] * 5)
    with open_run(root) as database:
        assert write_sheet(database, tmp_path / "sheet.png", count=4) == (4, 0)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 2 * 480
        assert sheet.height > 2 * 320
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "sheet.png"]
