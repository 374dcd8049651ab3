"""Evaluate a tagger of the miniworld: `python -m experiments.miniworld.network_quality`.

The whole pipeline labels images that were not used for training, with captions of the tiny BLIP and with the
miniworld's own captions ("oracle"). The labels are compared with the exact ground truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table

from experiments.command import run_command
from rlip_model.training.sampling import LabelVocabulary
from rlip_model.training.validation import RelationScores, score_batches
from sgpipe.evaluation.label_quality import ALL_PAIRS, LABELS, LabelQuality, run_quality
from sgpipe.generation.run import generate
from sgpipe.miniworld.relations import COMPOSITIONAL, PREDICATES
from sgpipe.recipe import PackagedModel, load_recipe, packaged_model
from sgpipe.storage.run_folder import ground_truth_of
from sgpipe.training.data.scan import scan_training
from sgpipe.training.initial_model import CLASSES
from sgpipe.training.job import TrainingJob, make_feed, make_objective
from sgpipe.training.recipe import ShardsConfig, TrainRecipe, load_train_recipe
from sgpipe.utils.config_file import recipe_folder
from sgpipe.utils.console import Progress

CaptionSource = Literal["BLIP", "oracle"]
ANY_PAIR, ANY_PAIR_THRESHOLD = "labels, any pair", 0.5  # with `pair.candidates: image`


@dataclass(frozen=True)
class PipelineQuality:
    """The quality of the labels of a split, by source of the captions and kind of labels."""

    split: str
    captions: CaptionSource
    labels: str
    quality: LabelQuality


@dataclass(frozen=True)
class TaggerQuality:
    """The quality of whole pipelines, and the average precision on given pairs by split; see `measure_network`."""

    images: int
    rows: tuple[PipelineQuality, ...]
    given_pairs: dict[str, float]


def measure_tagger(captioner: Path, tagger: Path, recipe: TrainRecipe, images: int, seed: int = 0) -> TaggerQuality:
    """Label the first images of the val and the compositional split.

    Args:
        captioner, tagger: their folders.
        recipe: the training recipe of the tagger.

    Raises UserError, EngineError: as `generate`.
    """
    rows: list[PipelineQuality] = []
    given_pairs = {}
    sources: tuple[CaptionSource, ...] = ("BLIP", "oracle")
    for split, captions in product(("val", COMPOSITIONAL), sources):
        with _labelled(captioner if captions == "BLIP" else None, tagger, split, images, seed) as run:
            quality = run_quality(run)
            rows += [PipelineQuality(split, captions, name, quality[name]) for name in (LABELS, ALL_PAIRS)]
            truth = ground_truth_of(run)
            if captions == "oracle" and truth and isinstance(truth.relations, Path):
                given_pairs[split] = measure_network(tagger, recipe, truth.relations)["ap"]
    for split in ("val", COMPOSITIONAL):
        with _labelled(captioner, tagger, split, images, seed, "image") as run:
            quality = run_quality(run, ANY_PAIR_THRESHOLD)
            rows.append(PipelineQuality(split, "BLIP", ANY_PAIR, quality[LABELS]))
    return TaggerQuality(images, tuple(rows), given_pairs)


def measure_network(network: Path, recipe: TrainRecipe, shards: Path) -> dict[str, float]:
    """The measures of the relations that a network finds in these shards, see `score_network`."""
    return score_network(network, recipe, shards).measures()


def score_network(network: Path, recipe: TrainRecipe, shards: Path) -> RelationScores:
    """The scores of the relations that a network finds in these shards, as in validation.

    All predicates of the miniworld are scored. A tagger gets all pairs of an image, up to half its number of queries,
    related pairs first.

    Raises UserError: as `scan_training`.
    """
    part = (ShardsConfig(shards=shards),)
    data = recipe.data.model_copy(update={"train": part, "val": part, "limit": None})
    recipe = recipe.model_copy(update={"data": data})
    found = scan_training(data)
    counts = dict(zip(found.relations.names, found.relations.counts, strict=True))
    found = replace(found, relations=LabelVocabulary.from_counts({**dict.fromkeys(PREDICATES, 1), **counts}))
    model = CLASSES[recipe.model.kind].from_pretrained(network)
    feed = make_feed(TrainingJob(recipe, shards, found, found), model, 0, 1)
    validation = feed.validation()
    assert validation is not None
    with validation as batches:
        return score_batches(make_objective(model, recipe), batches, torch.device("cpu"))[0]


@contextmanager
def _labelled(
    captioner: Path | None, tagger: Path, split: str, images: int, seed: int, candidates: str = "captions"
) -> Iterator[Path]:
    """A temporary run with threshold 0, which keeps all scores."""
    overrides: dict[str, Any] = {
        "source.miniworld": {"images": images, "seed": seed, "split": split},
        "caption.captioner": captioner and str(captioner),
        "tag.tagger": str(tagger),
        "tag.threshold": 0,
        "pair.candidates": candidates,
    }
    with TemporaryDirectory() as folder:
        generate(load_recipe("miniworld", overrides), Path(folder) / "run", Progress(Console(stderr=True)))
        yield Path(folder) / "run"


def quality_rows(quality: TaggerQuality) -> list[list[str]]:
    """Table cells; the first row is the header."""
    return [
        ["images", "captions", "labels", "predicted", "precision", "recall", "AP"],
        *(
            [row.split.removeprefix("test-"), row.captions, row.labels, f"{row.quality.at_threshold.predicted:,}"]
            + [f"{value:.1%}" for value in (row.quality.at_threshold.precision, row.quality.at_threshold.recall)]
            + [f"{row.quality.average_precision:.3f}"]
            for row in quality.rows
        ),
    ]


def predicate_rows(quality: TaggerQuality) -> list[list[str]]:
    """Table cells by predicate, for the first pipeline; the first row is the header."""
    rows = [["predicate", "predicted", "precision", "targets", "recall"]]
    for row in sorted(quality.rows[0].quality.predicates, key=lambda row: -row.quality.targets):
        own = row.quality
        precision = f"{own.precision:.1%}" if own.predicted else ""
        recall = f"{own.recall:.1%}" if own.targets else ""
        rows.append([row.predicate, f"{own.predicted}", precision, f"{own.targets}", recall])
    return rows


def print_tables(console: Console, *tables: list[list[str]]) -> None:
    """Print tables of cells, whose first rows are headers."""
    console.width = max(console.width, 140)  # a narrow terminal breaks lines instead of hiding figures
    for head, *body in tables:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in head:
            table.add_column(name, no_wrap=True)
        for row in body:
            table.add_row(*row)
        console.print(table, "")


def print_tagger_quality(quality: TaggerQuality, console: Console) -> None:
    print_tables(console, quality_rows(quality), predicate_rows(quality))
    for split, value in quality.given_pairs.items():
        console.print(f"{split}: average precision on given pairs: {value:.3f}", highlight=False)


def network_recipe(
    name: PackagedModel | Literal["detector"], shards: Path | None = None, init: Path | None = None
) -> TrainRecipe:
    """The training recipe of a network of the miniworld, on these shards, from the network `init`."""
    overrides: dict[str, Any] = {"data.train": [{"shards": shards}]} if shards else {}
    overrides |= {"model.init": str(init)} if init else {}
    return load_train_recipe(str(recipe_folder() / "miniworld" / f"{name}.yaml"), overrides)


def main(
    captioner: Annotated[Path | None, typer.Option(help="folder of the captioner; default: the packaged one")] = None,
    tagger: Annotated[Path | None, typer.Option(help="folder of the tagger; default: the packaged one")] = None,
    images: Annotated[int, typer.Option(min=1, help="number of images per split")] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Print the quality of labels of the miniworld."""
    folders = captioner or packaged_model("captioner"), tagger or packaged_model("tagger")
    print_tagger_quality(measure_tagger(*folders, network_recipe("tagger"), images, seed), Console())


if __name__ == "__main__":
    run_command(main)
