"""What was exported and imported again is what it was, as far as the form can hold it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sgpipe.export.run import export_run
from sgpipe.records import NO_OBJECT, Attribute, Box, Caption, Record, Relation
from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.coco import coco_relations_source, coco_source
from sgpipe.sources.hoi import hico_source
from sgpipe.sources.hugging_face import dataset_source
from sgpipe.sources.scene_graphs import pseudo_label_source, visual_genome_source
from sgpipe.storage.shards import iter_records
from tests.sgpipe.export.runs import COCO_IDS, HEIGHT, WIDTH, draw_images, imported, only, records
from tests.sgpipe.stats.runs import make_shards

NOTHING = Box(NO_OBJECT, -1, (0.0, 0.0, 0.0, 0.0))
IMAGES = 40


@pytest.fixture(scope="module")
def made() -> list[Record]:
    return records(IMAGES)


@pytest.fixture(scope="module")
def run(made, tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("labels") / "run", made, rows=7)


def exported(root: Path, form: str, out: Path, **options: object) -> Path:
    return export_run(root, form, out, **{"threshold": 0.0, **options}).root


def source_of(form: str, out: Path, split: str = "val") -> AnnotationSource:
    """What was exported, as `sgpipe import` reads it."""
    if form == "coco":
        captions = out / f"captions_{split}.json"
        return coco_source(out / f"instances_{split}.json", split, captions if captions.exists() else None)
    if form == "coco-rel":
        return coco_relations_source(out / f"{split}.json", out / "rel.json", split)
    if form == "sgg-benchmark":
        return coco_relations_source(out / split / "_annotations.coco.json", None, split)
    if form == "vg":
        return visual_genome_source(out / f"scene_graphs_{split}.json", out, split, preprocess=False)
    if form == "rlipv2":
        return pseudo_label_source(out / f"{split}.json", out, split)
    return dataset_source(str(out), split)[0]


def with_objects(record: Record, kept: Sequence[int]) -> Record:
    """With only these objects and their relations."""
    relations = [
        replace(item, subject=kept.index(item.subject), object=kept.index(item.object))
        for item in record.relations
        if {item.subject, item.object} <= {*kept}
    ]
    return replace(record, objects=[record.objects[index] for index in kept], relations=relations)


def held(form: str, made: list[Record], split: str) -> list[Record]:
    """What a form can hold of records."""
    if form == "hf":
        return only(made, split)
    if form == "coco":
        return only(made, split, relations=[], triplets=[], pairs=[])
    dataset = {"vg": "visual_genome", "rlipv2": "coco2017"}.get(form, "coco_rel")
    kept = only(made, split, dataset=dataset, captions=[], triplets=[], pairs=[])
    if form == "coco-rel":
        return [replace(r, relations=[replace(item, confidence=None) for item in r.relations]) for r in kept]
    if form == "sgg-benchmark":
        return kept
    kept = [with_objects(r, [index for index, box in enumerate(r.objects) if not box.iscrowd]) for r in kept]
    return [replace(r, objects=[replace(box, category_id=0) for box in r.objects]) for r in kept]


FORMS = ("coco", "coco-rel", "sgg-benchmark", "vg", "rlipv2", "hf")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_form_can_hold_comes_back(made, run, tmp_path, form, split):
    out = exported(run, form, tmp_path / "out")
    expected = held(form, made, split)
    assert any(record.objects for record in expected)
    assert form == "coco" or any(record.relations for record in expected)
    assert imported(source_of(form, out, split), tmp_path, tmp_path / "in") == expected


def test_rlipv2_finds_the_images_of_objects365(made, tmp_path):
    renamed = [
        replace(record, dataset="objects365", split="train", file_name=f"patch1/{record.file_name}") for record in made
    ]
    out = exported(make_shards(tmp_path / "run", renamed), "rlipv2", tmp_path / "out")
    source = pseudo_label_source(out / "train.json", tmp_path, "train", out / "image_id_to_filepath.json")
    found = [(record.file_name, record.dataset) for record in imported(source, tmp_path, tmp_path / "in")]
    assert found == [(record.file_name, "o365") for record in renamed]


def test_hico_holds_what_persons_do_in_its_verbs(tmp_path):
    person, dog, cup = (Box(name, COCO_IDS[name], (8.0, 4.0, 20.0, 30.0)) for name in ("person", "dog", "cup"))
    unknown = Box("wizard", 7, (1.0, 1.0, 5.0, 5.0))
    relations = [
        Relation(1, 2, "walking", 0.5),  # HICO-DET calls it "walk"
        Relation(1, 3, "hold", 0.5),
        Relation(1, 3, "fly", 0.5),  # nobody flies a cup
        Relation(2, 1, "lick", 0.5),  # only persons act
        Relation(0, 1, "ride", 0.5),
        Relation(1, 2, "hold", 0.1),
    ]
    name = "a/COCO_val2014_000000000001.jpg"  # which V-COCO's images are called, too
    record = Record("own id", "hico", "train", name, WIDTH, HEIGHT, [unknown, person, dog, cup])
    root = make_shards(tmp_path / "run", [replace(record, relations=relations)])
    written = export_run(root, "hico", tmp_path / "out", threshold=0.2)
    (found,) = imported(hico_source(tmp_path / "out/hico_train.json", "train"), tmp_path, tmp_path / "in")
    kept = [Relation(0, 1, "walk"), Relation(0, 2, "hold")]
    assert found == replace(record, objects=[person, dog, cup], relations=kept)
    assert written.left_out == {
        "objects that the format cannot hold": 1,
        "relations that the format cannot hold": 3,
        "relations below the threshold": 1,
    }


@pytest.mark.slow
def test_real_images_of_hico_come_back_as_they_were(oracle, tmp_path):
    path = oracle / "data/hicodet/instances_test2015.json"
    before = imported(hico_source(path, "test"), tmp_path, tmp_path / "in")
    out = exported(tmp_path / "in", "hico", tmp_path / "out")
    assert imported(hico_source(out / "hico_test.json", "test"), tmp_path, tmp_path / "again") == before


def test_the_hub_s_form_holds_images(made, run, tmp_path):
    images = draw_images(tmp_path / "images", made)
    out = exported(run, "hf", tmp_path / "out", images=images, embed=True)
    assert imported(dataset_source(str(out), "val")[0], out, tmp_path / "in") == only(made, "val")
    again = exported(tmp_path / "in", "hf", tmp_path / "again")
    files = imported(dataset_source(str(again))[0], again, tmp_path / "third")
    assert files == only(made, "val")


@pytest.mark.parametrize("form", ["coco-rel", "sgg-benchmark", "vg", "rlipv2"])
def test_missing_objects_and_ids_that_are_no_numbers_survive(tmp_path, form):
    person = Box("person", 1, (8.0, 4.0, 20.0, 30.0))
    record = Record("a/b c", "vcoco", "val", "a/b c.jpg", WIDTH, HEIGHT, [person, NOTHING])
    record.relations = [Relation(0, 1, "smile")]
    out = exported(make_shards(tmp_path / "run", [record]), form, tmp_path / "out")
    (found,) = imported(source_of(form, out), tmp_path, tmp_path / "in")
    assert (found.image_id, found.file_name) == ("a/b c", "a/b c.jpg")
    assert found.relations == record.relations
    assert found.objects[1].is_nothing


ODD_NAMES = (
    *("__background__", " dog", "dog ", "dog", "Dog", "", " "),
    *("a\nb", "é", "e\u0301", "\u202eon", "\x00", '"`', "\\"),
)
NAMES = st.one_of(st.sampled_from(ODD_NAMES), st.text(st.characters(exclude_categories=["Cs"]), max_size=5))
PAIR = ("  7", " a/b .jpg ")  # an image id and a file name with outer spaces


def named_record(classes: Sequence[str], predicates: Sequence[str], texts: Sequence[str]) -> Record:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(classes), 3)}
    boxes = [Box(name, numbers[name], (8.0, 4.0, 20.0, 30.0)) for name in classes]
    relations = [Relation(0, index % len(boxes), predicate) for index, predicate in enumerate(predicates)]
    captions = [Caption(text) for text in texts]
    return Record(PAIR[0], "coco", "val", PAIR[1], WIDTH, HEIGHT, boxes, captions, relations=relations)


def blank_names_left_out(record: Record) -> Record:
    """Scene graphs call things without a name nameless: their readers drop them."""
    record = replace(record, relations=[each for each in record.relations if each.predicate.strip()])
    return with_objects(record, [index for index, box in enumerate(record.objects) if box.category.strip()])


@pytest.mark.parametrize("form", FORMS)
@given(st.lists(NAMES, min_size=1, max_size=4), st.lists(NAMES, max_size=4), st.lists(NAMES, max_size=3))
@example(list(ODD_NAMES), list(ODD_NAMES), list(ODD_NAMES))
@settings(max_examples=8, deadline=None)
def test_every_name_survives(form, classes, predicates, texts):
    """Also names with outer spaces, without characters, on several lines, and equal but for case or normalisation."""
    record = named_record(classes, predicates, texts)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        written = export_run(make_shards(root / "run", [record]), form, root / "out")
        (found,) = imported(source_of(form, written.root), root, root / "in")
    expected = blank_names_left_out(record) if form in ("vg", "rlipv2") else record
    assert (found.image_id, found.file_name) == PAIR
    assert [box.category for box in found.objects] == [box.category for box in expected.objects]
    assert found.relations == ([] if form == "coco" else expected.relations)
    assert found.captions == (record.captions if form in ("coco", "hf") else [])
    lost = {name: len(getattr(record, name)) - len(getattr(found, name)) for name in ("objects", "relations")}
    assert {kind: written.left_out.get(f"{kind} that the format cannot hold", 0) for kind in lost} == lost


def test_attributes_survive_as_visual_genome_has_them(tmp_path):
    texts = [Attribute("red", 1), Attribute("red", 2), Attribute("two", 1), Attribute("shiny")]
    boxes = [Box("car", 3, (1, 1, 9, 9), attributes=texts), Box("dog", 2, (3, 3, 9, 9))]
    root = make_shards(tmp_path / "run", [Record("1", "d", "val", "1.jpg", WIDTH, HEIGHT, boxes)])
    [record] = source_of("vg", exported(root, "vg", tmp_path / "vg")).read(Counter())
    assert [box.attributes for box in record.objects] == [[Attribute("red"), Attribute("two"), Attribute("shiny")], []]
    assert "attributes" not in (exported(root, "rlipv2", tmp_path / "rlipv2") / "val.json").read_text()


def test_rows_of_people_have_no_threshold(tmp_path):
    made = records(20, confidences=False)
    out = export_run(make_shards(tmp_path / "run", made), "hf", tmp_path / "out", threshold=0.9).root
    assert imported(dataset_source(str(out), "val")[0], out, tmp_path / "in") == only(made, "val")
    assert list(iter_records(tmp_path / "in"))
