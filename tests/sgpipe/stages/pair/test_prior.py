"""Priors from Visual Genome."""

import json
from pathlib import Path
from typing import Any

import pytest

from sgpipe.errors import UserError
from sgpipe.stages.pair import HeadMatcher, SubstringMatcher, collect_prior, read_prior

TABLE = {"person": ["man", "woman"], "horse": ["pony"], "dog": []}


def graph(*relations: tuple[str, str, str]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for subject, _, object_ in relations for name in (subject, object_)))
    return {
        "image_id": 1,
        "objects": [{"object_id": index, "names": [name]} for index, name in enumerate(names)],
        "relationships": [
            {"predicate": text, "subject_id": names.index(s), "object_id": names.index(o)} for s, text, o in relations
        ],
    }


def test_predicates_are_distinct_and_in_order_of_appearance() -> None:
    graphs = [
        graph(("young man", "Riding", "a pony"), ("woman", "ON ", "horse"), ("man", "riding", "horse")),
        graph(("man", "near", "horse"), ("horse", "near", "fence"), ("dog", "", "man")),
    ]
    assert collect_prior(graphs, HeadMatcher(TABLE)) == {("person", "horse"): ["riding", "on", "near"]}


def test_verbatim_prior_with_substring_matching_as_upstream() -> None:
    matcher = SubstringMatcher({"man": ["man"], "hair": ["hair"], "chair": ["chair"]})
    found = collect_prior([graph(("man", "ON", "chair"))], matcher, verbatim=True)
    assert found == {("man", "hair"): ["ON"], ("man", "chair"): ["ON"]}


@pytest.mark.parametrize("named", [{"name": "man"}, {"names": ["man", "guy"]}, {"names": "man"}])
def test_all_layouts_of_visual_genome(tmp_path: Path, named: dict[str, Any]) -> None:
    inline = {"predicate": "on", "subject": named, "object": {"names": ["horse"]}}
    path = tmp_path / "relationships.json"
    path.write_text(json.dumps([{"image_id": 1, "relationships": [inline]}, {"image_id": 2, "relationships": []}]))
    assert read_prior(path, HeadMatcher(TABLE)) == {("person", "horse"): ["on"]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"image_id": 1, "relationships": [', "cut short"),
        ('{"images": [{"id": 1}]}', "expected images with relationships"),
        ("[3]", "expected images with relationships"),
        ('[{"image_id": 7, "relationships": [{"subject_id": 1}]}]', "image 7 has a malformed relationship"),
        ('[{"image_id": 7, "relationships": [{"predicate": "on", "subject": {"name": 3}}]}]', "image 7"),
        ('[{"image_id": 7, "relationships": []}]', "no relationship is between"),
        ("[]", "no relationship is between"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "prior.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_prior(path, HeadMatcher(TABLE))
    assert expected in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_real_visual_genome_records(oracle: Path, tmp_path: Path) -> None:
    images = [json.loads(path.read_text()) for path in sorted((oracle / "data" / "vg").glob("vadbeg_rel*.json"))]
    path = tmp_path / "relationships.json"
    path.write_text(json.dumps(images))
    found = read_prior(path, HeadMatcher({"car": [], "person": ["man"], "sidewalk": [], "shoe": []}))
    assert "wears" in found["person", "shoe"]
    assert all(text == text.lower() for texts in found.values() for text in texts)
