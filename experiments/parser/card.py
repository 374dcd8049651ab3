"""The card (README.md) of the learned parser: how it was trained, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

from experiments.miniworld.cards import markdown_table
from experiments.parser.quality import LEVELS, load, predict, scores
from sgpipe.recipe import Config, ParseConfig
from sgpipe.stages.parse.learned.parser import LearnedParser
from sgpipe.stages.parse.rules import RuleParser
from sgpipe.stages.parse.stage import Parser

CARD = """\
# The learned parser

A small network that turns captions into relation triplets (`parse.parser: learned`, `sgpipe parse --parser learned`).
It reads spaCy's hidden states and dependency tree of a caption, and the relations that the rules find in it.
{parameters:,} parameters, {megabytes:.1f} MB in half precision.

## How it was made

    make parser-model DATA=train_safe.csv.gz

Training took {seconds:,.0f} CPU-seconds on one core, with {captions:,} captions and scene graphs of
[FACTUAL](https://github.com/zhuang-li/FactualSceneGraph) (Li et al., Findings of ACL 2023; MIT license by its README).
The captions are region descriptions of Visual Genome (CC BY 4.0). Those by which it is judged below are not among them.
{joined:,} longer captions were made of two of them each.

```yaml
{recipe}```

## How good it is

F1 on {judged:,} captions with gold triplets (tests/golden/parser), by its scorer, with lemmatised predicates:

{rows}

*Strict*: subject, predicate and object are those of the gold triplet. *Relaxed*: the head nouns are, and the first or
last word of the predicate. *Pair*: the head nouns are. The captions of *random* have 6 words on average, those of
*length* 11.

## Limits

It is made for English captions of photographs. It follows the conventions of FACTUAL: a man in a hat *wears* it, and
people "lying on" a bed *lay on* it.
"""


def write_card(
    folder: Path, config: Config, captions: int, seconds: float, gold_folder: Path, console: Console
) -> None:
    """Measure the parser in `folder`, print the figures, and write README.md there."""
    gold, scorer = load(gold_folder)
    settings = config.model_dump(mode="json")
    parsers: dict[str, Parser] = {
        "rules": RuleParser(ParseConfig()),
        "learned": LearnedParser(ParseConfig(), folder),
    }
    rows = _rows(
        {
            name: scores(gold, predict(gold, parser)["lemma"], scorer)
            for name, parser in parsers.items()
        }
    )
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)
    weights = folder / "model.safetensors"
    card = CARD.format(
        parameters=sum(value.size for value in load_file(weights).values()),
        megabytes=weights.stat().st_size / 1e6,
        seconds=seconds,
        captions=captions,
        joined=settings["joined"],
        recipe=yaml.safe_dump(settings, sort_keys=False),
        judged=len(gold),
        rows=markdown_table(rows),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _rows(figures: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A header, and a row for each parser and set of captions."""
    rows = [["parser", "captions", *LEVELS]]
    for name, sets in figures.items():
        for captions, result in sets.items():
            rows.append([name, captions, *(f"{result[level]['F1']:.3f}" for level in LEVELS)])
    return rows
