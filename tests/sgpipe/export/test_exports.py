"""Exports: as other people's loaders read them, the same again after an import, and never over
anything.
"""

import errno
import json
import math
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.export.coco import number_categories
from sgpipe.export.run import Exported, export_run
from sgpipe.records import NO_OBJECT, Attribute, Box, Caption, Record, Relation, from_table
from sgpipe.registry import BUILT_IN
from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.coco import coco_relations_source, coco_source, read_coco
from sgpipe.sources.hoi import hico_source
from sgpipe.sources.hub import dataset_source
from sgpipe.sources.import_run import import_annotations
from sgpipe.sources.pseudo_labels import pseudo_label_source
from sgpipe.sources.visual_genome import visual_genome_source
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.shards import SCORES, embedded_images, read_file
from sgpipe.utils.atomic import new_folder
from tests.sgpipe.export.runs import COCO_IDS, HEIGHT, WIDTH, draw_images, imported, only, records
from tests.sgpipe.sources.test_import_run import QUIET
from tests.sgpipe.stats.runs import make_shards
from tests.values import values_of

NOTHING = Box(NO_OBJECT, -1, (0.0, 0.0, 0.0, 0.0))
IMAGES = 40
FORMS = ("coco", "coco-rel", "sgg-benchmark", "vg", "rlipv2", "hf")

ODD_NAMES = (
    "__background__",
    " dog",
    "dog ",
    "dog",
    "Dog",
    "",
    " ",
    "a\nb",
    "é",
    "e\u0301",
    "\u202eon",
    "\x00",
    '"`',
    "\\",
)
NAMES = st.one_of(
    st.sampled_from(ODD_NAMES), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)
PAIR = ("  7", " a/b .jpg ")  # an image id and a file name with outer spaces
POLYGONS = [[1, 1, 5, 1, 5.5, 4.25], [1, 2, 3, 2, 3, 4, 1, 4]]
RLE = {"counts": [6, 60, 134], "size": [10, 20]}
COMPRESSED = {"size": [10, 20], "counts": "P137000000000\\3"}
MASKS = [POLYGONS, RLE, COMPRESSED, [], None]
ODD_OUTLINES = (
    [1, 2, 3, 4],
    [1, 2, 3, 4, 5, 6, 7],
    [1, 2, 3, 4, 5, "6"],
    [1, 2, 3, 4, 5, math.nan],
)
ODD_COUNTS = (
    {"counts": [6, 60], "size": [10, 20]},
    {**RLE, "size": [20, 10]},
    {"counts": "ab"},
    {**RLE, "counts": 7},
)
BAD_MASKS = [*([outline] for outline in ODD_OUTLINES), *ODD_COUNTS, [1, 2, 3, 4, 5, 6], "x", 7]


@pytest.fixture(scope="module")
def all_records() -> list[Record]:
    return records(IMAGES)


@pytest.fixture(scope="module")
def run(all_records, tmp_path_factory) -> Path:
    """A run that does not say where its images are: beside it."""
    folder = tmp_path_factory.mktemp("labels")
    draw_images(folder / "images", all_records)
    return make_shards(folder / "run", all_records, rows=7)


def exported(root: Path, form: str, out: Path, **options: object) -> Path:
    return export_run(root, form, out, **{"threshold": 0.0, **options}).root


def source_of(form: str, out: Path, split: str = "val") -> AnnotationSource:
    """What was exported, as `sgpipe import` reads it."""
    if form == "coco":
        captions = out / f"captions_{split}.json"
        return coco_source(
            out / f"instances_{split}.json", split, captions if captions.exists() else None
        )
    if form == "coco-rel":
        return coco_relations_source(out / f"{split}.json", out / "rel.json", split)
    if form == "sgg-benchmark":
        return coco_relations_source(out / split / "_annotations.coco.json", None, split)
    if form == "vg":
        return visual_genome_source(
            out / f"scene_graphs_{split}.json", out, split, preprocess=False
        )
    if form == "rlipv2":
        return pseudo_label_source(out / f"{split}.json", out, split)
    return dataset_source(str(out), split)[0]


