"""Evaluate a tagger of the miniworld: `python -m experiments.miniworld.network_quality`.

The whole pipeline labels images that were not used for training, with captions of the tiny BLIP and
with the miniworld's own captions ("oracle"). The labels are compared with the exact ground truth:
once with every relation that holds in an image ("all"), once with those that it was composed to
show ("composed"), from which the others follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, get_args

import torch
import typer
from rich.console import Console
from rich.table import Table

from experiments.command import run_command
from experiments.miniworld.quality_lines import Line, append_lines
from rlip_model.training.sampling import LabelVocabulary
from rlip_model.training.validation import RelationScores, score_batches
from sgpipe.evaluation.graphs import Source
from sgpipe.evaluation.label_quality import ALL_PAIRS, LABELS, LabelQuality, label_quality
from sgpipe.generation.run import generate
from sgpipe.miniworld.relations import COMPOSITIONAL, PREDICATES
from sgpipe.recipe import PackagedModel, load_recipe, packaged_model
from sgpipe.records import TRAINING_CONFIDENCE
from sgpipe.storage.run_folder import GroundTruth, ground_truth_of
from sgpipe.training.data.scan import scan_training
from sgpipe.training.initial_model import CLASSES
from sgpipe.training.job import TrainingJob, make_feed, make_objective
from sgpipe.training.recipe import ShardsConfig, TrainRecipe, load_train_recipe
from sgpipe.utils.config_file import recipe_folder
from sgpipe.utils.console import Progress

CaptionSource = Literal["BLIP", "oracle"]
Truth = Literal["all", "composed"]
TRUTHS: tuple[Truth, ...] = get_args(Truth)
SPLITS = ("val", COMPOSITIONAL)
ANY_PAIR = "labels, any pair"  # with `pair.candidates: image`
THRESHOLDS = (TRAINING_CONFIDENCE, 0.5)


@dataclass(frozen=True)
class PipelineQuality:
    """The quality of the labels of a split, by source of the captions and kind of labels, against
    each truth.
    """

    split: str
    captions: CaptionSource
    labels: str
    by_truth: Mapping[Truth, LabelQuality]

    @property
    def thresholds(self) -> tuple[float, ...]:
        """From which confidences on labels count; candidates have none."""
        return THRESHOLDS[:1] if self.labels == ALL_PAIRS else THRESHOLDS


@dataclass(frozen=True)
class TaggerQuality:
    """The quality of whole pipelines, and the average precision on given pairs by split; see
    `measure_network`.
    """

    images: int
    rows: tuple[PipelineQuality, ...]
    given_pairs: dict[str, float]


def measure_tagger(
    captioner: Path, tagger: Path, recipe: TrainRecipe, images: int, seed: int = 0
) -> TaggerQuality:
    """Label the first images of the val and the compositional split.

    Args:
        captioner, tagger: their folders.
        recipe: the training recipe of the tagger.

    Raises UserError, EngineError: as `generate`.
    """
    rows: list[PipelineQuality] = []
    given_pairs = {}
    sources: tuple[CaptionSource, ...] = ("BLIP", "oracle")
    for split, captions in product(SPLITS, sources):
        with _labelled(
            captioner if captions == "BLIP" else None, tagger, split, images, seed
        ) as run:
            rows.append(
                PipelineQuality(split, captions, LABELS, quality_by_truth(run, "relations"))
            )
            rows.append(
                PipelineQuality(split, captions, ALL_PAIRS, quality_by_truth(run, "candidates"))
            )
            truth = ground_truth_of(run)
            if captions == "oracle" and truth and isinstance(truth.relations, Path):
                given_pairs[split] = measure_network(tagger, recipe, truth.relations)["ap"]
    for split in SPLITS:
        with _labelled(captioner, tagger, split, images, seed, "image") as run:
            rows.append(
                PipelineQuality(split, "BLIP", ANY_PAIR, quality_by_truth(run, "relations"))
            )
    return TaggerQuality(images, tuple(rows), given_pairs)


def quality_by_truth(
    run: Path, source: Source, ground_truth: GroundTruth | None = None
) -> dict[Truth, LabelQuality]:
    """Compare the relations or the candidates of a run with each truth of its images.

    Args:
        ground_truth: all relations and, as the required ones, the composed ones; None: that of the
            run.
    """
    ground_truth = ground_truth or ground_truth_of(run)
    assert ground_truth is not None
    assert ground_truth.required is not None
    folders = (ground_truth.relations, ground_truth.required)
    return {
        truth: label_quality(run, GroundTruth(folder), source=source, threshold=TRAINING_CONFIDENCE)
        for truth, folder in zip(TRUTHS, folders, strict=True)
    }


def measure_network(network: Path, recipe: TrainRecipe, shards: Path) -> dict[str, float]:
    """The measures of the relations that a network finds in these shards, see `score_network`."""
    return score_network(network, recipe, shards).measures()


def score_network(network: Path, recipe: TrainRecipe, shards: Path) -> RelationScores:
    """The scores of the relations that a network finds in these shards, as in validation.

    All predicates of the miniworld are scored. A tagger gets all pairs of an image, up to half its
    number of queries, related pairs first.

    Raises UserError: as `scan_training`.
    """
    part = (ShardsConfig(shards=shards),)
    data = recipe.data.model_copy(update={"train": part, "val": part, "limit": None})
    recipe = recipe.model_copy(update={"data": data})
    training_set = scan_training(data)
    counts = dict(zip(training_set.relations.names, training_set.relations.counts, strict=True))
    training_set = replace(
        training_set,
        relations=LabelVocabulary.from_counts({**dict.fromkeys(PREDICATES, 1), **counts}),
    )
    model = CLASSES[recipe.model.kind].from_pretrained(network)
    feed = make_feed(TrainingJob(recipe, shards, training_set, training_set), model, 0, 1)
    validation = feed.validation()
    assert validation is not None
    with validation as batches:
        return score_batches(make_objective(model, recipe), batches, torch.device("cpu"))[0]


@contextmanager
def _labelled(
    captioner: Path | None,
    tagger: Path,
    split: str,
    images: int,
    seed: int,
    candidates: str = "captions",
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
        generate(
            load_recipe("miniworld", overrides),
            Path(folder) / "run",
            Progress(Console(stderr=True)),
        )
        yield Path(folder) / "run"


def quality_lines(quality: TaggerQuality) -> list[Line]:
    """Return one line for each pipeline, threshold and truth."""
    lines = []
    for row in quality.rows:
        pipeline = {"split": row.split, "captions": row.captions, "labels": row.labels}
        lines += [{**pipeline, **line} for line in lines_by_truth(row.by_truth, row.thresholds)]
    return lines


def lines_by_truth(
    by_truth: Mapping[Truth, LabelQuality], thresholds: Sequence[float] = THRESHOLDS
) -> Iterator[Line]:
    """Yield the measures of labels from each threshold on, against each truth."""
    for threshold, (truth, quality) in product(thresholds, by_truth.items()):
        at_threshold = quality.at(threshold)
        yield {
            "threshold": threshold,
            "truth": truth,
            "predicted": at_threshold.predicted,
            "precision": at_threshold.precision,
            "recall": at_threshold.recall,
            "AP": quality.average_precision,
        }


def quality_rows(quality: TaggerQuality) -> list[list[str]]:
    """Table cells; the first row is the header."""
    measures = [
        f"{truth}: {measure}" for truth in TRUTHS for measure in ("precision", "recall", "AP")
    ]
    rows = [["images", "captions", "labels", "from", "predicted", *measures]]
    for row in quality.rows:
        for threshold in row.thresholds:
            rows.append(_quality_row(row, threshold))
    return rows


def _quality_row(row: PipelineQuality, threshold: float) -> list[str]:
    split = row.split.removeprefix("test-")
    predicted = row.by_truth["all"].at(threshold).predicted
    cells = [split, row.captions, row.labels, f"{threshold:g}", f"{predicted:,}"]
    for truth in TRUTHS:
        quality = row.by_truth[truth]
        at_threshold = quality.at(threshold)
        cells += [
            f"{at_threshold.precision:.1%}",
            f"{at_threshold.recall:.1%}",
            f"{quality.average_precision:.3f}",
        ]
    return cells


def predicate_rows(quality: TaggerQuality) -> list[list[str]]:
    """Table cells by predicate, for the first pipeline against all relations; the first row is the
    header.
    """
    rows = [["predicate", "predicted", "precision", "targets", "recall"]]
    for row in sorted(
        quality.rows[0].by_truth["all"].predicates, key=lambda row: -row.quality.targets
    ):
        measures = row.quality
        precision = f"{measures.precision:.1%}" if measures.predicted else ""
        recall = f"{measures.recall:.1%}" if measures.targets else ""
        rows.append(
            [row.predicate, f"{measures.predicted}", precision, f"{measures.targets}", recall]
        )
    return rows


def print_tables(console: Console, *tables: list[list[str]]) -> None:
    """Print tables of cells, whose first rows are headers."""
    # a narrow terminal breaks lines instead of hiding figures
    console.width = max(console.width, 180)
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
    """The training recipe of a network of the miniworld, on these shards, from the network
    `init`.
    """
    overrides: dict[str, Any] = {"data.train": [{"shards": shards}]} if shards else {}
    overrides |= {"model.init": str(init)} if init else {}
    return load_train_recipe(str(recipe_folder() / "miniworld" / f"{name}.yaml"), overrides)


def main(
    captioner: Annotated[
        Path | None, typer.Option(help="folder of the captioner; default: the packaged one")
    ] = None,
    tagger: Annotated[
        Path | None, typer.Option(help="folder of the tagger; default: the packaged one")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="number of images per split")] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    results: Annotated[
        Path | None, typer.Option(help="append the figures to this file, as JSON lines")
    ] = None,
) -> None:
    """Print the quality of labels of the miniworld."""
    captioner = captioner or packaged_model("captioner")
    tagger = tagger or packaged_model("tagger")
    quality = measure_tagger(captioner, tagger, network_recipe("tagger"), images, seed)
    print_tagger_quality(quality, Console())
    if results:
        append_lines(results, "network_quality", images, seed, quality_lines(quality))


if __name__ == "__main__":
    run_command(main)
