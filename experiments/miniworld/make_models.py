"""Train the models of the miniworld from scratch: `python -m experiments.miniworld.make_models
--out FOLDER`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
import yaml
from rich.console import Console

from experiments.command import run_command
from experiments.miniworld.cards import TrainingCost, write_parseda_card, write_tagger_card
from experiments.miniworld.detector_quality import SPLITS, measure_detector, quality_rows
from experiments.miniworld.network_quality import (
    measure_tagger,
    network_recipe,
    print_tables,
    print_tagger_quality,
)
from experiments.miniworld.train_captioner import captioner_recipe, make_captioner
from sgpipe.errors import UserError
from sgpipe.miniworld.dataset import SCENE_GRAPHS, render_dataset
from sgpipe.recipe import PackagedModel
from sgpipe.sources.miniworld import import_graphs
from sgpipe.training.initial_model import CLASSES
from sgpipe.training.run import train
from sgpipe.utils.console import Progress

NETWORKS: tuple[PackagedModel, ...] = ("tagger", "parseda")
TRAIN_IMAGES = 12_000  # for the tagger and the detector


def make_shards(out: Path, split: str, images: int, progress: Progress) -> Path:
    """Shards with the ground truth of the first images of a split, and the images in a folder next
    to them.
    """
    progress.say(f"rendering {images:,} images of {split}")
    dataset = out / f"images-{split}"
    shards = out / f"relations-{split}"
    render_dataset(dataset, images, 0, split)
    import_graphs(dataset / SCENE_GRAPHS, split, shards)
    return shards


def train_network(
    name: PackagedModel, shards: Path, out: Path, folder: Path, progress: Progress
) -> TrainingCost:
    """Train a network with its recipe, and save it in `folder` in half precision, with the recipe.

    The ParSeDA starts from a detector, which is trained before.
    """
    start = time.process_time()
    init = (
        train(network_recipe("detector", shards), out / "detector", progress).network
        if name == "parseda"
        else None
    )
    trained = train(network_recipe(name, shards, init), out / name, progress)
    seconds = time.process_time() - start
    network = CLASSES[network_recipe(name).model.kind].from_pretrained(trained.network)
    network.half().save_pretrained(folder)
    write_recipe(name, folder)
    return TrainingCost(seconds, sum(value.numel() for value in network.parameters()))


def write_recipe(name: PackagedModel, folder: Path) -> None:
    """Write the training recipe, from which `sgpipe predict` takes the image size."""
    settings = network_recipe(name).model_dump(mode="json", exclude={"workers", "output"})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def main(
    out: Annotated[
        Path, typer.Option(help="a new folder; the trained models are saved in its weights/ folder")
    ],
    images: Annotated[int, typer.Option(min=1, help="number of evaluation images per split")] = 500,
    train_images: Annotated[
        int, typer.Option(min=1, help="number of training images for the tagger and the detector")
    ] = TRAIN_IMAGES,
    captioner: Annotated[
        Path | None, typer.Option(help="use this captioner instead of training one")
    ] = None,
) -> None:
    """Train the captioner, the tagger and the detector of the miniworld, evaluate them, and write
    their cards.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} already exists; choose a new folder")
    torch.set_num_threads(1)
    weights = out / "weights"
    progress = Progress(Console(stderr=True))
    console = Console()
    if captioner is None:
        captioner = weights / "captioner"
        make_captioner(captioner_recipe(), captioner, images, progress)
    shards = make_shards(out, "train", train_images, progress)
    costs = {
        name: train_network(name, shards, out / "training", weights / name, progress)
        for name in NETWORKS
    }
    tagger_quality = measure_tagger(captioner, weights / "tagger", network_recipe("tagger"), images)
    print_tagger_quality(tagger_quality, console)
    write_tagger_card(
        weights / "tagger", network_recipe("tagger"), train_images, costs["tagger"], tagger_quality
    )
    recipe = network_recipe("parseda")
    quality = {
        split: measure_detector(weights / "parseda", recipe, split, images) for split in SPLITS
    }
    print_tables(console, quality_rows(quality))
    write_parseda_card(weights / "parseda", recipe, train_images, costs["parseda"], images, quality)


if __name__ == "__main__":
    run_command(main)
