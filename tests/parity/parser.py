"""Score a caption parser against gold triplets: `python -m tests.parity.parser FOLDER [--parser
learned]`.

FOLDER holds `gold_dev.json` and its scorer, `score.py`. Predicates are scored as the caption words
them and as lemmas. Exits 0 if all bars are passed by both, 1 if one is missed, 2 if FOLDER is not
of this form.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.parser.quality import LEVELS, load, predict, scores
from sgpipe.recipe import ParseConfig
from sgpipe.stages.parse.stage import CaptionParser

# F1 by set of captions; `random` are the short ones.
BARS: dict[str, dict[str, dict[str, float]]] = {
    "rules": {
        "random": {"strict": 0.55, "relaxed": 0.72, "pair": 0.76},
        "all": {"strict": 0.42, "relaxed": 0.58, "pair": 0.62},
    },
    "learned": {
        "random": {"strict": 0.80, "relaxed": 0.86, "pair": 0.89},
        "length": {"strict": 0.57, "relaxed": 0.67, "pair": 0.72},
    },
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score a caption parser against gold triplets.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parser", choices=BARS, default="rules")
    options = parser.parse_args(arguments)
    folder = options.folder
    bars = BARS[options.parser]
    try:
        gold, scorer = load(folder)
    except ValueError as error:
        print(f"not a folder of gold triplets: {error}", file=sys.stderr)
        return 2
    table = Table("captions", "predicate", "level", "P", "R", "F1", "bar")
    missed = 0
    for form, predictions in predict(
        gold, CaptionParser(ParseConfig(parser=options.parser))
    ).items():
        for name, result in scores(gold, predictions, scorer).items():
            for level in LEVELS:
                bar = bars.get(name, {}).get(level, 0.0)
                missed += result[level]["F1"] < bar
                figures = [f"{result[level][key]:.3f}" for key in ("P", "R", "F1")]
                table.add_row(name, form, level, *figures, f"{bar:.2f}" if bar else "")
    Console().print(table)
    print("all bars passed" if not missed else f"{missed} bars missed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