def with_objects(record: Record, indices: Sequence[int]) -> Record:
    """With only these objects and their relations."""
    relations = [
        replace(item, subject=indices.index(item.subject), object=indices.index(item.object))
        for item in record.relations
        if {item.subject, item.object} <= {*indices}
    ]
    return replace(
        record, objects=[record.objects[index] for index in indices], relations=relations
    )


def held(form: str, drawn: list[Record], split: str) -> list[Record]:
    """What a form can hold of records."""
    if form == "hf":
        return only(drawn, split)
    if form == "coco":
        return only(drawn, split, relations=[], triplets=[], pairs=[])
    dataset = {"vg": "visual_genome", "rlipv2": "coco2017"}.get(form, "coco_rel")
    split_records = only(drawn, split, dataset=dataset, captions=[], triplets=[], pairs=[])
    if form == "coco-rel":
        return [
            replace(r, relations=[replace(item, confidence=None) for item in r.relations])
            for r in split_records
        ]
    if form == "sgg-benchmark":
        return split_records
    split_records = [
        with_objects(r, [index for index, box in enumerate(r.objects) if not box.iscrowd])
        for r in split_records
    ]
    return [
        replace(r, objects=[replace(box, category_id=0) for box in r.objects])
        for r in split_records
    ]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_form_can_hold_comes_back(all_records, run, tmp_path, form, split):
    out = exported(run, form, tmp_path / "out")
    expected = held(form, all_records, split)
    assert any(values_of(expected, "objects"))
    assert form == "coco" or any(values_of(expected, "relations"))
    assert imported(source_of(form, out, split), tmp_path, tmp_path / "in") == expected


def test_rlipv2_finds_the_images_of_objects365(all_records, tmp_path):
    renamed = [
        replace(record, dataset="objects365", split="train", file_name=f"patch1/{record.file_name}")
        for record in all_records
    ]
    out = exported(make_shards(tmp_path / "run", renamed), "rlipv2", tmp_path / "out")
    source = pseudo_label_source(
        out / "train.json", tmp_path, "train", out / "image_id_to_filepath.json"
    )
    images = values_of(imported(source, tmp_path, tmp_path / "in"), "file_name", "dataset")
    assert images == [(record.file_name, "o365") for record in renamed]


def test_hico_holds_what_persons_do_in_its_verbs(tmp_path):
    person, dog, cup = (
        Box(name, COCO_IDS[name], (8.0, 4.0, 20.0, 30.0)) for name in ("person", "dog", "cup")
    )
    unknown = Box("wizard", 7, (1.0, 1.0, 5.0, 5.0))
    relations = [
        Relation(1, 2, "walking", 0.5),  # HICO-DET calls it "walk"
        Relation(1, 3, "hold", 0.5),
        Relation(1, 3, "fly", 0.5),  # nobody flies a cup
        Relation(1, 3, "to the left of", 0.5),
        Relation(2, 1, "lick", 0.5),  # only persons act
        Relation(0, 1, "ride", 0.5),
        Relation(1, 2, "hold", 0.1),
    ]
    name = "a/COCO_val2014_000000000001.jpg"  # which V-COCO's images are called, too
    record = Record("own id", "hico", "train", name, WIDTH, HEIGHT, [unknown, person, dog, cup])
    root = make_shards(tmp_path / "run", [replace(record, relations=relations)])
    written = export_run(root, "hico", tmp_path / "out", threshold=0.2)
    (returned,) = imported(
        hico_source(tmp_path / "out/hico_train.json", "train"), tmp_path, tmp_path / "in"
    )
    expected = [Relation(0, 1, "walk"), Relation(0, 2, "hold")]
    assert returned == replace(record, objects=[person, dog, cup], relations=expected)
    assert written.left_out == {
        "objects that the format cannot hold": 1,
        "relations that the format cannot hold": 1,
        "relations that are none of HICO-DET's 600 interactions": 2,
        "relations whose predicate is none of HICO-DET's verbs": 1,
        "relations below the threshold": 1,
    }
    assert written.relations == len(expected)
    assert written.note == "1 relation renamed to HICO-DET's verbs: walking → walk (1)"
    (item,) = json.loads((tmp_path / "out/hico_train.json").read_text("utf-8"))
    assert [interaction["score"] for interaction in item["hoi_annotation"]] == [0.5, 0.5]


