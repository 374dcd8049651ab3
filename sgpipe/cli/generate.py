"""`sgpipe generate` and `plan`: label a dataset, or measure how long that takes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.cli import STARTED, declare
from sgpipe.cli import options as cli
from sgpipe.cli.batch_options import BatchOptions
from sgpipe.cli.price_options import PriceOptions
from sgpipe.cli.recipe_options import RecipeOptions, SourceOptions
from sgpipe.errors import UserError
from sgpipe.utils import console

if TYPE_CHECKING:
    from sgpipe.evaluation.label_quality import LabelQuality
    from sgpipe.files.locations import Location
    from sgpipe.recipe import TagConfig

_RecipeName = Annotated[
    str | None, typer.Argument(help="Packaged recipe (default: miniworld) or YAML file.")
]


def generate(
    *,
    recipe: _RecipeName = None,
    out: Annotated[
        Path | None,
        declare.writes_folder("Folder for the shards, resumed. Default: NAME-relations."),
    ] = None,
    store: Annotated[
        str | None, declare.option("Object store for the shards (s3://…); the rest is in --out.")
    ] = None,
    parent: Annotated[
        str | None, declare.option("Run to take over.", "--from", callback=declare.stored)
    ] = None,
    extend: Annotated[
        str | None, declare.option("Run or import to extend.", "--extend", callback=declare.stored)
    ] = None,
    data: SourceOptions,
    options: RecipeOptions,
    retry_failed: Annotated[
        bool, declare.option("Label the images of error rows again.", "--retry-failed")
    ] = False,
    relist: Annotated[
        bool,
        declare.option("List the images in a store again; a resumed run does not.", "--relist"),
    ] = False,
    metrics: Annotated[
        Path | None, declare.writes_file("File for a line of JSON each minute: images, errors, …")
    ] = None,
    prices: PriceOptions,
    max_cost: Annotated[
        float | None, declare.option("What tokens of a run may cost; it stops before, resumably.")
    ] = None,
    batch: BatchOptions,
    json_: cli.Json = False,
) -> None:
    """Label the images of a dataset or a folder with relations.

    Without arguments, generates 200 synthetic images and labels them with the
    tiny models that ship with sgpipe.

    Examples:
      sgpipe generate
      sgpipe generate coco --root datasets/coco --tagger tagger/ --out coco-relations/
      sgpipe generate folder --images photos/ --tagger tagger/ --out photo-relations/
      sgpipe generate hub --dataset cppe-5 --split train --tagger tagger/ --out cppe-relations/
      sgpipe generate coco --root datasets/coco --tagger tagger/ --out run/ --store s3://bucket/coco
      sgpipe generate --from coco-relations/ --tagger other-tagger/ --out retagged/
      sgpipe generate photos --extend vg/ --tagger tagger/ --out vg-extended/
    """
    if out is None:
        _refuse_runs({"--from": parent, "--extend": extend})
    spending = prices.spending(max_cost)
    loaded = options.applied_to(recipe, data, parent, extend, store)
    out = out or Path(f"{loaded.name}-relations")
    # Modules that take long to import come as late as possible.
    from sgpipe.generation.metrics import print_summary
    from sgpipe.generation.run import generate as run

    # Ray prints what happens to its machines; standard output is for results.
    with redirect_stdout(sys.stderr):
        summary = run(
            loaded,
            out,
            console.Progress(),
            retry_failed=retry_failed,
            parent=parent,
            metrics=metrics,
            spending=spending,
            batch_files=batch.files(max_cost),
            relist=relist,
        )
    is_measurable = not loaded.engine.store and summary.counts["images"]
    quality = {} if not is_measurable else _measure_quality(loaded.tag, summary.root)
    values = summary.as_json()
    if quality:
        values["quality"] = {name: asdict(row.at_threshold) for name, row in quality.items()}
    if spending.prices is not None:
        values["cost"] = spending.prices.cost(summary.counts)
    if not cli.printed_json(json_, values):
        print_summary(summary, console.output(), prices=spending.prices)
        if quality:
            from sgpipe.evaluation.label_quality import print_run_quality

            print_run_quality(quality, console.output())
    cli.say_losses(summary.losses)
    if summary.counts["images"] and summary.counts["images"] == summary.counts["errors"]:
        raise typer.Exit(console.EXIT_ALL_FAILED)


def _refuse_runs(runs: Mapping[str, str | None]) -> None:
    """Refuse a run to continue from, by its option, where no folder for the new run is named."""
    for option, run in runs.items():
        if run:
            raise UserError(f"{option} needs --out, the folder of the new run")


def _measure_quality(tag: TagConfig, root: Location) -> dict[str, LabelQuality]:
    """Compare the relations of a run on this machine with its ground truth, if it has any."""
    from sgpipe.evaluation.label_quality import run_quality
    from sgpipe.records import TRAINING_CONFIDENCE

    if tag.calibration is not None:
        return run_quality(root, 0.0)
    return run_quality(root, max(TRAINING_CONFIDENCE, tag.threshold))


def plan(
    *,
    recipe: _RecipeName = None,
    data: SourceOptions,
    options: RecipeOptions,
    sample: Annotated[
        int | None, declare.option("Images to label; fewer if they take a minute.", min=1)
    ] = None,
    machines: Annotated[int, declare.option("Number of machines like this one.", min=1)] = 1,
    gpus: Annotated[
        int | None, declare.option("GPUs of each machine; default: as many as here.", min=1)
    ] = None,
    price: Annotated[
        float | None, declare.option("Price of a machine-hour.", "--price-per-hour", min=0, max=1e9)
    ] = None,
    prices: PriceOptions,
    json_: cli.Json = False,
) -> None:
    """Tell how long `generate` will take, and what for, from labelling a sample.

    Takes the recipe and the options of `generate`; keeps nothing. Without
    --sample it labels 64 images, or up to 256 to keep a served model busy.

    Examples:
      sgpipe plan coco --root datasets/coco --tagger tagger/
      sgpipe plan coco --root datasets/coco --tagger tagger/ --machines 8 --gpus 4 --price-per-hour
      12
    """
    from sgpipe.generation.plan import plan as measure
    from sgpipe.generation.plan import print_plan

    loaded = options.applied_to(recipe, data)
    with redirect_stdout(sys.stderr):
        measured = measure(loaded, console.Progress(), sample, began=STARTED)
    if gpus:
        measured = measured.with_gpus(gpus)
    values = measured.as_json(machines, price, prices.by_token)
    if not cli.printed_json(json_, values):
        print_plan(values, console.output())
