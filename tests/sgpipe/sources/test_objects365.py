import json

import pytest

from sgpipe.recipe import SourceConfig, SplitConfig
from sgpipe.sources.opening import open_source

NAME = "images/v1/patch8/objects365_v1_00420917.jpg"


@pytest.mark.parametrize(
    ("on_disk", "expected"),
    [
        ("patch8/objects365_v1_00420917.jpg", "patch8/objects365_v1_00420917.jpg"),
        (NAME, NAME),
        ("v1/patch8/objects365_v1_00420917.jpg", "v1/patch8/objects365_v1_00420917.jpg"),
        ("objects365_v1_00420917.jpg", "objects365_v1_00420917.jpg"),
        ("elsewhere.jpg", "patch8/objects365_v1_00420917.jpg"),
    ],
)
def test_images_are_found_in_every_layout(tmp_path, on_disk, expected):
    image = tmp_path / "train" / on_disk
    image.parent.mkdir(parents=True)
    image.touch()
    annotations = tmp_path / "zhiyuan_objv2_train.json"
    annotations.write_text(
        json.dumps(
            {
                "images": [{"id": 420917, "file_name": NAME, "width": 769, "height": 512, "license": 5, "url": ""}],
                "annotations": [
                    {
                        "id": 51,
                        "image_id": 420917,
                        "category_id": 38,
                        "bbox": [491.3955078011, 88.1856689664, 35.65588379410002, 44.442382796800004],
                        "iscrowd": 0,
                        "isfake": 0,
                    }
                ],
                "categories": [{"id": 38, "name": "Moniter/TV"}, {"id": 53, "name": "Bakset"}],
            }
        )
    )
    source = SourceConfig(
        format="objects365",
        root=tmp_path,
        splits={"train": SplitConfig(annotations="zhiyuan_objv2_train.json", images="train")},
    )
    index = open_source(source, "train", tmp_path / "index.arrow")
    record = index.records(0, 1)[0]
    assert record.file_name == expected
    assert record.dataset == "objects365"
    assert record.objects[0].category == index.meta["categories"][0] != "Moniter/TV"
    assert index.meta["categories"][1] == "basket"
