"""A trained network on the pictures of shards, evaluated as the benchmarks do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import numpy as np

from rlip_model.evaluation.inputs import Array, Image, Pairs
from sgpipe.errors import UserError
from sgpipe.evaluation.benchmarks import (
    SPLIT,
    HicoOptions,
    Suppression,
    hico_result,
    open_images_result,
)
from sgpipe.evaluation.classes import data_classes, read_classes
from sgpipe.evaluation.pairs import read_truths
from sgpipe.evaluation.result import EvaluationResult
from sgpipe.evaluation.shard_truth import shard_truth
from sgpipe.predict import Computing, PredictConfig, Task, predict
from sgpipe.predict_rows import PictureRow, Unit, picture_units
from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.hoi import HICO, Numbering, hico_source, read_hoia
from sgpipe.sources.open_images import OpenImages


@dataclass(frozen=True)
class ModelRun(Computing):
    """A network and the pictures it is to be asked about.

    annotations: the benchmark's file; without it, the shards tell what is true. classes: see `read_classes`; without
    it, those of the data.
    """

    model: Path
    data: Path
    split: str | None = None
    images: Path | None = None
    annotations: Path | None = None
    classes: Path | None = None

    def numbering(self) -> Numbering | None:
        """Of the annotations and predictions, if it is not the benchmark's. Raises UserError."""
        return read_classes(self.classes) if self.classes else None

    def config(self, task: Task) -> PredictConfig:
        """Raises UserError: the data has no classes."""
        numbering = self.numbering()
        classes = numbering.classes if numbering else data_classes(self.data)
        how = {each.name: getattr(self, each.name) for each in fields(Computing)}
        return PredictConfig(self.model, classes, task, **how)

    def units(self) -> list[Unit]:
        """Raises UserError: as `picture_units`."""
        return picture_units(self.data, self.split, self.images)


def evaluate_hico_model(run: ModelRun, options: HicoOptions, *, zero_shot: bool = False) -> EvaluationResult:
    """HICO-DET, or as HICO-DET, what a network finds persons do.

    Args:
        zero_shot: leave out pairs whose subject looks like something else, as for networks that were not fine-tuned.

    Raises:
        UserError: an input is missing or wrong.
        EngineError: as `predict`.
    """
    config = run.config("zero-shot hoi" if zero_shot else "hoi")
    if run.annotations is None:
        source = shard_truth(run.data, config.classes, run.split, persons_only=True)
    elif numbering := run.numbering():
        read = partial(read_hoia, run.annotations, numbering, "hico", SPLIT)
        source = AnnotationSource("hico", SPLIT, read, {"annotations": run.annotations}, classes=numbering.classes)
    else:
        _must_be(config, HICO, run)
        source = hico_source(run.annotations, SPLIT)
    return hico_result(ModelImages(source, config, run.units()), config.classes, options, str(run.model))


def evaluate_open_images_model(run: ModelRun, suppression: Suppression) -> EvaluationResult:
    """Open Images V6, or as Open Images, scene graphs that a network finds. Raises UserError, EngineError."""
    config = run.config("scene graph")
    if run.annotations is None:
        source = shard_truth(run.data, config.classes, run.split, persons_only=False)
    else:
        source = OpenImages(run.annotations, SPLIT).source()
        if source.classes != config.classes:
            raise UserError(f"{run.data} has other classes than {run.annotations}; leave out --annotations")
    return open_images_result(ModelImages(source, config, run.units()), config.classes, suppression, str(run.model))


def _must_be(config: PredictConfig, numbering: Numbering, run: ModelRun) -> None:
    if config.classes != numbering.classes:
        raise UserError(
            f"{run.data} has other classes than HICO-DET: leave out --annotations, or give theirs by --classes"
        )


@dataclass
class ModelImages:
    """Annotated images, and what a network finds in them while it is asked. notes: filled by reading."""

    source: AnnotationSource
    config: PredictConfig
    units: Sequence[Unit]
    notes: list[str] = field(default_factory=list)

    def images(self) -> Iterator[Image]:
        """Every annotated image; one whose picture cannot be read, or that the shards lack, has no predictions.

        Raises:
            UserError: an input is missing or wrong, a picture is not annotated, or none can be read.
        """
        truths, seen = read_truths(self.source), set[str]()
        for row, pairs in readable(self.config, self.units, self.notes):
            name = row.file_name
            if name not in truths:
                raise UserError(f"picture {name!r} is not in {self.source.files['annotations']}")
            if name in seen:
                raise UserError(f"picture {name!r} is there twice; choose a split by --split")
            seen.add(name)
            yield Image(name, truths[name], pairs)
        if missing := len(truths) - len(seen):
            self.notes.append(f"{missing:,} of {len(truths):,} annotated images have no predictions: all missed")
        nothing = _nothing(len(self.config.classes.relations))
        yield from (Image(name, truth, nothing) for name, truth in truths.items() if name not in seen)


def readable(config: PredictConfig, units: Sequence[Unit], notes: list[str]) -> Iterator[tuple[PictureRow, Pairs]]:
    """What is found in the pictures that can be read; how many cannot is noted.

    Raises: as `predict`, and UserError: none can be read.
    """
    count, failed = 0, list[str]()
    for found in predict(config, units):
        if found.pairs is None:
            failed.append(found.error or "")
        else:
            count += 1
            yield found.row, found.pairs
    if not count:
        raise UserError(f"no picture could be read: {failed[0] if failed else 'there is none'}")
    if failed:
        notes.append(f"{len(failed):,} rows have no picture that could be read; the first: {failed[0]}")


def _nothing(num_predicates: int) -> Pairs:
    boxes, labels = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=int)
    scores: Array = np.zeros((0, num_predicates), dtype=np.float32)
    return Pairs(boxes, boxes, labels, labels, scores)
