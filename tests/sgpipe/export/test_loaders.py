"""Exports as other people's loaders read them: datasets of the hub, WebDataset and COCO."""

import json
import math
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.export.annotation_files import number_categories
from sgpipe.export.run import export_run
from sgpipe.generation.scoring import CLIP_COLUMN
from sgpipe.records import NO_OBJECT, Box, Record, from_table
from sgpipe.sources.coco import coco_source, read_coco
from sgpipe.sources.hugging_face import dataset_source
from sgpipe.sources.import_run import import_annotations
from sgpipe.storage.manifest import Manifest
from tests.sgpipe.export.runs import COCO_IDS, HEIGHT, WIDTH, draw_images, only, records
from tests.sgpipe.sources.test_import_run import QUIET
from tests.sgpipe.stats.runs import make_shards

datasets = pytest.importorskip("datasets")


def test_dataset_loaders_give_images_and_rows(tmp_path):
    made = records(30)
    images = draw_images(tmp_path / "images", made[:-1])
    run = make_shards(tmp_path / "run", made, rows=6)
    written = export_run(run, "hf", tmp_path / "out", images=images, embed=True)
    assert written.left_out == {"images that cannot be read": 1}
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "val"}
    for split, found in loaded.items():
        wanted = only(made, split)
        assert [row["image_id"] for row in found] == [record.image_id for record in wanted]
        label = found.features["objects"].feature["label"]
        for row, record in zip(found, wanted, strict=True):
            assert [label.int2str(item["label"]) for item in row["objects"]] == [box.category for box in record.objects]
            assert [item["predicate"] for item in row["relations"]] == [item.predicate for item in record.relations]
            if record.image_id != made[-1].image_id:
                assert row["image"].size == (WIDTH, HEIGHT)
                assert row["image"].getpixel((0, 0))[0] == pytest.approx(int(record.image_id) % 256, abs=2)


def test_scores_of_relations_that_are_left_out_are_left_out_too(tmp_path):
    made = records(12)
    run = make_shards(tmp_path / "run", made)
    for shard in Manifest.load(run).shards:
        table = pq.read_table(run / shard.file)
        scores = [[{"score": item["confidence"]} for item in row] for row in table["relations"].to_pylist()]
        column = pa.array(scores, pa.list_(CLIP_COLUMN.entry))
        pq.write_table(table.append_column("clip_score", column), run / shard.file)
    out = export_run(run, "hf", tmp_path / "out", threshold=0.5).root
    rows = [row for path in (out / "data").iterdir() for row in pq.read_table(path).to_pylist()]
    assert any(row["relations"] for row in rows)
    for row in rows:
        confidences = [item["confidence"] for item in row["relations"]]
        assert [item["score"] for item in row["clip_score"]] == confidences
        assert all(confidence >= 0.5 for confidence in confidences)


def test_what_others_made_of_it_is_checked(tmp_path):
    out = export_run(make_shards(tmp_path / "run", records(20)), "hf", tmp_path / "out").root
    for split, message in ((None, "several splits: pass --split train or val"), ("test", "no split 'test'")):
        with pytest.raises(UserError, match=message):
            dataset_source(str(out), split)
    path = out / "data/val-00000-of-00001.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("width")
    pq.write_table(table.set_column(column, table.field("width"), pa.array([5] * len(table), pa.int32())), path)
    with pytest.raises(UserError, match=r"val-00000-of-00001.parquet: bbox is not inside its image"):
        list(dataset_source(str(out), "val")[0].read({}))


def test_webdataset_has_each_image_with_its_row(tmp_path):
    made = records(25)
    images = draw_images(tmp_path / "images", made)
    (images / made[0].file_name).unlink()
    drawn = Image.new("RGB", (WIDTH, HEIGHT))
    drawn.save(images / made[1].file_name, "MPO", save_all=True, append_images=[drawn.copy()])
    run = make_shards(tmp_path / "run", made, rows=6)
    written = export_run(run, "webdataset", tmp_path / "out", images=images, threshold=0.5)
    assert written.left_out["images that cannot be read"] == 1
    found = []
    for path in sorted(written.root.glob("*.tar")):
        with tarfile.open(path) as tar:
            contents = [(member.name, tar.extractfile(member).read()) for member in tar]
        for key, (image, row) in enumerate(zip(contents[::2], contents[1::2], strict=True)):
            assert (image[0], row[0]) == (f"{key:06d}.jpeg", f"{key:06d}.json")
            found.append(json.loads(row[1]))
            assert image[1] == (images / found[-1]["file_name"]).read_bytes()
    wanted = sorted(made[1:], key=lambda record: record.split)
    for row, record in zip(found, wanted, strict=True):
        assert (row["split"], row["image_id"]) == (record.split, record.image_id)
        assert [tuple(item["bbox"]) for item in row["objects"]] == [box.bbox for box in record.objects]
        confident = [item.confidence for item in record.relations if item.confidence >= 0.5]
        assert [item["confidence"] for item in row["relations"]] == confident


