import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.export.run import export_run
from sgpipe.generation.scoring import CLIP_COLUMN
from sgpipe.sources.hugging_face import dataset_source
from sgpipe.storage.manifest import Manifest
from tests.sgpipe.export.runs import HEIGHT, WIDTH, draw_images, only, records
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