@pytest.mark.slow
def test_real_images_of_hico_come_back_as_they_were(oracle, tmp_path):
    path = oracle / "data/hicodet/instances_test2015.json"
    before = imported(hico_source(path, "test"), tmp_path, tmp_path / "in")
    out = exported(tmp_path / "in", "hico", tmp_path / "out")
    assert (
        imported(hico_source(out / "hico_test.json", "test"), tmp_path, tmp_path / "again")
        == before
    )


def test_the_hub_s_form_holds_images(all_records, run, tmp_path, monkeypatch):
    monkeypatch.setattr("sgpipe.export.hugging_face._IMAGES_PER_GROUP", 3)
    out = exported(run, "hf", tmp_path / "out", images=run.parent / "images", embed=True)
    assert imported(dataset_source(str(out), "val")[0], out, tmp_path / "in") == only(
        all_records, "val"
    )
    shards = [
        read_file(tmp_path / "in" / shard.file) for shard in Manifest.load(tmp_path / "in").shards
    ]
    files = [run.parent / "images" / record.file_name for record in only(all_records, "val")]
    assert [image for table in shards for image in embedded_images(table)] == [
        file.read_bytes() for file in files
    ]
    re_exported = exported(tmp_path / "in", "hf", tmp_path / "again")
    assert imported(dataset_source(str(re_exported))[0], re_exported, tmp_path / "third") == only(
        all_records, "val"
    )


def test_origins_of_relations_come_back(tmp_path):
    record = Record(
        "1", "coco", "val", "1.jpg", WIDTH, HEIGHT, [Box("person", 1, (8.0, 4.0, 20.0, 30.0))]
    )
    record.relations = [Relation(0, 0, "on", 0.5, "tagger")]
    out = exported(make_shards(tmp_path / "run", [record]), "hf", tmp_path / "out")
    (returned,) = imported(dataset_source(str(out))[0], tmp_path, tmp_path / "in")
    assert returned.relations == record.relations


@pytest.mark.parametrize("form", ["coco-rel", "sgg-benchmark", "vg", "rlipv2"])
def test_missing_objects_and_ids_that_are_no_numbers_survive(tmp_path, form):
    person = Box("person", 1, (8.0, 4.0, 20.0, 30.0))
    record = Record("a/b c", "vcoco", "val", "a/b c.jpg", WIDTH, HEIGHT, [person, NOTHING])
    record.relations = [Relation(0, 1, "smile")]
    out = exported(make_shards(tmp_path / "run", [record]), form, tmp_path / "out")
    (returned,) = imported(source_of(form, out), tmp_path, tmp_path / "in")
    assert (returned.image_id, returned.file_name) == ("a/b c", "a/b c.jpg")
    assert returned.relations == record.relations
    assert returned.objects[1].is_nothing


def named_record(classes: Sequence[str], predicates: Sequence[str], texts: Sequence[str]) -> Record:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(classes), 3)}
    boxes = [Box(name, numbers[name], (8.0, 4.0, 20.0, 30.0)) for name in classes]
    relations = [
        Relation(0, index % len(boxes), predicate) for index, predicate in enumerate(predicates)
    ]
    captions = list(map(Caption, texts))
    return Record(
        PAIR[0], "coco", "val", PAIR[1], WIDTH, HEIGHT, boxes, captions, relations=relations
    )