def test_coco_s_own_tools_load_it(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    made = records(30)
    out = export_run(make_shards(tmp_path / "run", made, rows=4), "coco", tmp_path / "out").root
    loaded = coco.COCO(out / "instances_val.json")
    wanted = only(made, "val")
    for record in wanted:
        found = loaded.loadAnns(loaded.getAnnIds(imgIds=int(record.image_id)))
        assert [tuple(item["bbox"]) for item in found] == [box.bbox for box in record.objects]
    dogs = sum(box.category == "dog" for record in wanted for box in record.objects)
    assert len(loaded.getAnnIds(catIds=loaded.getCatIds(catNms=["dog"]))) == dogs > 0
    assert len(coco.COCO(out / "captions_val.json").anns) == sum(len(record.captions) for record in wanted) > 0


def test_the_missing_object_of_a_relation_is_no_class(tmp_path):
    nothing = Box(NO_OBJECT, -1, (0.0, 0.0, 0.0, 0.0))
    made = [Record("7", "vcoco", "val", "7.jpg", 10, 10, [Box("dog", 3, (1.0, 2.0, 3.0, 4.0)), nothing])]
    written = export_run(make_shards(tmp_path / "run", made), "coco", tmp_path / "out")
    assert written.left_out == {"objects that the format cannot hold": 1}
    content = json.loads((tmp_path / "out/instances_val.json").read_text())
    assert content["categories"] == [{"id": 3, "name": "dog"}]
    assert [item["category_id"] for item in content["annotations"]] == [3]
    assert "| objects | 2 | 1 |" in (tmp_path / "out/README.md").read_text()


POLYGONS = [[1, 1, 5, 1, 5.5, 4.25], [1, 2, 3, 2, 3, 4, 1, 4]]
RLE = {"counts": [6, 60, 134], "size": [10, 20]}
COMPRESSED = {"size": [10, 20], "counts": "P137000000000\\3"}
MASKS = [POLYGONS, RLE, COMPRESSED, [], None]
ODD_OUTLINES = ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, "6"], [1, 2, 3, 4, 5, math.nan])
ODD_COUNTS = ({"counts": [6, 60], "size": [10, 20]}, {**RLE, "size": [20, 10]}, {"counts": "ab"}, {**RLE, "counts": 7})
BAD_MASKS = [*([outline] for outline in ODD_OUTLINES), *ODD_COUNTS, [1, 2, 3, 4, 5, 6], "x", 7]


@pytest.mark.parametrize("labelled", [False, True], ids=["imported", "read to be labelled"])
def test_segmentations_come_back_as_the_file_has_them(tmp_path, labelled):
    """What is neither polygons nor run lengths of the image is left out and counted; its box stays."""
    masks = [*MASKS, *BAD_MASKS]
    boxes = [{"id": n, "image_id": 1 + n % 2, "category_id": 18, "bbox": [1, 1, 2 + n, 3]} for n in range(len(masks))]
    written = [box | {"segmentation": mask} for box, mask in zip(boxes, masks, strict=True)]
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 20, "height": 10} for number in (2, 1)]
    content = {"annotations": written, "images": images, "categories": [{"id": 18, "name": "dog"}]}
    instances = tmp_path / "instances_val.json"
    instances.write_text(json.dumps(content))
    if labelled:
        detections, _ = read_coco(instances, None, dataset="coco", split="val")
        made, problems = [record for table in detections.tables() for record in from_table(table)], detections.problems
        make_shards(tmp_path / "run", made)
    else:
        problems = import_annotations(coco_source(instances, "val"), tmp_path, tmp_path / "run", QUIET).problems
    assert problems["segmentations"] == len(BAD_MASKS)
    export_run(tmp_path / "run", "coco", tmp_path / "out")
    found = json.loads((tmp_path / "out/instances_val.json").read_text())["annotations"]
    expected = {(1 + n % 2, 2 + n): mask or [] for n, mask in enumerate([*MASKS, *([] for _ in BAD_MASKS)])}
    assert {(item["image_id"], item["bbox"][2]): item["segmentation"] for item in found} == expected


def test_numbers_of_classes_are_kept_where_they_mean_something():
    coco = {"person": 1, "dog": 18, "cup": COCO_IDS["cup"]}
    assert number_categories([(18, "dog"), (1, "person")], ["person", "cup", "dog"]) == coco
    assert number_categories([(3, "a"), (1, "b")], None) == {"b": 1, "a": 3}
    assert number_categories([(0, "b"), (0, "a")], None) == {"a": 1, "b": 2}
    assert number_categories([(1, "a"), (2, "a")], None) == {"a": 1}
    assert number_categories([(5, "b")], ["a", "b"]) == {"a": 1, "b": 2}
