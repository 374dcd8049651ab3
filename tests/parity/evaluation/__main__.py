"""Compare the evaluators with official figures: `python -m tests.parity.evaluation FOLDER`.

Every NAME.inputs.json[.gz] with its NAME.expected.json[.gz], every micro_cases*.json and zero_shot_unseen_idx.json of
the folder and those in it; what benchmark a file is of is seen by its keys. Exit code 0: all equal within 1e-6; 1:
something is not, and is listed at the end; 2: not such a folder.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlip_model.evaluation.inputs import EvaluationError
from tests.parity.evaluation import hico, open_images, vcoco, visual_genome
from tests.parity.evaluation.compare import Comparison
from tests.parity.golden import NotGoldenError
from tests.parity.model import print_report

INPUTS, EXPECTED = (".inputs.json.gz", ".inputs.json"), (".expected.json", ".expected.json.gz")


def check_folder(folder: Path) -> Comparison:
    """Raises NotGoldenError."""
    report = Comparison(small=True)
    paths = set(folder.rglob("*.json*"))
    for path in sorted(paths):
        if path.name.endswith(EXPECTED):  # read with its inputs
            name = path.name.removesuffix(".gz").removesuffix(EXPECTED[0])
            if not paths & {path.with_name(name + ending) for ending in INPUTS}:
                raise NotGoldenError(f"{path} is without its inputs, {name}{INPUTS[0]}")
            continue
        section = str(path.relative_to(folder).parent / path.name.partition(".")[0])
        before = len(report.rows)
        try:
            known = check_file(path, section, report)
        except (KeyError, TypeError, IndexError, EvaluationError) as reason:
            raise NotGoldenError(f"{path} is not of the known form: {reason!r}") from reason
        if not known:
            report.skipped.append(f"{path.name}: what it holds is not told by its name")
        elif len(report.rows) == before:
            raise NotGoldenError(f"{path} has no official figures to compare with")
    if not report.rows:
        raise NotGoldenError(f"{folder} is not a folder of official figures: it has no NAME.inputs.json.gz")
    return report


def check_file(path: Path, section: str, report: Comparison) -> bool:
    """Whether its name is known."""
    ending = next((ending for ending in INPUTS if path.name.endswith(ending)), None)
    if ending:
        choices = [path.with_name(path.name.removesuffix(ending) + each) for each in EXPECTED]
        expected = next((choice for choice in choices if choice.is_file()), None)
        if expected is None:
            raise NotGoldenError(f"{path} is without its official figures, {choices[0].name}")
        check_set(read(path), read(expected), section, report, path.parent)
    elif path.name.startswith("micro_cases"):
        for case in read(path):
            check_micro(case, f"{section}, {case['name']}", report)
    elif path.name == "zero_shot_unseen_idx.json":
        hico.check_zero_shot_lists(read(path), section, report)
    else:
        return False
    return True


def read(path: Path) -> Any:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return json.loads(content)
    except (OSError, EOFError, ValueError) as reason:
        raise NotGoldenError(f"{path} cannot be read: {reason}") from reason


def check_set(inputs: Any, expected: Any, section: str, report: Comparison, folder: Path) -> None:
    """Raises KeyError: of no known benchmark."""
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


def check_micro(case: Any, section: str, report: Comparison) -> None:
    if "rows" in case:
        vcoco.check_micro(case, section, report)
    elif "rels" in case["images"][0]["gt"]:
        open_images.check_micro(case, section, report)
    else:
        hico.check_micro(case, section, report)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m tests.parity.evaluation FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    try:
        report = check_folder(folder)
    except NotGoldenError as reason:
        print(reason, file=sys.stderr)
        return 2
    print_report(folder, report)
    for place in report.skipped:
        print(f"  not compared: {place}")
    if report.failed:
        print("outside tolerance:\n  " + "\n  ".join(f"{row.section}: {row.name}" for row in report.failed))
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