def blank_names_left_out(record: Record) -> Record:
    """Scene graphs call things without a name nameless: their readers drop them."""
    record = replace(
        record, relations=[relation for relation in record.relations if relation.predicate.strip()]
    )
    return with_objects(
        record, [index for index, box in enumerate(record.objects) if box.category.strip()]
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@given(
    st.lists(NAMES, min_size=1, max_size=4),
    st.lists(NAMES, max_size=4),
    st.lists(NAMES, max_size=3),
)
@example(list(ODD_NAMES), list(ODD_NAMES), list(ODD_NAMES))
@settings(max_examples=4, deadline=None)
def test_every_name_survives(form, classes, predicates, texts):
    """Also names with outer spaces, without characters, on several lines, and equal but for case or
    normalisation.
    """
    record = named_record(classes, predicates, texts)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        written = export_run(make_shards(root / "run", [record]), form, root / "out")
        (returned,) = imported(source_of(form, written.root), root, root / "in")
    expected = blank_names_left_out(record) if form in ("vg", "rlipv2") else record
    assert (returned.image_id, returned.file_name) == PAIR
    assert values_of(returned.objects, "category") == values_of(expected.objects, "category")
    assert returned.relations == ([] if form == "coco" else expected.relations)
    assert returned.captions == (record.captions if form in ("coco", "hf") else [])
    lost = {
        name: len(getattr(record, name)) - len(getattr(returned, name))
        for name in ("objects", "relations")
    }
    assert {
        kind: written.left_out.get(f"{kind} that the format cannot hold", 0) for kind in lost
    } == lost


def test_attributes_survive_as_visual_genome_has_them(tmp_path):
    texts = [Attribute("red", 1), Attribute("red", 2), Attribute("two", 1), Attribute("shiny")]
    boxes = [Box("car", 3, (1, 1, 9, 9), attributes=texts), Box("dog", 2, (3, 3, 9, 9))]
    root = make_shards(tmp_path / "run", [Record("1", "d", "val", "1.jpg", WIDTH, HEIGHT, boxes)])
    [record] = source_of("vg", exported(root, "vg", tmp_path / "vg")).read(Counter())
    assert values_of(record.objects, "attributes") == [
        [Attribute("red"), Attribute("two"), Attribute("shiny")],
        [],
    ]
    assert (
        "attributes" not in (exported(root, "rlipv2", tmp_path / "rlipv2") / "val.json").read_text()
    )


def test_rows_of_people_have_no_threshold(tmp_path):
    originals = records(20, confidences=False)
    out = export_run(
        make_shards(tmp_path / "run", originals), "hf", tmp_path / "out", threshold=0.9
    ).root
    assert imported(dataset_source(str(out), "val")[0], out, tmp_path / "in") == only(
        originals, "val"
    )
    assert list(iter_records(tmp_path / "in"))


def test_dataset_loaders_give_images_and_rows(tmp_path):
    originals = records(30)
    images = draw_images(tmp_path / "images", originals[:-1])
    run = make_shards(tmp_path / "run", originals, rows=6)
    written = export_run(run, "hf", tmp_path / "out", images=images, embed=True)
    assert written.left_out == {"images that cannot be read": 1}
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "val"}
    for split, loaded_rows in loaded.items():
        wanted = only(originals, split)
        assert values_of(loaded_rows, "image_id") == values_of(wanted, "image_id")
        label = loaded_rows.features["objects"].feature["label"]
        for row, record in zip(loaded_rows, wanted, strict=True):
            assert [label.int2str(item["label"]) for item in row["objects"]] == values_of(
                record.objects, "category"
            )
            assert values_of(row["relations"], "predicate") == values_of(
                record.relations, "predicate"
            )
            if record.image_id != originals[-1].image_id:
                assert row["image"].size == (WIDTH, HEIGHT)
                assert row["image"].getpixel((0, 0))[0] == pytest.approx(
                    int(record.image_id) % 256, abs=2
                )


def test_scores_of_relations_that_are_left_out_are_left_out_too(tmp_path):
    originals = records(12)
    run = make_shards(tmp_path / "run", originals)
    for shard in Manifest.load(run).shards:
        table = pq.read_table(run / shard.file)
        scores = [
            [{"score": item["confidence"]} for item in row]
            for row in table["relations"].to_pylist()
        ]
        column = pa.array(scores, pa.list_(SCORES["clip_score"]))
        pq.write_table(table.append_column("clip_score", column), run / shard.file)
    out = export_run(run, "hf", tmp_path / "out", threshold=0.5).root
    rows = [row for path in (out / "data").iterdir() for row in pq.read_table(path).to_pylist()]
    assert any(values_of(rows, "relations"))
    for row in rows:
        confidences = values_of(row["relations"], "confidence")
        assert values_of(row["clip_score"], "score") == confidences
        assert all(confidence >= 0.5 for confidence in confidences)


