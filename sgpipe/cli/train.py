"""`sgpipe train`: a tagger, a detector or a layout model, from shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from sgpipe.training.recipe import DataConfig, TrainRecipe

LAYOUT = "layout"  # what `train` makes without a recipe


@dataclass(frozen=True, kw_only=True)
class ShardsOptions:
    """The data of a training, instead of that of the recipe."""

    data: Annotated[
        list[str] | None,
        declare.option("Shards: FOLDER, FOLDER@WEIGHT. Repeatable.", panel=declare.DATA),
    ] = None
    val: Annotated[
        list[str] | None, declare.option("Shards to validate on. Repeatable.", panel=declare.DATA)
    ] = None
    judgements: Annotated[
        list[str] | None,
        declare.option("Judged run, for a tagger. Repeatable.", panel=declare.DATA),
    ] = None
    images: cli.MovedImages = None
    calibration: cli.CalibrationFile = None
    precision: cli.ExpectedPrecision = None
    certified: cli.Certified = False

    def _train_shards(self, data: DataConfig) -> list[dict[str, object]] | None:
        """Return the shards to train on; None: those of the recipe."""
        from sgpipe.training.recipe import shards_options

        if not self.data and not self.judgements:
            return None
        train = [shards.model_dump() for shards in data.train]
        if self.data:
            train = shards_options(self.data, self.images)
        for shards in shards_options(self.judgements or (), self.images):
            train.append(shards | {"judged": True})
        return train

    def applied_to(self, data: DataConfig, limit: int | None) -> DataConfig:
        from sgpipe.training.recipe import shards_options
        from sgpipe.utils.config_file import changed

        settings = changed(
            data,
            train=self._train_shards(data),
            val=shards_options(self.val, self.images) if self.val else None,
            calibration=self.calibration,
            precision=self.precision,
            limit=limit,
        )
        if not self.certified:
            return settings
        if settings.calibration is not None:
            raise UserError("--certified chooses the relations: leave out --calibration")
        runs = [part.shards for part in settings.train if not part.judged]
        return changed(settings, threshold=cli.certified_threshold(runs))


def train(
    *,
    recipe: Annotated[
        str,
        typer.Argument(help="Packaged recipe (tagger, pretrain, hico …), layout, or YAML file."),
    ],
    out: Annotated[
        Path | None, declare.writes_folder("Folder for the model; a training in it is resumed.")
    ] = None,
    shards: ShardsOptions,
    init: Annotated[
        str | None,
        declare.reads_model(
            "Model to start from: folder, store, hub id, official .pth or miniworld."
        ),
    ] = None,
    miniature: Annotated[
        bool, declare.option("A small model, for a laptop.", "--miniature", panel=declare.MODELS)
    ] = False,
    epochs: Annotated[int | None, declare.option("Passes over the training data.", min=1)] = None,
    steps: Annotated[
        int | None, declare.option("Steps to train, instead of --epochs.", min=1)
    ] = None,
    batch: Annotated[
        int | None, declare.option("Images per step, over all workers.", min=1)
    ] = None,
    limit: cli.Limit = None,
    seed: cli.Seed = None,
    workers: Annotated[
        int | None, declare.option("Processes; Ray starts several.", min=1, panel=declare.COMPUTE)
    ] = None,
    gpus: Annotated[
        float | None,
        declare.option("GPUs per worker, 0 to 1.", min=0, max=1, panel=declare.COMPUTE),
    ] = None,
    ray_address: cli.RayAddress = None,
    plan: Annotated[
        bool, declare.option("Measure a few steps: time, memory, days. Writes nothing.", "--plan")
    ] = False,
    assign: cli.Settings = None,
    json_: cli.Json = False,
) -> None:
    """Train a tagger, a detector or a layout model on shards.

    A layout model (`layout`) learns in seconds to minutes from boxes and
    annotated relations; no image is opened.

    Examples:
      sgpipe train layout --data vg/ --out layout-model/
      sgpipe train tagger --data vg/ --init detector/ --out tagger/
      sgpipe train tagger --miniature --data miniworld-relations/ --out small-tagger/
      sgpipe train tagger --data vg/ --judgements run/ --init detector/ --out tagger/
      sgpipe train one-gpu/tagger --data vg/ --init detector/ --plan
    """
    from sgpipe.training.recipe import load_train_recipe
    from sgpipe.utils.config_file import changed, parse_set

    if out is None and not plan:
        raise UserError("pass --out, the folder for the model, or --plan")
    if recipe == LAYOUT and out is not None:
        networks_only = {
            "--init": init,
            "--miniature": miniature,
            "--steps": steps,
            "--batch": batch,
            "--set": assign,
            "--workers": workers,
            "--gpus": gpus,
            "--ray-address": ray_address,
            "--plan": plan,
        }
        _refuse_options_of_networks(networks_only, shards)
        _train_layout(out, shards.data, limit=limit, seed=seed, epochs=epochs, json_=json_)
        return
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
    if out is None or plan:
        _plan(loaded, json_)
    else:
        _train(loaded, out, json_)


def _plan(recipe: TrainRecipe, json_: bool) -> None:
    from sgpipe.training import run  # it imports PyTorch

    training = run.plan_training(recipe, console.Progress())
    if not cli.printed_json(json_, asdict(training)):
        run.print_training_plan(training, console.output())


def _train(recipe: TrainRecipe, out: Path, json_: bool) -> None:
    from sgpipe.training import run  # it imports PyTorch
    from sgpipe.training.metrics import print_training

    summary = run.train(recipe, out, console.Progress())
    network = out / summary.network.name
    if cli.printed_json(json_, {**asdict(summary), "out": str(out), "network": str(network)}):
        return
    option = "--tagger" if summary.kind == "tagger" else "--init"
    print_training(summary, f"saved the model; use it with {option} {network}", console.output())


def _refuse_options_of_networks(options: Mapping[str, object], shards: ShardsOptions) -> None:
    """Refuse options that a layout model does not use.

    Raises:
        UserError: an option is given that a layout model does not use.
    """
    unused = dict(options)
    for name, value in vars(shards).items():
        unused[f"--{name}"] = value
    unused.pop("--data")
    for name, value in unused.items():
        if value:
            raise UserError(
                f"train layout takes --data, --out, --limit, --seed and --epochs: omit {name}"
            )


def _train_layout(
    out: Path,
    data: list[str] | None,
    *,
    limit: int | None,
    seed: int | None,
    epochs: int | None,
    json_: bool,
) -> None:
    from sgpipe.training.layout import train_layout

    if not data:
        raise UserError("train layout needs --data, a run or import with relations")
    trained = train_layout(
        data, out, console.Progress(), limit=limit, seed=seed or 0, epochs=epochs
    )
    if cli.printed_json(json_, {**asdict(trained), "out": str(out)}):
        return
    rows = {
        "images with relations": f"{trained.images:,} of {trained.of_images:,}",
        "pairs": f"{trained.pairs:,}",
        "predicates": f"{trained.predicates:,}",
        "time": console.duration(trained.seconds),
    }
    if trained.precision is not None and trained.recall is not None:
        held_out = f"pairs of {count(trained.held_out, 'image')} held out, at probability 0.5"
        rows[held_out] = f"precision {trained.precision:.1%}, recall {trained.recall:.1%}"
    console.print_rows("layout model", rows, console.output())
    cli.show(f"saved the model; use it with --tagger {out}")
