"""How good a tagger of the drawn world is: `python -m experiments.miniworld.network_quality`.

Images that no training has seen are labelled by the whole pipeline, with captions of the tiny BLIP and with the
captions that the world itself writes, and the labels compared with the truth.
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

from rlip_model.training.sampling import LabelVocabulary
from rlip_model.training.validation import validate
from sgpipe.evaluation.label_quality.comparison import LabelQuality
from sgpipe.evaluation.label_quality.report import ALL_PAIRS, LABELS, run_quality
from sgpipe.generation.run import generate
from sgpipe.miniworld.relations import COMPOSITIONAL, PREDICATES
from sgpipe.recipe import PackagedModel, load_recipe, packaged_model
from sgpipe.storage.run_folder import RunFolder
from sgpipe.training.data.scan import scan_training
from sgpipe.training.initial_model import CLASSES
from sgpipe.training.job import TrainingJob, make_feed, make_objective
from sgpipe.training.recipe import ShardsConfig, TrainRecipe, load_train_recipe
from sgpipe.utils.config_file import recipe_folder
from sgpipe.utils.console import Progress, run_command

Captions = Literal["BLIP", "oracle"]


@dataclass(frozen=True)
class PipelineQuality:
    """One way to label the images of a split, and what its labels are worth."""

    split: str
    captions: Captions
    labels: str
    quality: LabelQuality


@dataclass(frozen=True)
class TaggerQuality:
    """Rows of whole pipelines, and the average precision by split where pairs are given; see `measure_network`."""

    images: int
    rows: tuple[PipelineQuality, ...]
    given: dict[str, float]


def measure_tagger(captioner: Path, tagger: Path, recipe: TrainRecipe, images: int, seed: int = 0) -> TaggerQuality:
    """Label the first images of the val and the compositional split.

    Args:
        captioner, tagger: their folders.
        recipe: the tagger's training.

    Raises UserError, EngineError: as `generate`.
    """
    rows: list[PipelineQuality] = []
    given = {}
    ways: tuple[Captions, ...] = ("BLIP", "oracle")
    for split, captions in product(("val", COMPOSITIONAL), ways):
        with _labelled(captioner if captions == "BLIP" else None, tagger, split, images, seed) as run:
            found = run_quality(run)
            rows += [PipelineQuality(split, captions, name, found[name]) for name in (LABELS, ALL_PAIRS)]
            truth = RunFolder(run).ground_truth
            if captions == "oracle" and truth:
                given[split] = measure_network(tagger, recipe, truth.relations)["ap"]
    return TaggerQuality(images, tuple(rows), given)


def measure_network(network: Path, recipe: TrainRecipe, shards: Path) -> dict[str, float]:
    """What the validation of a training would say of a network on these shards; see `validation.validate`.

    All predicates of the world are asked for. A tagger is given all pairs of an image, up to half as many as it has
    queries, those that are related first.

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
    batches = feed.validation()
    assert batches is not None
    with batches:
        return validate(make_objective(model, recipe), batches, torch.device("cpu"))


@contextmanager
def _labelled(captioner: Path | None, tagger: Path, split: str, images: int, seed: int) -> Iterator[Path]:
    """The folder of a run that keeps every score."""
    overrides: dict[str, Any] = {
        "source.drawn": {"images": images, "seed": seed, "split": split},
        "caption.captioner": captioner and str(captioner),
        "tag.tagger": str(tagger),
        "tag.threshold": 0,
    }
    with TemporaryDirectory() as folder:
        generate(load_recipe("miniworld", overrides), Path(folder) / "run", Progress(Console(stderr=True)))
        yield Path(folder) / "run"


def quality_rows(found: TaggerQuality) -> list[list[str]]:
    """The figures as cells, the first row their heads."""
    return [
        ["images", "captions", "labels", "said", "precision", "recall", "AP"],
        *(
            [row.split.removeprefix("test-"), row.captions, row.labels, f"{row.quality.at_threshold.predicted:,}"]
            + [f"{value:.1%}" for value in (row.quality.at_threshold.precision, row.quality.at_threshold.recall)]
            + [f"{row.quality.average_precision:.3f}"]
            for row in found.rows
        ),
    ]


def predicate_rows(found: TaggerQuality) -> list[list[str]]:
    """The figures of the first row by predicate, as cells, the first row their heads."""
    rows = [["predicate", "relations", "precision", "wanted", "recall"]]
    for row in sorted(found.rows[0].quality.predicates, key=lambda row: -row.quality.wanted):
        own = row.quality
        precision, recall = (f"{v:.1%}" if n else "" for v, n in ((own.precision, own.said), (own.recall, own.wanted)))
        rows.append([row.predicate, f"{own.said}", precision, f"{own.wanted}", recall])
    return rows


def print_tagger_quality(found: TaggerQuality, console: Console) -> None:
    for head, *body in (quality_rows(found), predicate_rows(found)):
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in head:
            table.add_column(name, no_wrap=True)
        for row in body:
            table.add_row(*row)
        console.print(table, "")
    for split, value in found.given.items():
        console.print(f"{split}: average precision where pairs are given: {value:.3f}", highlight=False)


def network_recipe(name: PackagedModel, shards: Path | None = None) -> TrainRecipe:
    """How a packaged network is trained, on these shards."""
    overrides = {"data.train": [{"shards": shards}]} if shards else {}
    return load_train_recipe(str(recipe_folder() / "miniworld" / f"{name}.yaml"), overrides)


def main(
    captioner: Annotated[Path | None, typer.Option(help="its folder; by default the packaged one")] = None,
    tagger: Annotated[Path | None, typer.Option(help="its folder; by default the packaged one")] = None,
    images: Annotated[int, typer.Option(min=1, help="of each split")] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Print how good labels of the drawn world are."""
    folders = captioner or packaged_model("captioner"), tagger or packaged_model("tagger")
    found = measure_tagger(*folders, network_recipe("tagger"), images, seed)
    print_tagger_quality(found, Console())


if __name__ == "__main__":
    run_command(main)
