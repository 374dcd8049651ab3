"""`sgpipe train`, and `sgpipe convert`, which makes the models that training starts from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sgpipe.cli.options import (
    CalibrationFile,
    ExpectedPrecision,
    Json,
    Limit,
    MovedImages,
    RayAddress,
    Seed,
    Settings,
    reads_later,
    reads_model,
    reads_path,
    with_option_groups,
    writes_folder,
)
from sgpipe.errors import UserError
from sgpipe.utils import console


@dataclass(frozen=True, kw_only=True)
class ShardsOptions:
    """The shards to train on, and which of their relations."""

    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of shards to train on, or their object store, or FOLDER@WEIGHT. Repeatable.",
            callback=reads_later,
        ),
    ] = None
    val: Annotated[
        list[str] | None,
        typer.Option(help="Folder or object store of shards to validate on. Repeatable.", callback=reads_later),
    ] = None
    images: MovedImages = None
    calibration: CalibrationFile = None
    precision: ExpectedPrecision = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the recipe that they are; None: as it says."""
        from sgpipe.training.recipe import shards_options

        return {
            "data.train": shards_options(self.data, self.images) if self.data else None,
            "data.val": shards_options(self.val, self.images) if self.val else None,
            "data.calibration": self.calibration,
            "data.precision": self.precision,
        }


@with_option_groups
def train(
    *,
    recipe: Annotated[str, typer.Argument(help="Packaged recipe (tagger, pretrain, hico …) or YAML file.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder for the model; an unfinished training in it is resumed.", callback=writes_folder),
    ],
    shards: ShardsOptions,
    init: Annotated[
        str | None,
        typer.Option(help="Model to start from: folder, store, hub id or official .pth.", callback=reads_model),
    ] = None,
    miniature: Annotated[bool, typer.Option("--miniature", help="Train a small model that fits a laptop.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps to train, instead of --epochs.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images per step, over all workers.")] = None,
    limit: Limit = None,
    seed: Seed = None,
    workers: Annotated[int | None, typer.Option(help="Training processes; Ray starts them if more than one.")] = None,
    gpus: Annotated[
        float | None, typer.Option(help="GPUs per worker, 0 to 1. One worker takes a GPU anyway, if there is one.")
    ] = None,
    ray_address: RayAddress = None,
    assign: Settings = None,
    json_: Json = False,
) -> None:
    """Train a tagger or a detector on shards."""
    from sgpipe.training.display import print_training
    from sgpipe.training.recipe import load_train_recipe
    from sgpipe.training.run import train as run
    from sgpipe.utils.config_file import parse_set

    if epochs is not None and steps is not None:
        raise UserError("--epochs and --steps both say when the training ends; give one of them")
    options = {
        **shards.settings,
        "model.init": init,
        "optimisation.epochs": epochs,
        "optimisation.steps": steps,
        "optimisation.batch": batch,
        "data.limit": limit,
        "seed": seed,
        "workers.count": workers,
        "workers.gpus": gpus,
        "workers.address": ray_address,
    }
    given = {key: value for key, value in options.items() if value is not None}
    by_epochs = {"optimisation.steps": None} if epochs is not None else {}  # also of a recipe that trains by steps
    overrides = given | by_epochs | parse_set(assign or [])
    loaded = load_train_recipe(recipe, overrides, miniature=miniature)
    summary = run(loaded, out, console.Progress(console.progress()))
    network = out / summary.network.name
    if json_:
        print(json.dumps({**asdict(summary), "out": str(out), "network": str(network)}, indent=2))
        return
    option = "--tagger" if summary.kind == "tagger" else "--init"
    print_training(summary, f"saved the model; use it with {option} {network}", console.output())


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="Official RLIP checkpoint (.pth); with --as, a detector's.", callback=reads_path)
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for config.json, model.safetensors and the tokenizer.", callback=writes_folder)
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            help="RoBERTa tokenizer, or RoBERTa itself with --as: folder, store or hub id.", callback=reads_model
        ),
    ] = "roberta-base",
    gating: Annotated[
        str | None, typer.Option(help="Fusion gate (VXAc or GLIP), if the checkpoint does not name it.")
    ] = None,
    verb_query: Annotated[
        str | None, typer.Option(help="Type of relation query, if the checkpoint does not name it.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--as", help="Type of model to initialise from a detector: parseda, parsed, tagger or rlipv1."),
    ] = None,
    queries: Annotated[int | None, typer.Option(help="Keep only the first N queries, such as 128.")] = None,
    first_rows: Annotated[
        bool, typer.Option("--first-rows", help="With --queries: cut by row, as the official code does, not by pair.")
    ] = False,
    json_: Json = False,
) -> None:
    """Convert an official checkpoint or a detector to a model."""
    from rlip_model.checkpoint import CheckpointError, TokenizerError, convert_detector
    from rlip_model.checkpoint import convert as run
    from sgpipe.files.model_cache import local_model

    tokenizer = local_model(tokenizer)
    unused, new = None, None
    try:
        if kind is None:
            run(checkpoint, out, tokenizer, gating, verb_query, queries, not first_rows)
        elif gating or verb_query or first_rows:
            raise UserError("--gating, --verb-query and --first-rows are for official checkpoints, not for --as")
        else:
            model = convert_detector(checkpoint, out, kind, tokenizer, 200 if queries is None else queries)
            unused = list(model.unused)
            new = sorted({".".join(name.split(".")[:2]) for name in model.kept})
    except (CheckpointError, TokenizerError) as error:
        raise UserError(str(error)) from None
    parts = {} if unused is None else {"not_used_of_the_detector": unused, "not_from_the_detector": new}
    if json_:
        print(json.dumps({"out": str(out), **parts}, indent=2))
        return
    screen = console.output()
    if unused is not None and new is not None:
        screen.print(f"weights of the detector that are not used: {', '.join(unused) or 'none'}")
        screen.print(f"weights that are not from the detector: {', '.join(new) or 'none'}")
    screen.print(f"wrote {out}")
