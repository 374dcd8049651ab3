"""What the experiments measure: networks on drawn images that no training saw, and
pseudo-labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np

from experiments.miniworld.network_quality import score_network
from experiments.plan import SPLITS, Stage
from experiments.workshop import Drawn, Network, Workshop
from rlip_model.evaluation.inputs import Array
from rlip_model.training.validation import RelationScores
from sgpipe.evaluation.benchmarks import ModelRun, PredictionFiles, score_hico
from sgpipe.evaluation.label_quality import label_quality
from sgpipe.evaluation.result import Interval, Resampling, compare_paired
from sgpipe.inference.predictions import write_hoia
from sgpipe.inference.predictor import predict
from sgpipe.recipe import MiniworldConfig
from sgpipe.training.metrics import read_metrics

MOST_PAIRS = 100


def measure(workshop: Workshop, stage: Stage, network: Network) -> dict[str, float]:
    """The measures of a network, each on seen and on unseen combinations.

    AP: average precision of a tagger on given pairs. mAP: that of a ParSeDA by HICO-DET's protocol,
    the mean over (person, predicate, object) classes; pairs whose subject is not classified as a
    person are left out.
    """
    return {
        name: _total(resampling(workshop, name, stage, network))[name] for name in stage.measures
    }


def _total(scores: Resampling) -> Mapping[str, float]:
    return scores.summary(np.ones(len(scores.images), dtype=int))


def resampling(workshop: Workshop, measure: str, stage: Stage, network: Network) -> Resampling:
    """A measure of a network as a function of how often each image occurs."""
    split, _ = measure.split()
    drawn = workshop.drawn(
        MiniworldConfig(images=workshop.plan.measured_images, split=SPLITS[split])
    )
    if stage.kind == "tagger":
        return of_pairs(
            score_network(network.folder, stage.load_recipe({}), drawn.all_relations), measure
        )
    written = predictions(workshop, network, drawn)
    result = score_hico(PredictionFiles(written, drawn.annotations, drawn.classes))
    assert result.resampling is not None
    summary = result.resampling.summary
    return replace(result.resampling, summary=lambda counts: {measure: summary(counts)["mAP"]})


def of_pairs(scores: RelationScores, measure: str) -> Resampling:
    """Average precision over all given pairs. Images are named by their order."""
    image = np.repeat(
        np.arange(len(scores.targets)), [len(confidence) for confidence in scores.confidences]
    )
    confidences = np.concatenate(scores.confidences)
    correct = np.concatenate(scores.true_positives)
    order = np.argsort(-confidences, kind="stable")
    targets = np.array(scores.targets)
    image = image[order]
    correct = correct[order]

    def summary(counts: Array) -> dict[str, float]:
        weights = counts[image]
        hits = np.cumsum(weights * correct)
        precision = hits / np.maximum(np.cumsum(weights), 1)
        monotone = np.maximum.accumulate(precision[::-1])[::-1]
        return {
            measure: float((monotone * weights * correct).sum() / max((counts * targets).sum(), 1))
        }

    return Resampling([str(number) for number in range(len(targets))], summary)


def image_interval(
    first: Sequence[Resampling], second: Sequence[Resampling], measure: str
) -> Interval:
    """The 95 % interval over images of the difference between the means of a measure over two
    groups of networks.
    """
    return compare_paired(_mean(first), _mean(second)).measures[measure].difference_interval


def _mean(parts: Sequence[Resampling]) -> Resampling:
    def summary(counts: Array) -> dict[str, float]:
        rows = [part.summary(counts) for part in parts]
        return {name: fmean(row[name] for row in rows) for name in rows[0]}

    assert all(part.images == parts[0].images for part in parts)
    return Resampling(parts[0].images, summary)


def predictions(workshop: Workshop, network: Network, drawn: Drawn) -> Path:
    """The predictions of a ParSeDA for drawn images, as a file of HICO-DET's form."""
    path = workshop.root / "predictions" / f"{network.key}-{drawn.root.name}.json"
    if not path.exists():
        run = ModelRun(model=network.folder, data=drawn.interactions, classes=drawn.classes)
        config = run.config("zero-shot hoi")
        schema = run.hoia_schema()
        assert schema is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        write_hoia(predict(config, run.row_groups()), path, schema, "hoi_prediction", MOST_PAIRS)
    return path


def measure_labels(workshop: Workshop, name: str, seed: int) -> dict[str, float]:
    """Precision, recall and average precision of the relations of a pseudo-labelled set; see
    `label_quality`.
    """
    result = label_quality(workshop.shards(name, seed), workshop.ground_truth(name, seed))
    at = result.at_threshold
    measures = {"relations": float(at.predicted), "precision": at.precision, "recall": at.recall}
    return {**measures, "AP": result.average_precision}


def curve(network: Network) -> list[tuple[int, float]]:
    """Average precision after as many steps, as the validations of the training measured it."""
    rows = read_metrics(network.folder.parent)
    return [
        (row["step"], row["ap"]) for row in rows if row["event"] == "validation" and "ap" in row
    ]
