"""`sgpipe train`, and `sgpipe convert`, which makes the models that training starts from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.cli.options import (
    COMPUTE,
    DATA,
    MODELS,
    CalibrationFile,
    ExpectedPrecision,
    Json,
    Limit,
    MovedImages,
    RayAddress,
    Seed,
    Settings,
    reads_model,
    writes_folder,
)
from sgpipe.errors import UserError
from sgpipe.utils import console

if TYPE_CHECKING:
    from sgpipe.training.recipe import DataConfig


@dataclass(frozen=True, kw_only=True)
class ShardsOptions:
    """The shards to train on, and which of their relations."""

    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of shards to train on, or their object store, or FOLDER@WEIGHT. Repeatable.",
            rich_help_panel=DATA,
        ),
    ] = None
    val: Annotated[
        list[str] | None,
        typer.Option(help="Folder or object store of shards to validate on. Repeatable.", rich_help_panel=DATA),
    ] = None
    images: MovedImages = None
    calibration: CalibrationFile = None
    precision: ExpectedPrecision = None

    def applied_to(self, data: DataConfig, limit: int | None) -> DataConfig:
        """Return the settings of the data with these. Raises UserError: a weight is not a number."""
        from sgpipe.training.recipe import shards_options
        from sgpipe.utils.config_file import changed

        return changed(
            data,
            train=shards_options(self.data, self.images) if self.data else None,
            val=shards_options(self.val, self.images) if self.val else None,
            calibration=self.calibration,
            precision=self.precision,
            limit=limit,
        )


def train(
    *,
    recipe: Annotated[str, typer.Argument(help="Packaged recipe (tagger, pretrain, hico …) or YAML file.")],
    out: Annotated[Path, writes_folder("Folder for the model; an unfinished training in it is resumed.")],
    shards: ShardsOptions,
    init: Annotated[
        str | None,
        reads_model("Model to start from: folder, store, hub id or official .pth."),
    ] = None,
    miniature: Annotated[
        bool, typer.Option("--miniature", help="Train a small model that fits a laptop.", rich_help_panel=MODELS)
    ] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training data.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps to train, instead of --epochs.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images per step, over all workers.")] = None,
    limit: Limit = None,
    seed: Seed = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Training processes; Ray starts them if more than one.", rich_help_panel=COMPUTE),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="GPUs per worker, 0 to 1. A single worker uses a GPU if one is available.",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    ray_address: RayAddress = None,
    assign: Settings = None,
    json_: Json = False,
) -> None:
    """Train a tagger or a detector on shards.

    Examples:

      sgpipe train tagger --data vg/ --init detector/ --out tagger/
      sgpipe train tagger --miniature --data miniworld-relations/ --out small-tagger/
      sgpipe train tagger --data vg/ --init detector/ --set optimisation.lr=1e-4 --out tagger/
    """
    from sgpipe.training.metrics import print_training
    from sgpipe.training.recipe import load_train_recipe
    from sgpipe.utils.config_file import changed, parse_set

    if epochs is not None and steps is not None:
        raise UserError("--epochs and --steps both say when the training ends; pass one of them")
    loaded = load_train_recipe(recipe, parse_set(assign or []), miniature=miniature)
    optimisation = changed(loaded.optimisation, epochs=epochs, steps=steps, batch=batch)
    if epochs is not None:
        optimisation = replace(optimisation, steps=None)  # also of a recipe that trains by steps
    loaded = changed(
        loaded,
        seed=seed,
        model=changed(loaded.model, init=init),
        data=shards.applied_to(loaded.data, limit),
        optimisation=optimisation,
        workers=changed(loaded.workers, count=workers, gpus=gpus, address=ray_address),
    )
    from sgpipe.training.run import train as run  # it imports PyTorch

    summary = run(loaded, out, console.Progress(console.progress()))
    network = out / summary.network.name
    if json_:
        print(json.dumps({**asdict(summary), "out": str(out), "network": str(network)}, indent=2))
        return
    option = "--tagger" if summary.kind == "tagger" else "--init"
    print_training(summary, f"saved the model; use it with {option} {network}", console.output())


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="Official RLIP checkpoint (.pth); with --as, a detector's.", exists=True)
    ],
    out: Annotated[Path, writes_folder("Folder for config.json, model.safetensors and the tokenizer.")],
    tokenizer: Annotated[
        str, reads_model("RoBERTa tokenizer, or RoBERTa itself with --as: folder, store or hub id.")
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
    """Convert an official checkpoint or a detector to a model.

    Examples:

      sgpipe convert RLIPv2_tagger.pth --out tagger/ --tokenizer roberta-base
    """
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
