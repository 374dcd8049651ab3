"""`sgpipe generate` and `plan`: label a dataset, or measure how long that takes."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sgpipe.cli import STARTED
from sgpipe.cli import options as cli
from sgpipe.cli.recipe_options import RecipeOptions, SourceOptions
from sgpipe.errors import UserError
from sgpipe.utils import console

_RecipeName = Annotated[
    str | None, typer.Argument(help="Packaged recipe (default: miniworld) or YAML file.")
]


def generate(
    *,
    recipe: _RecipeName = None,
    out: Annotated[
        Path | None, cli.writes_folder("Folder for the shards, resumed. Default: NAME-relations.")
    ] = None,
    store: Annotated[
        str | None, cli.option("Object store for the shards (s3://…); the rest is in --out.")
    ] = None,
    parent: Annotated[
        str | None, cli.option("Run to take over.", "--from", callback=cli.stored)
    ] = None,
    extend: Annotated[
        str | None, cli.option("Run or import to extend.", "--extend", callback=cli.stored)
    ] = None,
    data: SourceOptions,
    options: RecipeOptions,
    retry_failed: Annotated[
        bool, cli.option("Label the images of error rows again.", "--retry-failed")
    ] = False,
    metrics: Annotated[
        Path | None, cli.writes_file("File for a line of JSON each minute: images, errors, …")
    ] = None,
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
    if out is None and (parent or extend):
        raise UserError(
            f"{'--from' if parent else '--extend'} needs --out, the folder of the new run"
        )
    loaded = options.applied_to(recipe, data, parent, extend, store=store)
    out = out or Path(f"{loaded.name}-relations")
    # Modules that take long to import come as late as possible.
    from sgpipe.generation.metrics import print_summary
    from sgpipe.generation.run import generate as run
    from sgpipe.records import TRAINING_CONFIDENCE

    with redirect_stdout(
        sys.stderr
    ):  # Ray prints what happens to its machines; standard output is for results
        summary = run(
            loaded,
            out,
            console.Progress(),
            retry_failed=retry_failed,
            parent=parent,
            metrics=metrics,
        )
    from sgpipe.evaluation.label_quality import print_run_quality, run_quality

    threshold = (
        max(TRAINING_CONFIDENCE, loaded.tag.threshold) if loaded.tag.calibration is None else 0.0
    )
    quality = run_quality(summary.root, threshold) if loaded.engine.store is None else {}
    if json_:
        measured = {name: asdict(each.at_threshold) for name, each in quality.items()}
        print(console.json_text(summary.as_json() | ({"quality": measured} if measured else {}), 2))
    else:
        print_summary(summary, console.output())
        if quality:
            print_run_quality(quality, console.output())
    cli.say_losses(summary.losses)
    if summary.counts["images"] and summary.counts["images"] == summary.counts["errors"]:
        raise typer.Exit(console.EXIT_ALL_FAILED)


def plan(
    *,
    recipe: _RecipeName = None,
    data: SourceOptions,
    options: RecipeOptions,
    sample: Annotated[
        int | None, cli.option("Images to label; fewer if they take a minute.", min=1)
    ] = None,
    machines: Annotated[int, cli.option("Number of machines like this one.", min=1)] = 1,
    gpus: Annotated[
        int | None, cli.option("GPUs of each machine; default: as many as here.", min=1)
    ] = None,
    price: Annotated[
        float | None, cli.option("Price of a machine-hour.", "--price-per-hour", min=0, max=1e9)
    ] = None,
    price_per_token: Annotated[
        float | None, cli.option("Price of a token of an endpoint.", min=0, max=1e9)
    ] = None,
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
        found = measure(loaded, console.Progress(), sample, began=STARTED)
    values = (found.with_gpus(gpus) if gpus else found).as_json(machines, price, price_per_token)
    if not cli.printed_json(json_, values):
        print_plan(values, console.output())
