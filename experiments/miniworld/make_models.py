"""TrainingCost the models of the drawn world from nothing: `python -m experiments.miniworld.make_models --out FOLDER`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
import yaml
from rich.console import Console

from experiments.miniworld.cards import TrainingCost, write_parseda_card, write_tagger_card
from experiments.miniworld.network_quality import measure_network, measure_tagger, network_recipe, print_tagger_quality
from experiments.miniworld.train_captioner import captioner_recipe, make_captioner
from sgpipe.errors import UserError
from sgpipe.miniworld.dataset import SCENE_GRAPHS, render_dataset
from sgpipe.miniworld.relations import COMPOSITIONAL
from sgpipe.recipe import PackagedModel
from sgpipe.sources.miniworld import import_graphs
from sgpipe.training.initial_model import CLASSES
from sgpipe.training.run import train, trained_network
from sgpipe.utils.console import Progress, run_command

NETWORKS: tuple[PackagedModel, ...] = ("tagger", "parseda")
TRAIN_IMAGES = 12_000  # of the train split, for the networks


def draw_relations(out: Path, split: str, train_images: int, progress: Progress) -> Path:
    """Shards of the first images of a split; the images lie beside them."""
    progress.say(f"drawing {train_images:,} images of {split}")
    world = out / f"drawn-{split}"
    render_dataset(world, train_images, 0, split)
    import_graphs(world / SCENE_GRAPHS, split, out / f"relations-{split}")
    return out / f"relations-{split}"


def train_network(name: PackagedModel, shards: Path, out: Path, folder: Path, progress: Progress) -> TrainingCost:
    """Train a network by its recipe and save it in `folder`, in half precision, with the recipe beside it."""
    began = time.process_time()
    train(network_recipe(name, shards), out, progress)
    seconds = time.process_time() - began
    network = CLASSES[network_recipe(name).model.kind].from_pretrained(trained_network(out))
    network.half().save_pretrained(folder)
    write_recipe(name, folder)
    return TrainingCost(seconds, sum(value.numel() for value in network.parameters()))


def write_recipe(name: PackagedModel, folder: Path) -> None:
    """From it `sgpipe predict` knows how large the network's images were."""
    settings = network_recipe(name).model_dump(mode="json", exclude={"workers", "output"})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def main(
    out: Annotated[Path, typer.Option(help="a new folder; weights/ in it holds the trained models in the end")],
    images: Annotated[int, typer.Option(min=1, help="images of each split to measure the models on")] = 500,
    train_images: Annotated[int, typer.Option(min=1, help="of the train split, for the networks")] = TRAIN_IMAGES,
    captioner: Annotated[Path | None, typer.Option(help="a captioner to use, instead of training one")] = None,
) -> None:
    """Train the captioner, the tagger and the detector of the drawn world, measure them, and write their cards."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists already; name a new folder")
    torch.set_num_threads(1)
    weights, progress, console = out / "weights", Progress(Console(stderr=True)), Console()
    if captioner is None:
        captioner = weights / "captioner"
        make_captioner(captioner_recipe(), captioner, images, progress)
    shards = draw_relations(out, "train", train_images, progress)
    making = {
        name: train_network(name, shards, out / f"training-{name}", weights / name, progress) for name in NETWORKS
    }
    found = measure_tagger(captioner, weights / "tagger", network_recipe("tagger"), images)
    print_tagger_quality(found, console)
    write_tagger_card(weights / "tagger", network_recipe("tagger"), train_images, making["tagger"], found)
    detected = {
        split: measure_network(
            weights / "parseda", network_recipe("parseda"), draw_relations(out, split, images, progress)
        )
        for split in ("val", COMPOSITIONAL)
    }
    for split, values in detected.items():
        console.print(f"ParSeDA on {split}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
    write_parseda_card(
        weights / "parseda", network_recipe("parseda"), train_images, making["parseda"], images, detected
    )


if __name__ == "__main__":
    run_command(main)