def test_what_others_made_of_it_is_checked(tmp_path):
    out = export_run(make_shards(tmp_path / "run", records(20)), "hf", tmp_path / "out").root
    for split, message in (
        (None, "several splits: pass --split train or val"),
        ("test", "no split 'test'"),
    ):
        with pytest.raises(UserError, match=message):
            dataset_source(str(out), split)
    path = out / "data/val-00000-of-00001.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("width")
    pq.write_table(
        table.set_column(column, table.field("width"), pa.array([5] * len(table), pa.int32())), path
    )
    with pytest.raises(
        UserError, match=r"val-00000-of-00001.parquet: bbox is not inside its image"
    ):
        list(dataset_source(str(out), "val")[0].read({}))


def test_webdataset_has_each_image_with_its_row(tmp_path):
    originals = records(25)
    images = draw_images(tmp_path / "images", originals)
    (images / originals[0].file_name).unlink()
    drawn = Image.new("RGB", (WIDTH, HEIGHT))
    drawn.save(images / originals[1].file_name, "MPO", save_all=True, append_images=[drawn.copy()])
    run = make_shards(tmp_path / "run", originals, rows=6)
    written = export_run(run, "webdataset", tmp_path / "out", images=images, threshold=0.5)
    assert written.left_out["images that cannot be read"] == 1
    rows_of_images = []
    for path in sorted(written.root.glob("*.tar")):
        with tarfile.open(path) as tar:
            contents = [(member.name, tar.extractfile(member).read()) for member in tar]
        for key, (image, row) in enumerate(zip(contents[::2], contents[1::2], strict=True)):
            assert (image[0], row[0]) == (f"{key:06d}.jpeg", f"{key:06d}.json")
            rows_of_images.append(json.loads(row[1]))
            assert image[1] == (images / rows_of_images[-1]["file_name"]).read_bytes()
    wanted = sorted(originals[1:], key=lambda record: record.split)
    for row, record in zip(rows_of_images, wanted, strict=True):
        assert (row["split"], row["image_id"]) == (record.split, record.image_id)
        assert [tuple(item["bbox"]) for item in row["objects"]] == values_of(record.objects, "bbox")
        confident = [item.confidence for item in record.relations if item.confidence >= 0.5]
        assert values_of(row["relations"], "confidence") == confident


def test_coco_s_own_tools_load_it(tmp_path):
    originals = records(30)
    out = export_run(
        make_shards(tmp_path / "run", originals, rows=4), "coco", tmp_path / "out"
    ).root
    loaded = COCO(out / "instances_val.json")
    wanted = only(originals, "val")
    for record in wanted:
        annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=int(record.image_id)))
        assert [tuple(item["bbox"]) for item in annotations] == values_of(record.objects, "bbox")
    dogs = sum(box.category == "dog" for record in wanted for box in record.objects)
    assert len(loaded.getAnnIds(catIds=loaded.getCatIds(catNms=["dog"]))) == dogs > 0
    assert (
        len(COCO(out / "captions_val.json").anns)
        == sum(len(record.captions) for record in wanted)
        > 0
    )


def test_the_missing_object_of_a_relation_is_no_class(tmp_path):
    originals = [
        Record("7", "vcoco", "val", "7.jpg", 10, 10, [Box("dog", 3, (1.0, 2.0, 3.0, 4.0)), NOTHING])
    ]
    written = export_run(make_shards(tmp_path / "run", originals), "coco", tmp_path / "out")
    assert written.left_out == {"objects that the format cannot hold": 1}
    content = json.loads((tmp_path / "out/instances_val.json").read_text())
    assert content["categories"] == [{"id": 3, "name": "dog"}]
    assert values_of(content["annotations"], "category_id") == [3]
    assert "| objects | 2 | 1 |" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("labelled", [False, True], ids=["imported", "read to be labelled"])
