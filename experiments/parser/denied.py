"""What a parser states of captions that deny, suppose or depict: `python -m
experiments.parser.denied [--show]`.

tests/golden/parser/denied.json has 60 invented captions with the relations that they state, and
those that a careless reader might, but that they do not. They were written before the rules, which
were developed on one half of them. A relation is compared by the head nouns of its two things; if a
caption states another one of these, by its verb, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from experiments.command import run_command
from experiments.miniworld.cards import markdown_table
from sgpipe.recipe import ParseConfig
from sgpipe.records import Triplet
from sgpipe.stages.parse.stage import CaptionParser

CAPTIONS = Path("tests/golden/parser/denied.json")
HALVES = ("develop", "held out")
PARSERS = ("rules", "learned")


class Stated(NamedTuple):
    """A relation by its head nouns and the first word of its predicate's lemma."""

    subject: str
    verb: str
    object: str

    @property
    def pair(self) -> tuple[str, str]:
        return self.subject, self.object

    @classmethod
    def of_text(cls, text: str) -> Stated:
        """Read "fire hydrant | next to | tree"."""
        subject, predicate, thing = (part.split() for part in text.split("|"))
        return cls(subject[-1], predicate[0], thing[-1])

    @classmethod
    def of_triplet(cls, triplet: Triplet) -> Stated:
        return cls(triplet.subject_head, triplet.predicate_lemma.split()[0], triplet.object_head)


@dataclass(frozen=True)
class Caption:
    """A caption with the relations that it states, and those that it does not."""

    text: str
    half: str
    kind: str
    stated: tuple[Stated, ...]
    denied: tuple[Stated, ...]

    def denies(self, relation: Stated) -> bool:
        """Return whether a parser that states this relation is wrong."""
        same_things = [denied for denied in self.denied if set(denied.pair) == set(relation.pair)]
        if any(stated.pair == relation.pair for stated in self.stated):
            return any(denied.verb == relation.verb for denied in same_things)
        return bool(same_things)


class Counts(NamedTuple):
    """Relations over captions: stated ones, those of them that were found, and denied ones that a
    parser states.
    """

    stated: int
    found: int
    denied_stated: int
    captions_wrong: int
    captions: int


def read_captions(path: Path = CAPTIONS) -> list[Caption]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [
        Caption(
            row["caption"],
            row["half"],
            row["kind"],
            tuple(Stated.of_text(text) for text in row["stated"]),
            tuple(Stated.of_text(text) for text in row["denied"]),
        )
        for row in rows
    ]


def count(captions: Sequence[Caption], parsed: Sequence[Sequence[Triplet]]) -> Counts:
    named = 0
    wrong = []
    for caption, triplets in zip(captions, parsed, strict=True):
        relations = [Stated.of_triplet(triplet) for triplet in triplets]
        pairs = {relation.pair for relation in relations}
        named += sum(stated.pair in pairs for stated in caption.stated)
        wrong.append(sum(caption.denies(relation) for relation in relations))
    stated = sum(len(caption.stated) for caption in captions)
    return Counts(stated, named, sum(wrong), sum(number > 0 for number in wrong), len(captions))


def main(
    show: Annotated[
        bool, typer.Option(help="print every caption with what the parsers state")
    ] = False,
    captions: Annotated[
        Path, typer.Option(help="captions with stated and denied relations")
    ] = CAPTIONS,
) -> None:
    """Print how many denied relations the parsers state, and how many stated ones they find."""
    rows = [
        [
            "parser",
            "captions",
            "denied relations stated",
            "captions with one",
            "stated relations found",
        ]
    ]
    everything = read_captions(captions)
    for name, half in product(PARSERS, HALVES):
        chosen = [caption for caption in everything if caption.half == half]
        parsed = CaptionParser(ParseConfig(parser=name)).parse(caption.text for caption in chosen)
        counts = count(chosen, parsed)
        wrong = f"{counts.captions_wrong} of {counts.captions}"
        named = f"{counts.found} of {counts.stated}"
        rows.append([name, half, str(counts.denied_stated), wrong, named])
        if show:
            print_parsed(chosen, parsed)
    print(markdown_table(rows))


def print_parsed(captions: Sequence[Caption], parsed: Sequence[Sequence[Triplet]]) -> None:
    for caption, triplets in zip(captions, parsed, strict=True):
        print(caption.text)
        for triplet in triplets:
            mark = "wrong" if caption.denies(Stated.of_triplet(triplet)) else ""
            print(f"    {triplet.subject} | {triplet.predicate} | {triplet.object}    {mark}")


if __name__ == "__main__":
    run_command(main)
