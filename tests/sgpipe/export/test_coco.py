import json
import math

import pytest

from sgpipe.export.annotation_files import number_categories
from sgpipe.export.run import export_run
from sgpipe.records import NO_OBJECT, Box, Record, from_table
from sgpipe.sources.coco import coco_source, read_coco
from sgpipe.sources.import_run import import_annotations
from tests.sgpipe.export.runs import COCO_IDS, only, records
from tests.sgpipe.sources.test_import_run import QUIET
from tests.sgpipe.stats.runs import make_shards


def test_coco_s_own_tools_load_it(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    made = records(30)
    out = export_run(make_shards(tmp_path / "run", made, rows=4), "coco", tmp_path / "out").root
    loaded = coco.COCO(out / "instances_val.json")
    wanted = only(made, "val")
    assert loaded.getImgIds() == [int(record.image_id) for record in wanted]
    for record in wanted:
        found = loaded.loadAnns(loaded.getAnnIds(imgIds=int(record.image_id)))
        assert [tuple(item["bbox"]) for item in found] == [box.bbox for box in record.objects]
        assert [item["category_id"] for item in found] == [box.category_id for box in record.objects]
    dogs = sum(box.category == "dog" for record in wanted for box in record.objects)
    assert len(loaded.getAnnIds(catIds=loaded.getCatIds(catNms=["dog"]))) == dogs > 0
    captions = coco.COCO(out / "captions_val.json")
    assert len(captions.anns) == sum(len(record.captions) for record in wanted) > 0


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
