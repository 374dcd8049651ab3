"""Annotated and predicted scene graphs of Visual Genome, one JSON object per image, joined by `image_id`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import EvaluationError, table
from rlip_model.evaluation.visual_genome import VG150_PREDICATES, GraphImage, GroundTruthGraph, PredictedGraph
from sgpipe.errors import UserError
from sgpipe.sources.annotated import FieldError, parse_id, required_field
from sgpipe.utils.json_stream import JsonStream


@dataclass
class GraphFiles:
    """An annotation file and a prediction file; reading fills `notes`."""

    annotations: Path
    predictions: Path
    num_predicates: int = len(VG150_PREDICATES)
    notes: list[str] = field(default_factory=list)

    def images(self) -> Iterator[GraphImage]:
        """The annotated images that have predictions, in the order of the predictions.

        Raises:
            UserError: a file is missing or invalid, or a predicted image is not annotated.
        """
        annotated = read_graphs(self.annotations)
        seen: set[str] = set()
        for name, item in _items(self.predictions):
            if name not in annotated:
                raise UserError(f"{self.predictions}: image {name} is not in {self.annotations}")
            if name in seen:
                raise UserError(f"{self.predictions}: image {name} occurs twice; remove one")
            seen.add(name)
            yield GraphImage(f"image {name}", annotated[name], self._prediction(name, item))
        if not seen:
            raise UserError(f"{self.predictions} contains no predictions")
        if missing := len(annotated) - len(seen):
            self.notes.append(
                f"no predictions for {missing:,} of {len(annotated):,} annotated images: left out (official protocol)"
            )

    def _prediction(self, name: str, item: Mapping[str, Any]) -> PredictedGraph:
        try:
            return PredictedGraph(
                table(required_field(item, "boxes"), (-1, 4), np.float32),
                table(required_field(item, "labels"), (-1,), int),
                table(required_field(item, "scores"), (-1,), np.float32),
                table(required_field(item, "pairs"), (-1, 2), int),
                table(required_field(item, "predicate_scores"), (-1, 1 + self.num_predicates), np.float32),
            )
        except (FieldError, EvaluationError) as error:
            raise UserError(f"{self.predictions}: image {name}: {error}") from None


def read_graphs(annotations: Path) -> dict[str, GroundTruthGraph]:
    """The annotated scene graphs by image id.

    Raises UserError: the file is missing, invalid or empty, or an image occurs twice.
    """
    annotated: dict[str, GroundTruthGraph] = {}
    for name, item in _items(annotations):
        if name in annotated:
            raise UserError(f"{annotations}: image {name} occurs twice; remove one")
        annotated[name] = _graph(annotations, name, item)
    if not annotated:
        raise UserError(f"{annotations} contains no images")
    return annotated


def _items(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for _, item in JsonStream(path):
        name = parse_id(item.get("image_id")) if isinstance(item, dict) else None
        if name is None:
            raise UserError(f"{path}: an item has no 'image_id'; expected a list of objects, one per image")
        yield name, item


def _graph(path: Path, name: str, item: Mapping[str, Any]) -> GroundTruthGraph:
    try:
        return GroundTruthGraph(
            table(required_field(item, "boxes"), (-1, 4), np.float32),
            table(required_field(item, "labels"), (-1,), int),
            table(required_field(item, "relations"), (-1, 3), int),
        )
    except (FieldError, EvaluationError) as error:
        raise UserError(f"{path}: image {name}: {error}") from None
