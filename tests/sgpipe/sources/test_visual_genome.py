import json
from collections import Counter

import pytest

from sgpipe.errors import UserError
from sgpipe.records import Relation
from sgpipe.sources.visual_genome import VisualGenome

GRAPH = {
    "image_id": 7,
    "objects": [
        {"object_id": 1, "x": 0, "y": 0, "w": 9, "h": 9, "names": ["Man"]},
        {"object_id": 2, "x": 5, "y": 5, "w": 9, "h": 9, "names": ["men"]},
        {"object_id": 3, "x": 5, "y": 5, "w": 9, "h": 9, "names": ["man"]},
    ],
    "relationships": [
        {"predicate": "ON", "subject_id": 1, "object_id": 2},
        {"predicate": "on", "subject_id": 1, "object_id": 2},
        {"predicate": "on", "subject_id": 1, "object_id": 3},
        {"predicate": "", "subject_id": 1, "object_id": 3},
    ],
}


@pytest.fixture
def genome(tmp_path):
    (tmp_path / "scene_graphs.json").write_text(json.dumps([GRAPH]))
    (tmp_path / "images").mkdir()

    def make(**options) -> VisualGenome:
        return VisualGenome(tmp_path / "scene_graphs.json", tmp_path / "images", "train", **options)

    return make


def read(genome: VisualGenome):
    problems: Counter[str] = Counter()
    (record,) = genome.source().read(problems)
    return record, +problems


def test_preprocessing_is_the_default_and_can_be_left_out(genome):
    record, problems = read(genome())
    assert record.relations == [Relation(0, 1, "on"), Relation(0, 2, "on")]
    assert problems == {"repeated_relations": 1, "nameless": 1}
    record, problems = read(genome(preprocess=False))
    assert [relation.predicate for relation in record.relations] == ["ON", "on", "on"]
    assert problems == {"nameless": 1}
    assert record.objects[0].category == "Man"


def test_aliases_are_part_of_what_a_source_is_made_of(genome, tmp_path):
    aliases = tmp_path / "alias.txt"
    aliases.write_text("man,men\n")
    record, problems = read(genome(object_aliases=aliases))
    assert record.relations == [Relation(0, 1, "on")]
    assert problems["redundant_relations"] == 1
    assert genome(object_aliases=aliases).source().files["object_aliases"] == aliases
    assert genome().source().options != genome(preprocess=False).source().options
    with pytest.raises(UserError, match="omit --no-preprocess or the alias files"):
        genome(object_aliases=aliases, preprocess=False).source()


def test_sizes_come_from_image_data(genome, tmp_path):
    sizes = tmp_path / "image_data.json"
    sizes.write_text(json.dumps([{"image_id": 8, "width": 1, "height": 1}, {"image_id": 7, "width": 80, "height": 60}]))
    record, _ = read(genome(image_data=sizes))
    assert (record.width, record.height) == (80, 60)
    assert read(genome())[0].width == 0
    with pytest.raises(UserError, match=r"scene_graphs\.json is scene graphs .*not Visual Genome's image_data"):
        genome(image_data=tmp_path / "scene_graphs.json").source()


@pytest.mark.parametrize("place", ["7.jpg", "VG_100K/7.jpg", "VG_100K_2/7.jpg"])
def test_images_are_found_where_the_downloads_unpack_to(genome, place):
    image = genome().images / place
    image.parent.mkdir(exist_ok=True)
    image.touch()
    assert read(genome())[0].file_name == place


def test_images_that_are_not_there_keep_their_plain_name(genome):
    assert read(genome())[0].file_name == "7.jpg"


def test_real_records_lose_only_what_is_counted(oracle, tmp_path):
    """As many relations stay as the published preprocessing leaves, run on these records with these aliases."""
    data = oracle / "data/vg"
    (tmp_path / "images").mkdir()
    for suffix, count, left in (("", 41, 35), ("2", 23, 22), ("3", 50, 44)):
        genome = VisualGenome(data / f"vadbeg_relationships{suffix}.json", tmp_path, "train", preprocess=False)
        raw, problems = read(genome)
        assert (len(raw.relations), problems) == (count, {})
        aliases = (data / "danfeix_object_alias.txt", data / "danfeix_predicate_alias.txt")
        record, problems = read(VisualGenome(genome.annotations, tmp_path, "train", None, *aliases))
        assert len(record.relations) == left == count - problems.total()
        facts = [(relation.subject, relation.object, relation.predicate) for relation in record.relations]
        assert len(set(facts)) == len(facts)
        assert problems["repeated_relations"] > 0
