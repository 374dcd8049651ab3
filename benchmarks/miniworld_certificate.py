"""Certificates on the miniworld, by the product's own commands, beside the best threshold

python -m benchmarks.miniworld_certificate FOLDER

`sgpipe generate miniworld` labels 1,000 images of a seed that no model has seen; FOLDER keeps the
run. Then `sgpipe certify` asks, simulated people answer every open question from the ground truth,
and it is called again, until they have given the stated number of answers; the slips are the share
of their answers that are turned round. A certificate keeps all relations of at least its threshold.
Their true precision is by the ground truth of all of them. The best threshold is the one that keeps
most relations at the target precision; it is chosen with the truth of all relations known, which no
user has. Confidence 95%; one session for each row.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.table import Table

from benchmarks.measure import report
from experiments.people import answer_plans, truth_of
from sgpipe.storage.judgement_lines import RelationKey
from sgpipe.storage.judgements import JUDGEMENTS

IMAGES = 1000
SEED = 7
ANSWERS = (200, 400, 800)


def sgpipe(*arguments: object) -> str:
    """Return what a command prints; exit code 1 says that a certificate is not reached yet."""
    command = [
        sys.executable,
        "-c",
        "from sgpipe.cli.main import main; main()",
        *map(str, arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return done.stdout


def session(
    run: Path, right: dict[RelationKey, bool], target: float, slips: float
) -> dict[int, float | None]:
    """Return the certified threshold by number of answers; None: there is none yet."""
    (run / JUDGEMENTS).unlink(missing_ok=True)
    thresholds: dict[int, float | None] = {}
    for answer in ANSWERS:
        while True:
            state = json.loads(sgpipe("certify", run, "--precision", target, "--json"))
            before = answer_plans(run, right, slips, 0)
            if not state["open"] or before >= answer:
                break
            answer_plans(run, right, slips, answer)
        sets = state["certificate"]["sets"]
        thresholds[before] = sets[0]["threshold"] if sets else None
    sgpipe("verify", run)
    return thresholds


def main() -> None:
    run = Path(sys.argv[1])
    if not (run / "recipe.yaml").exists():
        settings = (f"source.miniworld.images={IMAGES}", f"source.miniworld.seed={SEED}")
        sgpipe(
            "generate",
            "miniworld",
            "--out",
            run,
            *(part for setting in settings for part in ("--set", setting)),
        )
    right, confidence = truth_of(run)
    keys = sorted(right, key=lambda key: -confidence[key])
    falling, correct = (np.array([column[key] for key in keys]) for column in (confidence, right))
    precision = np.cumsum(correct) / np.arange(1, len(keys) + 1)
    last = np.append(falling[1:] != falling[:-1], True)
    table = Table(
        "target",
        "slips",
        "answers",
        "threshold",
        "true precision",
        "relations kept",
        "of the best threshold's",
    )
    for target, slips in ((0.9, 0.0), (0.95, 0.0), (0.9, 0.02), (0.95, 0.02)):
        best = int(np.flatnonzero(last & (precision >= target)).max(initial=-1)) + 1
        for answers, threshold in session(run, right, target, slips).items():
            row = [f"{target:g}", f"{slips:.0%}", f"{answers:,}"]
            if threshold is None:
                table.add_row(*row, "none yet", "", "0", "0%")
                continue
            is_kept = falling >= np.float32(threshold)
            share = f"{is_kept.sum() / best:.0%} of {best:,}"
            table.add_row(
                *row,
                f"{threshold:.3g}",
                f"{correct[is_kept].mean():.1%}",
                f"{is_kept.sum():,}",
                share,
            )
    text = (
        f"The run has {len(keys):,} relations of {IMAGES:,} images, {correct.mean():.1%} of them"
        " right."
    )
    report(str(__doc__), text, table)


if __name__ == "__main__":
    main()
