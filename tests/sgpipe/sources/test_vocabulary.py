"""Class names and synonym tables."""

import re
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.sources.vocabulary import (
    category_names,
    load_predicate_synonyms,
    load_synonyms,
    official_relation_names,
    packaged_synonyms,
    relation_names,
)
from sgpipe.stages.pair import split_words


def test_coco_ids_have_the_gaps_of_the_annotation_files() -> None:
    names = category_names("coco")
    assert len(names) == 80
    assert list(names) == sorted(names)
    assert set(range(1, 91)) - set(names) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert (names[1], names[13], names[67], names[90]) == ("person", "stop sign", "dining table", "toothbrush")


def test_objects365_names_are_corrected_and_in_lower_case() -> None:
    names = category_names("objects365")
    assert list(names) == list(range(1, 366))
    assert (names[38], names[308]) == ("monitor/tv", "camel")
    assert len(set(names.values())) == 365
    assert all(name == name.lower().strip() for name in names.values())


@pytest.mark.parametrize("dataset", ["coco", "objects365"])
def test_packaged_tables_cover_every_class_without_duplicate_phrases(dataset: str) -> None:
    table = packaged_synonyms(dataset)
    assert list(table) == list(category_names(dataset).values())
    for name, phrases in table.items():
        assert phrases[0] == name
        words = [(phrase[0] == "!", *split_words(phrase)) for phrase in phrases]
        assert all(len(phrase) > 1 for phrase in words), f"an empty phrase under {name}"
        assert len(phrases) == len(set(phrases)), f"a phrase is listed twice under {name}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"cup": ["mug"], "cup": ["glass"]}', "duplicate key cup"),
        ('{"cup": ["mug"', "neither YAML nor JSON"),
        ("[]", "expected {class name"),
        ("{}", "expected {class name"),
        ('{"cup": "mug"}', "key 'cup': expected"),
        ('{"cup": []}', "key 'cup': expected"),
        ('{"cup": ["mug", 3]}', "key 'cup': expected"),
        ('{"cup": ["!"]}', "key 'cup': expected"),
        ('{" ": ["mug"]}', "key ' ': expected"),
        ("1: [upon]", "key 1: expected"),
        ("near: [1]", "key 'near': expected"),
    ],
)
def test_an_invalid_table_is_refused_with_one_line(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        load_synonyms(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_json_and_yaml_are_read_and_a_predicate_may_have_no_other_text(tmp_path: Path) -> None:
    path = tmp_path / "table"
    for content in ('{\n\t"riding": ["\\ud83d\\ude00"],\n\t"on": []\n}', "riding: [😀]\non: []"):
        path.write_text(content, encoding="utf-8")
        assert load_predicate_synonyms(path) == {"riding": ["😀"], "on": []}


def test_relation_names_have_the_official_ids():
    hico, vcoco, open_images = (relation_names(dataset) for dataset in ("hico", "vcoco", "open_images"))
    assert (list(hico), list(vcoco), list(open_images)) == (list(range(1, 118)), list(range(29)), list(range(30)))
    assert (hico[58], vcoco[2], open_images[0]) == ("no interaction", "sit on/at", "at")
    assert relation_names("coco") == {}


def test_relations_by_official_name():
    assert official_relation_names("vcoco")["sit_instr"] == "sit on/at"
    assert official_relation_names("hico")["no_interaction"] == "no interaction"
    assert list(official_relation_names("hico").values()) == list(relation_names("hico").values())
