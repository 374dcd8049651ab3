"""Compare the network with reference folders: `python -m tests.parity.model FOLDER [FOLDER ...]`.

Prints the largest difference of every tensor. Exit code 0: all within tolerance; 1: some are not, and are
listed at the end; 2: a folder is not a reference folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rlip_model.pretrained import CheckpointError
from tests.parity.forward import check_forward
from tests.parity.golden import Golden, NotGoldenError, Report, open_golden
from tests.parity.losses import check_training
from tests.parity.postprocess import check_postprocessing
from tests.parity.tagger import check_generation, check_queries


def check_folder(folder: Path) -> tuple[Golden, Report]:
    """Run every check that the folder has reference data for.

    Raises:
        NotGoldenError: it is not a reference folder.
    """
    golden = open_golden(folder)
    try:
        model = golden.build()
    except CheckpointError as reason:
        raise NotGoldenError(f"{folder}: {reason}") from reason
    report = Report(golden.small)
    check_forward(model, golden, report)
    check_queries(model, golden, report)
    check_generation(model, golden, report)
    check_postprocessing(model, golden, report)
    check_training(model, golden, report)
    return golden, report


def print_report(folder: Path, report: Report) -> None:
    print(f"{folder}")
    for row in report.rows:
        mark = "ok" if row.within else "FAIL"
        print(f"  {mark:4} {row.difference:9.2e} (<= {row.tolerance:.0e})  {row.section}: {row.name}")


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m tests.parity.model FOLDER [FOLDER ...]", file=sys.stderr)
        return 2
    failed = []
    for argument in arguments:
        folder = Path(argument)
        try:
            _, report = check_folder(folder)
        except NotGoldenError as reason:
            print(reason, file=sys.stderr)
            return 2
        print_report(folder, report)
        failed += [f"{folder}: {row.section}: {row.name} ({row.difference:.2e})" for row in report.failed]
    if failed:
        print("outside tolerance:\n  " + "\n  ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
