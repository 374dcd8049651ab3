"""Compare the network, tensor by tensor, with reference folders: `python -m tests.parity.model
FOLDER [FOLDER ...]`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.parity.forward import check_forward, check_postprocessing
from tests.parity.golden import Report, compare_folders, open_golden
from tests.parity.losses import check_training
from tests.parity.tagger import check_generation, check_queries


def check_folder(folder: Path) -> Report:
    """Run every check that the folder has reference data for."""
    golden = open_golden(folder)
    model = golden.build()
    report = Report(golden.small)
    for check in (
        check_forward,
        check_queries,
        check_generation,
        check_postprocessing,
        check_training,
    ):
        check(model, golden, report)
    return report


def main(arguments: list[str]) -> int:
    return compare_folders("model", check_folder, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
