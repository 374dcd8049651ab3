from pathlib import Path

import pytest

from sgpipe.evaluation.label_quality.arrays import ClassTable, Vocabulary
from sgpipe.sources.vocabulary import load_predicate_synonyms
from sgpipe.stages.pair import normalise_predicate
from sgpipe.utils.lemmas import predicate_lemma


def test_predicate_lemmas() -> None:
    pairs = {
        "sits  on": "sit on",
        "is Sitting on": "sit on",
        "are": "be",
        "in front of": "in front of",
        "next to": "next to",
        "": "",
        "is": "be",
    }
    assert {text: predicate_lemma(text) for text in pairs} == pairs


@pytest.mark.parametrize("name", ["synonyms.yaml", "synonyms.json"])
def test_synonyms_come_as_yaml_or_json(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"next to": ["beside", "by"]}' if path.suffix == ".json" else "next to: [beside, by]\n")
    assert load_predicate_synonyms(path) == {"next to": ["beside", "by"]}
    path.write_text('{"on": ["off"]}' if path.suffix == ".json" else "on: [off]\n")
    assert load_predicate_synonyms(path) == {"on": ["off"]}


def test_a_name_that_is_a_class_means_only_itself() -> None:
    words = Vocabulary(normalise_predicate)
    table = ClassTable(words, ["Person", "car", "truck"])
    meanings = {name: {words.names[number] for number in table.classes(words.number(name))} for name in ("car", "van")}
    assert meanings == {"car": {"car"}, "van": {"van", "car", "truck"}}
    other = ClassTable(words, ["person", "hovercraft"])
    assert [words.names[number] for number in other.classes(words.number("man"))] == ["man"]
