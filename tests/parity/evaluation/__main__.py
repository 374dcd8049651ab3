"""Compare the evaluators with official figures: `python -m tests.parity.evaluation FOLDER`.

Every NAME.inputs.json[.gz] with its NAME.expected.json[.gz], every micro_cases*.json and
zero_shot_unseen_idx.json of the folder and those in it; what benchmark a file is of is seen by its
keys. See `compare_folders` for the exit code.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

from tests.parity.evaluation import hico, open_images, vcoco, visual_genome
from tests.parity.golden import NotGoldenError, Report, compare_folders

INPUTS = ".inputs.json"
EXPECTED = ".expected.json"


def check_folder(folder: Path) -> Report:
    report = Report(small=True)
    paths = {
        path.with_name(path.name.removesuffix(".gz")): path for path in folder.rglob("*.json*")
    }
    for name, path in sorted(paths.items()):
        if name.name.endswith(EXPECTED):  # read with its inputs
            if other(name, EXPECTED, INPUTS) not in paths:
                raise NotGoldenError(
                    f"{path} is without its inputs, {other(name, EXPECTED, INPUTS).name}"
                )
            continue
        section = str(name.relative_to(folder).parent / name.name.partition(".")[0])
        before = len(report.rows)
        if name.name.endswith(INPUTS):
            check_set(
                read(path), read(paths[other(name, INPUTS, EXPECTED)]), section, report, path.parent
            )
        elif name.name.startswith("micro_cases"):
            for case in read(path):
                check_micro(case, f"{section}, {case['name']}", report)
        elif name.name == "zero_shot_unseen_idx.json":
            hico.check_zero_shot_lists(read(path), section, report)
        else:
            report.skipped.append(f"{path.name}: what it holds is not told by its name")
            continue
        if len(report.rows) == before:
            raise NotGoldenError(f"{path} has no official figures to compare with")
    if not report.rows:
        raise NotGoldenError(
            f"{folder} is not a folder of official figures: it has no NAME.inputs.json.gz"
        )
    return report


def other(path: Path, ending: str, instead: str) -> Path:
    return path.with_name(path.name.removesuffix(ending) + instead)


def read(path: Path) -> Any:
    return json.loads(
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    )


def check_set(inputs: Any, expected: Any, section: str, report: Report, folder: Path) -> None:
    if "vsrl" in inputs:
        vcoco.check_set(inputs, expected, section, report)
    elif "verb_classes" in inputs:
        vcoco.check_training(inputs, expected, section, report)
    elif "predicate_names" in inputs:
        open_images.check_set(inputs, expected, section, report)
    elif "zeroshot_triplets_file" in inputs:
        visual_genome.check_set(inputs, expected, section, report, folder)
    else:
        hico.check_set(inputs, expected, section, report)


def check_micro(case: Any, section: str, report: Report) -> None:
    if "rows" in case:
        vcoco.check_micro(case, section, report)
    elif "rels" in case["images"][0]["gt"]:
        open_images.check_micro(case, section, report)
    else:
        hico.check_micro(case, section, report)


def main(arguments: list[str]) -> int:
    return compare_folders("evaluation", check_folder, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
