"""What only one of two parsers states, and the words in which they differ."""

import pytest

from experiments.parser import compare
from experiments.parser.compare import Differences, Statement, draw_pairs, draw_wordings


def statement(text: str) -> Statement:
    subject, predicate, thing = text.split(" | ")
    return Statement(subject, predicate, thing, subject, thing)


def test_pairs_of_one_parser_and_other_predicates_are_listed(monkeypatch: pytest.MonkeyPatch):
    stated = {
        "rules": ["cat | sleeping on | bed", "dog | on | bed"],
        "learned": ["cat | on | bed", "bed | with | cat"],
    }

    def parse(captions, parser):
        yield {(one.subject_class, one.object_class): one for one in map(statement, stated[parser])}

    monkeypatch.setattr(compare, "parse", parse)
    differences = compare.compare(["a caption"])
    assert differences.pairs == {"rules": 2, "learned": 2, "both": 1}
    assert differences.only == {
        "rules": [("a caption", statement("dog | on | bed"))],
        "learned": [("a caption", statement("bed | with | cat"))],
    }
    assert differences.worded == [
        ("a caption", statement("cat | sleeping on | bed"), statement("cat | on | bed"))
    ]


def test_only_things_of_the_classes_of_coco_count():
    (parsed,) = compare.parse(["A cat sleeps on a bed next to a wall."], "rules")
    assert {pair: item.words for pair, item in parsed.items()} == {
        ("cat", "bed"): ("cat", "sleeps on", "bed")
    }


def test_statements_to_judge_are_drawn_at_random_and_the_same_each_time():
    on_bed = statement("cat | on | bed")
    captions = [str(number) for number in range(100)]
    alone = [(caption, on_bed) for caption in captions]
    worded = [(caption, on_bed, on_bed) for caption in captions]
    differences = Differences(only={"rules": alone, "learned": alone}, worded=worded)
    pairs = draw_pairs(differences)
    assert pairs == draw_pairs(differences)
    parsers = [line["parser"] for line in pairs]
    assert parsers != sorted(parsers)
    assert parsers.count("rules") == parsers.count("learned") == 60
    wordings = draw_wordings(differences)
    assert {tuple(line)[1:] for line in wordings} == {("rules", "learned"), ("learned", "rules")}