def test_segmentations_come_back_as_the_file_has_them(tmp_path, labelled):
    """What is neither polygons nor run lengths of the image is left out and counted; its box
    stays.
    """
    masks = [*MASKS, *BAD_MASKS]
    boxes = [
        {"id": n, "image_id": 1 + n % 2, "category_id": 18, "bbox": [1, 1, 2 + n, 3]}
        for n in range(len(masks))
    ]
    written = [box | {"segmentation": mask} for box, mask in zip(boxes, masks, strict=True)]
    images = [
        {"id": number, "file_name": f"{number}.jpg", "width": 20, "height": 10} for number in (2, 1)
    ]
    content = {"annotations": written, "images": images, "categories": [{"id": 18, "name": "dog"}]}
    instances = tmp_path / "instances_val.json"
    instances.write_text(json.dumps(content))
    if labelled:
        detections, _ = read_coco(instances, None, dataset="coco", split="val")
        originals = [record for table in detections.tables() for record in from_table(table)]
        problems = detections.problems
        make_shards(tmp_path / "run", originals)
    else:
        problems = import_annotations(
            coco_source(instances, "val"), tmp_path, tmp_path / "run", QUIET
        ).problems
    assert problems["segmentations"] == len(BAD_MASKS)
    export_run(tmp_path / "run", "coco", tmp_path / "out")
    annotations = json.loads((tmp_path / "out/instances_val.json").read_text())["annotations"]
    expected = {
        (1 + n % 2, 2 + n): mask or [] for n, mask in enumerate([*MASKS, *([] for _ in BAD_MASKS)])
    }
    assert {
        (item["image_id"], item["bbox"][2]): item["segmentation"] for item in annotations
    } == expected


def test_numbers_of_classes_are_kept_where_they_mean_something():
    coco = {"person": 1, "dog": 18, "cup": COCO_IDS["cup"]}
    assert number_categories([(18, "dog"), (1, "person")], ["person", "cup", "dog"]) == coco
    assert number_categories([(3, "a"), (1, "b")], None) == {"b": 1, "a": 3}
    assert number_categories([(0, "b"), (0, "a")], None) == {"a": 1, "b": 2}
    assert number_categories([(0, "b"), (2, "a")], None, positive=True) == {"a": 1, "b": 2}
    assert number_categories([(1, "a"), (2, "a")], None) == {"a": 1}
    assert number_categories([(5, "b")], ["a", "b"]) == {"a": 1, "b": 2}


def write(root: Path, form: str, out: Path) -> Exported:
    images = root.parent / "images" if form in ("webdataset", "fiftyone") else None
    url = "https://example.org/" if form in ("label-studio", "instructions") else None
    return export_run(root, form, out, images=images, images_url=url)


@pytest.mark.slow
@pytest.mark.parametrize("form", BUILT_IN["format"])
def test_nothing_is_overwritten_and_equal_runs_give_equal_files(run, tmp_path, form):
    out = tmp_path / "out"
    out.mkdir()
    files = write(run, form, out).files  # an empty folder will do
    assert files
    assert write(run, form, tmp_path / "again").files == files
    before = [(out / file).read_bytes() for file in files]
    assert [(tmp_path / "again" / file).read_bytes() for file in files] == before
    with pytest.raises(UserError, match="exists and is not overwritten"):
        write(run, form, out)
    assert [(out / file).read_bytes() for file in files] == before
    with pytest.raises(UserError, match="exists and is not overwritten"):
        write(run, form, run)
    with pytest.raises(UserError, match="belongs to the run"):
        write(run, form, run / "data/new")


@pytest.mark.parametrize("form", BUILT_IN["format"])
def test_a_full_disk_is_named_by_its_file_and_leaves_nothing_behind(
    run, tmp_path, monkeypatch, form
):
    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    url = (
        ["--images-url", "https://example.org/"] if form in ("label-studio", "instructions") else []
    )
    images = ["--images", run.parent / "images"] if form == "webdataset" else []
    command = ["export", run, "--to", form, "--out", tmp_path / "out", *url, *images]
    result = CliRunner().invoke(app, [*map(str, command)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: No space left on device: {tmp_path}/.sgpipe-")
    assert len(result.stderr.splitlines()) == 1
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
