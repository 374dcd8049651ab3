"""What only one of the parsers states of COCO's captions: `python -m experiments.parser.compare
CAPTIONS [--judge ROWS]`.

A statement is a triplet whose things are of COCO's classes: nothing else becomes a relation of
COCO's boxes. Two parsers state the same pair if both relate the same two classes of a caption.
`--judge` writes statements drawn at random, in random order; they stand with verdicts in
benchmarks/results/parsers_by_hand.jsonl.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias

import typer

from experiments.command import run_command
from experiments.miniworld.cards import markdown_table
from sgpipe.recipe import PairConfig, ParseConfig
from sgpipe.records import Box, Caption, Record
from sgpipe.sources.vocabulary import packaged_synonyms
from sgpipe.stages.pair import PairStage
from sgpipe.stages.parse.stage import CaptionParser

PARSERS = ("rules", "learned")
JUDGED = 60  # statements of each kind
SEED_OF_PAIRS = 20261203
SEED_OF_WORDINGS = 7


class Statement(NamedTuple):
    """A triplet as a parser words it, and the classes of its two things."""

    subject: str
    predicate: str
    object: str
    subject_class: str
    object_class: str

    @property
    def words(self) -> tuple[str, str, str]:
        return self[:3]


Statements: TypeAlias = Mapping[tuple[str, str], Statement]  # of a caption, by its two classes
Line: TypeAlias = dict[str, object]


@dataclass
class Differences:
    """What the parsers state of all captions.

    Attributes:
        pairs: how many each parser states, and both
        only: by parser, the pairs that the other does not state
        worded: statements of rules and learned on pairs of both, whose predicates differ
    """

    pairs: Counter[str] = field(default_factory=Counter)
    only: dict[str, list[tuple[str, Statement]]] = field(default_factory=dict)
    worded: list[tuple[str, Statement, Statement]] = field(default_factory=list)


def read_captions(path: Path) -> list[str]:
    """Return the distinct captions of a COCO captions file."""
    rows = json.loads(path.read_text(encoding="utf-8"))["annotations"]
    return list(dict.fromkeys(row["caption"].strip() for row in rows))


def parse(captions: Sequence[str], parser: str) -> Iterator[Statements]:
    """Yield what a parser states of each caption between things of COCO's classes."""
    classes = list(packaged_synonyms("coco"))
    boxes = [Box(name, 1, (0, 0, 1, 1)) for name in classes]
    config = ParseConfig.model_validate({"parser": parser})
    pair = PairStage(PairConfig(), "coco", classes)
    pair.setup()
    for caption, triplets in zip(captions, CaptionParser(config).parse(captions), strict=True):
        record = Record("1", "coco", "val", "1.jpg", 9, 9, boxes, [Caption(caption)])
        record.triplets = triplets
        pair([record])
        statements = (
            Statement(
                triplet.subject,
                triplet.predicate,
                triplet.object,
                triplet.subject_category or "",
                triplet.object_category or "",
            )
            for triplet in record.triplets
        )
        yield {
            (statement.subject_class, statement.object_class): statement
            for statement in statements
            if statement.subject_class and statement.object_class
        }


def compare(captions: Sequence[str]) -> Differences:
    """Parse captions with both parsers, and list where they differ."""
    differences = Differences(only={parser: [] for parser in PARSERS})
    parsed = zip(captions, *(parse(captions, parser) for parser in PARSERS), strict=True)
    for caption, rules, learned in parsed:
        both = rules.keys() & learned.keys()
        differences.pairs.update({"rules": len(rules), "learned": len(learned), "both": len(both)})
        for parser, statements in zip(PARSERS, (rules, learned), strict=True):
            alone = statements.keys() - both
            differences.only[parser] += [(caption, statements[classes]) for classes in alone]
        for classes in both:
            if rules[classes].predicate != learned[classes].predicate:
                differences.worded.append((caption, rules[classes], learned[classes]))
    return differences


def draw_pairs(differences: Differences) -> list[Line]:
    """Draw pairs that only one parser states, in random order."""
    chance = random.Random(SEED_OF_PAIRS)
    lines: list[Line] = []
    for parser in PARSERS:
        for caption, statement in chance.sample(sorted(differences.only[parser]), JUDGED):
            lines.append({"caption": caption, "parser": parser, "triplet": statement.words})
    chance.shuffle(lines)
    return lines


def draw_wordings(differences: Differences) -> list[Line]:
    """Draw pairs that both state with other predicates, the two parsers in random order."""
    chance = random.Random(SEED_OF_WORDINGS)
    lines: list[Line] = []
    for caption, rules, learned in chance.sample(sorted(differences.worded), JUDGED):
        statements = [("rules", rules.words), ("learned", learned.words)]
        chance.shuffle(statements)
        lines.append({"caption": caption, **dict(statements)})
    return lines


def main(
    captions: Annotated[Path, typer.Argument(help="captions in COCO's form")],
    judge: Annotated[Path | None, typer.Option(help="statements to judge, as JSON lines")] = None,
) -> None:
    """Print how many pairs of classes the parsers relate."""
    differences = compare(read_captions(captions))
    pairs = differences.pairs
    rows = [["parser", "pairs", "of these not stated by the other"]]
    for parser in PARSERS:
        rows.append([parser, f"{pairs[parser]:,}", f"{len(differences.only[parser]):,}"])
    print(markdown_table(rows))
    print(f"{pairs['both']:,} pairs by both, {len(differences.worded):,} with other predicates")
    if judge:
        lines = [*draw_pairs(differences), *draw_wordings(differences)]
        judge.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
