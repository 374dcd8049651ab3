"""How the commands that evaluate print their results, write them to files, and compare them with other ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.cli.options import Json, reads_place, writes_file
from sgpipe.utils import LARGEST_SEED, console

if TYPE_CHECKING:
    from sgpipe.evaluation.result import EvaluationResult

_FILE_WIDTH = 120  # columns of tables that are not printed on a terminal


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Another result, to which the difference is given with an interval."""

    compare: Annotated[
        Path | None,
        typer.Option(
            help="Predictions, model or run of the same kind and images: prints the differences with 95% intervals.",
            callback=reads_place,
        ),
    ] = None
    resamples: Annotated[int, typer.Option(min=1, help="With --compare: bootstrap resamples of the images.")] = 1000
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="With --compare: random seed.")] = 0


@dataclass(frozen=True, kw_only=True)
class TableFiles:
    """How the result is printed, and the files that it is written to."""

    json: Json = False
    json_file: Annotated[
        Path | None,
        typer.Option("--json-file", help="Write the full result as JSON to this file.", callback=writes_file),
    ] = None
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Write one line per class to this file.", callback=writes_file)
    ] = None


@dataclass(frozen=True, kw_only=True)
class ResultFiles(TableFiles):
    """The same, with a plot."""

    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Write the precision-recall curves to this SVG file.", callback=writes_file),
    ] = None


def show(
    evaluate: Callable[[Path | None], EvaluationResult],
    compare: CompareOptions,
    files: TableFiles,
    plot: Path | None = None,
    *,
    per_class: bool = False,
) -> None:
    """`evaluate`: takes what is evaluated instead of the first, if anything."""
    from sgpipe.files.stored_files import shown_path

    result = evaluate(None)
    if compare.compare is not None:
        other = evaluate(compare.compare)
        result = result.compared_with(other, str(shown_path(compare.compare)), compare.resamples, compare.seed)
    if files.json:
        print(result.as_json())
    else:
        print_result(result, per_class=per_class)
    if files.json_file:
        result.write_json(files.json_file)
    if files.csv:
        result.write_csv(files.csv)
    if plot:
        result.write_plot(plot)


def print_result(result: EvaluationResult, *, per_class: bool = False) -> None:
    """Print a result; in a file or pipe, tables are not folded to 80 columns."""
    screen = console.output()
    if not screen.is_terminal:
        screen.width = max(screen.width, _FILE_WIDTH)
    result.print(screen, per_class=per_class)
