"""Evaluate a ParSeDA of the miniworld: its triplets, its boxes, and the labels of the pipeline
between its boxes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.console import Console

from experiments.command import run_command
from experiments.miniworld.network_quality import (
    SPLITS,
    TRUTHS,
    Truth,
    lines_by_truth,
    measure_network,
    network_recipe,
    print_tables,
    quality_by_truth,
)
from experiments.miniworld.quality_lines import Line, append_lines
from sgpipe.evaluation.benchmarks import ModelRun, score_hico
from sgpipe.evaluation.box_quality import evaluate_boxes
from sgpipe.evaluation.label_quality import LABELS, LabelQuality
from sgpipe.generation.run import generate
from sgpipe.miniworld.dataset import IMAGES, INSTANCES, INTERACTION_CLASSES
from sgpipe.recipe import MiniworldConfig, load_recipe, packaged_model
from sgpipe.sources.miniworld import MiniworldFiles
from sgpipe.stages import detect
from sgpipe.training.recipe import TrainRecipe
from sgpipe.utils.console import Progress

LOWEST_SCORE = 0.01


@dataclass(frozen=True)
class DetectorQuality:
    """How good a ParSeDA is on the images of a split.

    Args:
        triplets: the measures of `RelationScores`.
        interactions: mean average precision by HICO-DET's protocol, over (person, predicate,
            object) classes.
        boxes: COCO's measures of its boxes, and their precision and recall at `threshold`, that of
            the recipe.
        labels: of the relations that captioner and tagger find between its boxes, against each
            truth.
    """

    triplets: Mapping[str, float]
    interactions: float
    boxes: Mapping[str, float]
    threshold: float
    labels: Mapping[Truth, LabelQuality]


def measure_detector(
    network: Path, recipe: TrainRecipe, split: str, images: int, seed: int = 0
) -> DetectorQuality:
    """Measure a ParSeDA on the first images of a split. Raises UserError, EngineError: as
    `generate`.
    """
    with TemporaryDirectory() as folder:
        files = MiniworldFiles(Path(folder) / "drawn")
        files.make(MiniworldConfig.model_validate({"images": images, "seed": seed, "split": split}))
        model = ModelRun(
            model=network, data=files.all_relations, classes=files.world / INTERACTION_CLASSES
        )
        interactions = score_hico(model, zero_shot=True)
        threshold = load_recipe("miniworld").detect.threshold
        boxes = _detect(network, files.world, Path(folder) / "boxes.json")
        run = _label(network, files.world, Path(folder) / "run")
        return DetectorQuality(
            measure_network(network, recipe, files.all_relations),
            interactions.summary["mAP"],
            evaluate_boxes(boxes, files.world / INSTANCES, threshold).summary,
            threshold,
            quality_by_truth(run, "relations", files.ground_truth),
        )


def _label(network: Path, world: Path, run: Path) -> Path:
    """A run that labels the images between detected boxes."""
    source = {"source.format": "folder", "source.splits": {"all": {"images": str(world / IMAGES)}}}
    recipe = load_recipe("miniworld", {**source, "detect.detector": str(network)})
    generate(recipe, run, Progress(Console(stderr=True)))
    return run


def _detect(network: Path, world: Path, out: Path) -> Path:
    """Write all boxes that are not quite improbable as COCO results."""
    config = load_recipe("miniworld", {"detect.detector": str(network)}).detect
    detector = detect.load(config, torch.device("cpu"))
    truth = json.loads((world / INSTANCES).read_text(encoding="utf-8"))
    numbers = {category["name"]: category["id"] for category in truth["categories"]}
    classes = [numbers[name] for name in detect.detector_classes(config)]
    results = []
    for item in truth["images"]:
        with Image.open(world / IMAGES / item["file_name"]) as image:
            detected = detector.detect(detector.prepare(image.convert("RGB")), LOWEST_SCORE)
        for (left, top, right, bottom), score, label in zip(
            detected.boxes.tolist(), detected.scores.tolist(), detected.labels.tolist(), strict=True
        ):
            bbox = [left, top, right - left, bottom - top]
            results.append(
                {
                    "image_id": item["id"],
                    "category_id": classes[label],
                    "bbox": bbox,
                    "score": score,
                }
            )
    out.write_text(json.dumps(results), encoding="utf-8")
    return out


def quality_lines(qualities: Mapping[str, DetectorQuality]) -> Iterator[Line]:
    """Yield a line for the network on each split, and one for each threshold and truth of the
    labels.
    """
    for split, quality in qualities.items():
        at = f"at {quality.threshold:g}"
        yield {
            "split": split,
            "AP50": quality.boxes["AP50"],
            "box threshold": quality.threshold,
            "box precision": quality.boxes[f"precision {at}"],
            "box recall": quality.boxes[f"recall {at}"],
            "HOI mAP": quality.interactions,
            "triplet AP": quality.triplets["ap"],
        }
        for line in lines_by_truth(quality.labels):
            yield {"split": split, "labels": LABELS, **line}


def quality_rows(qualities: Mapping[str, DetectorQuality]) -> list[list[str]]:
    """Table cells by split; the first row is the header."""
    first = next(iter(qualities.values()))
    at = f"at {first.threshold:g}"
    labels = [
        f"labels, {truth}: {measure}" for truth in TRUTHS for measure in ("precision", "recall")
    ]
    rows = [
        ["images", "AP50", f"boxes: precision {at}", "recall", *labels, "HOI mAP", "triplet AP"]
    ]
    for split, quality in qualities.items():
        shares = [quality.boxes[f"precision {at}"], quality.boxes[f"recall {at}"]]
        for truth in TRUTHS:
            at_threshold = quality.labels[truth].at_threshold
            shares += [at_threshold.precision, at_threshold.recall]
        figures = [f"{quality.boxes['AP50']:.3f}", *(f"{share:.1%}" for share in shares)]
        figures += [f"{quality.interactions:.3f}", f"{quality.triplets['ap']:.3f}"]
        rows.append([split.removeprefix("test-"), *figures])
    return rows


def main(
    detector: Annotated[
        Path | None, typer.Option(help="folder of a ParSeDA; default: the packaged one")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="number of images per split")] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    results: Annotated[
        Path | None, typer.Option(help="append the figures to this file, as JSON lines")
    ] = None,
) -> None:
    """Print the quality of a detector of the miniworld."""
    network = detector or packaged_model("parseda")
    recipe = network_recipe("parseda")
    qualities = {split: measure_detector(network, recipe, split, images, seed) for split in SPLITS}
    print_tables(Console(), quality_rows(qualities))
    if results:
        append_lines(results, "detector_quality", images, seed, quality_lines(qualities))


if __name__ == "__main__":
    run_command(main)
