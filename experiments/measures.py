"""What the experiments measure: networks on drawn images that no training saw, and pseudo-labels."""

from __future__ import annotations

from pathlib import Path

from experiments.miniworld.network_quality import measure_network
from experiments.plan import Stage
from experiments.workshop import Drawn, Network, Workshop
from sgpipe.evaluation.benchmarks.evaluate_files import HicoOptions, evaluate_hico_files
from sgpipe.evaluation.benchmarks.evaluate_model import ModelRun
from sgpipe.evaluation.label_quality.comparison import label_quality
from sgpipe.inference.predictor import predict
from sgpipe.inference.writers.json_lists import write_hoia
from sgpipe.miniworld.relations import COMPOSITIONAL
from sgpipe.recipe import MiniworldConfig
from sgpipe.training.metrics import read_metrics

SPLITS = {"seen": "val", "unseen": COMPOSITIONAL}  # combinations that occur in training, and others
MOST_PAIRS = 100


def measure(workshop: Workshop, stage: Stage, network: Network) -> dict[str, float]:
    """The measures of a network, each on seen and on unseen combinations.

    AP: average precision of a tagger on given pairs. mAP: that of a ParSeDA by HICO-DET's protocol, the mean over
    (person, predicate, object) classes; pairs whose subject is not classified as a person are left out.
    """
    measures = {}
    for name, split in SPLITS.items():
        drawn = workshop.drawn(MiniworldConfig(images=workshop.plan.measured_images, split=split))
        if stage.kind == "tagger":
            scores = measure_network(network.folder, stage.load_recipe({}), drawn.relations)
            measures[f"{name} AP"] = scores["ap"]
        else:
            written = predictions(workshop, network, name, drawn)
            result = evaluate_hico_files(written, drawn.annotations, HicoOptions(), drawn.classes)
            measures[f"{name} mAP"] = result.summary["mAP"]
    return measures


def predictions(workshop: Workshop, network: Network, name: str, drawn: Drawn) -> Path:
    """The predictions of a ParSeDA for the images of a split, as a file of HICO-DET's form."""
    path = workshop.root / "predictions" / f"{network.key}-{name}.json"
    if not path.exists():
        run = ModelRun(model=network.folder, data=drawn.interactions, classes=drawn.classes)
        config, schema = run.config("zero-shot hoi"), run.hoia_schema()
        assert schema is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        write_hoia(predict(config, run.row_groups()), path, schema, "hoi_prediction", MOST_PAIRS)
    return path


def measure_labels(workshop: Workshop, name: str) -> dict[str, float]:
    """Precision, recall and average precision of the relations of a pseudo-labelled set; see `label_quality`."""
    result = label_quality(workshop.shards(name), workshop.ground_truth(name))
    at = result.at_threshold
    measures = {"relations": float(at.predicted), "precision": at.precision, "recall": at.recall}
    return {**measures, "AP": result.average_precision}


def curve(network: Network) -> list[tuple[int, float]]:
    """Average precision after as many steps, as the validations of the training measured it."""
    rows = read_metrics(network.folder.parent)
    return [(row["step"], row["ap"]) for row in rows if row["event"] == "validation" and "ap" in row]
