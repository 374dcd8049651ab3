"""Measure the layout model: `python -m experiments.layout.page DATA HICO` writes
benchmarks/results/layout.md.

DATA is the folder with test_half.jsonl.gz of the line form, HICO is HICO-DET's
instances_test2015.json. The figures are appended to layout.jsonl beside the page first, which is
written from there. Figures of other runs, such as `experiments.layout.compare`, stay.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from experiments.command import run_command
from experiments.layout.card import write_card
from experiments.layout.data import (
    SPLITS,
    AnnotatedImage,
    join_instances,
    read_hico,
    read_instances,
    read_lines,
)
from experiments.layout.measures import (
    RECALLS,
    Floats,
    Judged,
    area_under_roc,
    average_precision,
    calibration,
    mean_average_precision,
    precision_at,
    role_average_precision,
    worst_tenth,
)
from experiments.miniworld.cards import markdown_table
from sgpipe.stages.tag.layout import LayoutModel
from sgpipe.stages.tag.layout.model import WEIGHTS
from sgpipe.stages.tag.layout.scene import BoolArray
from sgpipe.utils.atomic import write_text
from sgpipe.utils.boxes import iou

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
FIGURES = "layout.jsonl"
PAGE = "layout.md"
NO_INTERACTION = "no_interaction"
HELD_OUT = "a fifth of the training images"
BATCH = 64  # images scored together
COLUMNS = ("AP", "AUC", *(f"precision at {recall}" for recall in RECALLS))
VCOCO_COLUMNS = (
    "actions mAP",
    "actions mAP of annotated pairs",
    "role AP",
    "AP of persons",
    "worst tenth",
)

PAGE_TEXT = """\
# The layout model

Which boxes of a photograph interact, and how, read from the boxes and their classes alone. The model that ships
(`sgpipe/stages/tag/layout/weights`) learned from the 4,947 images of V-COCO's train and val splits, each seen twice:
with the boxes that V-COCO annotates (persons, and things that somebody uses), and with all boxes that COCO annotates,
so that things that nobody touches are negatives, too. No image of V-COCO's or HICO-DET's test sets was trained on.

    python -m experiments.layout DATA --instances INSTANCES --out FOLDER
    python -m experiments.layout.page DATA HICO --instances TEST_INSTANCES
    python -m experiments.layout.compare DATA --instances INSTANCES

The figures are in layout.jsonl beside this page.

## Quality

Pairs of a person and a thing, among all such pairs of the image. *V-COCO, boxes of the pairs*: half of V-COCO's test
images with the boxes of the line form, in which somebody uses every thing. *V-COCO, all boxes of COCO*: the same images
with all instances; this is what a run on COCO meets. *HICO-DET*: its test images, of which the model saw none
(zero-shot); pairs with a verb against all other pairs, or against the pairs annotated as "no interaction".
*Actions mAP*: mean over 24 actions, of the probability that the pair interacts times that of the action, among all
pairs.
*Role AP*: V-COCO's evaluator (scenario 1, 24 roles) given the annotated boxes, on this half only and without roles that
have no box, so it does not compare with published figures. *Worst tenth*: greatest difference between the mean
probability of a tenth and the share of its pairs that interact, in tenths of at least 50 pairs.

{quality}

## Calibration

{calibration}

## Cost

`sgpipe generate coco` with `caption.captioner=null pair.candidates=layout tag.method=layout` on annotations of COCO's
size, made by repeating images of its validation set, with blank images; local engine. The time counts everything:
reading the annotations, candidates, confidences, shards. (Lines "cost" of layout.jsonl, one run, timed by hand.)

{cost}

## Comparison

Other models, and the network with other training, measured while the model was chosen (lines "choice" of
layout.jsonl, by scripts that were not kept), and the network without its rivals, its classes, and each group of its
numbers (lines "comparison", by `python -m experiments.layout.compare`, 10 epochs). One training each: differences of
0.01 may be chance.

{comparison}

The trees are LightGBM 4.7 with numbers made by hand: 41 of the two boxes and the class, and 42 of who else competes, by
touch, distance and IoU; 300 or 400 trees for pairs, 120 for each action. Networks are single ones; three ship.

* Who else competes matters most: without it trees lose 0.03 AP on boxes of the pairs and 0.09 on all boxes, the
  network 0.02 and 0.06. How the two boxes lie to each other is worth as much: 0.03 and 0.06.
* Without the classes of things, the network still finds pairs among the boxes that people use (0.973 AP), but not
  among all boxes (0.776), and it cannot tell what people do (actions mAP 0.508). Counts, and size and place of each
  box, are worth 0.013 and 0.005 on all boxes, and nothing on boxes of the pairs.
* The network equals the trees at pairs; trees are better at actions by 0.01 to 0.03. The network ships since it needs
  no new dependency, is read by numpy, and decides all 24 actions at once in well below a millisecond an image.
* A model that saw only V-COCO's boxes is best on these, since it knows that somebody uses every thing. On all boxes of
  COCO its probabilities mean little: precision 0.48 at recall 0.8. The shipped model saw both, and pays for it with one
  or two points of precision on V-COCO's boxes and with calibration: it cannot tell for certain which kind it is given.
"""


def score(
    model: LayoutModel, images: Sequence[AnnotatedImage], judged: Judged
) -> tuple[Floats, Floats]:
    """Return the probabilities of pairs: `[pairs]` of an interaction, `[pairs, actions]` of each
    action given it.
    """
    layouts = [image.layout for image in images]
    scores = []
    for start in range(0, len(layouts), BATCH):
        scores += model.score_many(
            layouts[start : start + BATCH], judged.pairs[start : start + BATCH]
        )
    interacts = np.concatenate([one.interacts for one in scores]).astype(float)
    actions = np.concatenate([one.actions for one in scores]).astype(float)
    return interacts, actions


def pair_figures(scores: Floats, truth: BoolArray) -> dict[str, Any]:
    """Return the measures of whether pairs interact."""
    figures: dict[str, Any] = {"pairs": len(truth), "interacting": int(truth.sum())}
    figures["AP"] = average_precision(scores, truth)
    figures["AUC"] = area_under_roc(scores, truth)
    for recall in RECALLS:
        figures[f"precision at {recall}"] = precision_at(scores, truth, recall)
    return figures


def overlap_figures(
    images: Sequence[AnnotatedImage], judged: Judged, chosen: BoolArray
) -> dict[str, Any]:
    """Return precision and recall of `overlap`: every pair whose boxes share some area."""
    ends = []
    for image, pairs in zip(images, judged.pairs, strict=True):
        ends.append(image.layout.boxes[pairs].astype(float))
    boxes = np.concatenate(ends)
    overlapping = (iou(boxes[:, 0], boxes[:, 1]) > 0)[chosen]
    truth = judged.interacts[chosen]
    hits = int((overlapping & truth).sum())
    return {"precision": hits / int(overlapping.sum()), "recall": hits / int(truth.sum())}


class ClassPrior:
    """The class of the thing alone: how often a pair with it interacts, and by which actions, in
    the training set.
    """

    def __init__(self, images: Sequence[AnnotatedImage], actions: Sequence[str]) -> None:
        judged = Judged.of(images, actions)
        self._overall = judged.interacts.mean(), judged.actions[judged.interacts].mean(axis=0)
        self._of_class: dict[str, tuple[float, Floats]] = {}
        for name in np.unique(judged.classes):
            of_class = judged.classes == name
            interacting = of_class & judged.interacts
            if interacting.any():
                shares = judged.interacts[of_class].mean(), judged.actions[interacting].mean(axis=0)
                self._of_class[str(name)] = shares

    def score(self, judged: Judged) -> tuple[Floats, Floats]:
        rows = [self._of_class.get(name, self._overall) for name in judged.classes.tolist()]
        return np.array([row[0] for row in rows]), np.stack([row[1] for row in rows])


def measure(judged: Judged, interacts: Floats, actions: Floats) -> dict[str, Any]:
    """Return all measures of pairs of person and thing, and AP of pairs of two persons."""
    things = judged.with_thing
    truth = judged.interacts[things]
    joint = interacts[:, None] * actions
    annotated = things & judged.interacts
    figures = pair_figures(interacts[things], truth)
    figures["worst tenth"] = worst_tenth(interacts[things], truth)
    figures["calibration"] = calibration(interacts[things], truth)
    figures["actions mAP"] = mean_average_precision(joint[things], judged.actions[things])
    figures["actions mAP of annotated pairs"] = mean_average_precision(
        actions[annotated], judged.actions[annotated]
    )
    flat = joint[things].ravel()
    figures["worst tenth of relations"] = worst_tenth(flat, judged.actions[things].ravel())
    figures["AP of persons"] = average_precision(interacts[~things], judged.interacts[~things])
    return figures


def measure_vcoco(
    model: LayoutModel, images: Sequence[AnnotatedImage], prior: ClassPrior, name: str
) -> list[dict[str, Any]]:
    """Return the figures of the model and its baselines on V-COCO's images."""
    judged = Judged.of(images, model.actions)
    before = time.process_time()
    interacts, actions = score(model, images, judged)
    milliseconds = 1000 * (time.process_time() - before) / len(images)
    shared = {
        "data": name,
        "images": len(images),
        "boxes": float(np.mean([len(i.layout.classes) for i in images])),
    }
    figures = measure(judged, interacts, actions)
    figures["role AP"] = role_average_precision(
        images, judged, interacts[:, None] * actions, model.actions
    )
    figures["CPU-ms per image"] = milliseconds
    prior_figures = measure(judged, *prior.score(judged))
    overlap = overlap_figures(images, judged, judged.with_thing)
    return [
        {**shared, "method": "layout", **figures},
        {**shared, "method": "class of the thing", **prior_figures},
        {**shared, "method": "overlap", **overlap},
    ]


def measure_hico(
    model: LayoutModel, images: Sequence[AnnotatedImage], prior: ClassPrior
) -> list[dict[str, Any]]:
    """Return the figures on HICO-DET, of which the model never saw an image.

    Pairs of person and thing: those annotated with a verb against all other persons and things of
    the image, and, of the annotated pairs alone, those with a verb against those with "no
    interaction" only.
    """
    judged = Judged.of(images, (), NO_INTERACTION)
    annotated = are_annotated(images, judged)
    methods = {
        "layout": score(model, images, judged)[0],
        "class of the thing": prior.score(judged)[0],
    }
    kinds = {
        "HICO-DET": judged.with_thing,
        "HICO-DET, annotated pairs": judged.with_thing & annotated,
    }
    rows: list[dict[str, Any]] = []
    for kind, chosen in kinds.items():
        shared = {"data": kind, "images": len(images)}
        for method, scores in methods.items():
            figures = pair_figures(scores[chosen], judged.interacts[chosen])
            rows.append({**shared, "method": method, **figures})
        rows.append({**shared, "method": "overlap", **overlap_figures(images, judged, chosen)})
    return rows


def are_annotated(images: Sequence[AnnotatedImage], judged: Judged) -> BoolArray:
    """Return which pairs are annotated, if only as not interacting."""
    known = []
    for image, pairs in zip(images, judged.pairs, strict=True):
        ends = {(subject, thing) for subject, _, thing in image.relations}
        known += [pair in ends for pair in map(tuple, pairs.tolist())]
    return np.array(known)


def write_figures(folder: Path, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the lines of a kind in the file of figures."""
    other_rows = [row for row in read_figures(folder) if row["kind"] != kind]
    lines = [
        json.dumps(rounded(row)) for row in [*other_rows, *({"kind": kind, **row} for row in rows)]
    ]
    write_text(folder / FIGURES, "\n".join(lines) + "\n")


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the file of figures, if it exists."""
    path = folder / FIGURES
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rounded(value: Any) -> Any:
    """Round the numbers in lists and objects to five digits."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, Mapping):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return value


def write_page(folder: Path) -> None:
    """Write the page from the file of figures."""
    rows = read_figures(folder)
    measured = [row for row in rows if row["kind"] == "quality"]
    compared = [row for row in rows if row["kind"] in ("choice", "comparison")]
    text = PAGE_TEXT.format(
        quality=markdown_table(quality_rows(measured)),
        calibration=markdown_table(calibration_rows(measured)),
        cost=markdown_table(cost_rows(row for row in rows if row["kind"] == "cost")),
        comparison=markdown_table(comparison_rows(compared)),
    )
    write_text(folder / PAGE, text)


def quality_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table of all methods on all data."""
    table = [["boxes of", "method", *COLUMNS, *VCOCO_COLUMNS]]
    for row in rows:
        if row["method"] == "overlap":
            text = f"precision {row['precision']:.3f} at recall {row['recall']:.3f}"
            table.append(
                [row["data"], "overlap", text, *[""] * (len(COLUMNS) + len(VCOCO_COLUMNS) - 1)]
            )
        else:
            table.append(
                [
                    row["data"],
                    row["method"],
                    *(figure(row, name) for name in (*COLUMNS, *VCOCO_COLUMNS)),
                ]
            )
    return table


def calibration_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table of how often pairs interact, by tenth of the probability."""
    table = [["boxes of", "pairs", "mean probability", "interacting"]]
    for row in rows:
        if row["method"] == "layout":
            for pairs, mean, share in row.get("calibration", ()):
                table.append([row["data"], f"{pairs:,}", f"{mean:.3f}", f"{share:.3f}"])
    return table


def cost_rows(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table of what whole runs took."""
    table = [["images", "relations", "CPU-s", "CPU-ms an image", "s", "MB, all", "MB, largest"]]
    for row in rows:
        milliseconds = 1000 * row["CPU seconds"] / row["images"]
        table.append(
            [
                f"{row['images']:,}",
                f"{row['relations']:,}",
                f"{row['CPU seconds']:.1f}",
                f"{milliseconds:.2f}",
                f"{row['seconds']} on {row['machine']}",
                f"{row['MB of all processes']:,}",
                f"{row['MB of the largest process']:,}",
            ]
        )
    return table


def comparison_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table of other models and of parts of the network."""
    names = ("AP", "precision at 0.8", "actions mAP")
    headings = [
        f"{name}, {boxes}" for boxes in ("boxes of the pairs", "all boxes") for name in names
    ]
    table = [["model", "judged on", *headings]]
    for row in rows:
        cells = [figure(row.get(data, {}), name) for data in ("V-COCO", "COCO") for name in names]
        table.append([row["model"], row.get("judged", HELD_OUT), *cells])
    return table


def figure(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.3f}" if name in row else ""


def main(
    data: Annotated[
        Path, typer.Argument(help="folder with train, val and test_half of the line form")
    ],
    hico: Annotated[Path, typer.Argument(help="HICO-DET's instances_test2015.json")],
    instances: Annotated[
        Path | None, typer.Option(help="COCO's instances of the test images")
    ] = None,
    folder: Annotated[Path, typer.Option(help="folder of the page")] = RESULTS,
    model: Annotated[
        Path | None, typer.Option(help="folder of a model; default: the one that ships")
    ] = None,
) -> None:
    """Measure the layout model and write its page."""
    layout_model = LayoutModel.load(model)
    prior = ClassPrior(
        read_lines(data / SPLITS[0]) + read_lines(data / SPLITS[1]), layout_model.actions
    )
    images = read_lines(data / "test_half.jsonl.gz")
    rows = measure_vcoco(layout_model, images, prior, "V-COCO, boxes of the pairs")
    if instances:
        layouts = read_instances(instances)
        joined = [join_instances(image, layouts[image.image_id]) for image in images]
        rows += measure_vcoco(layout_model, joined, prior, "V-COCO, all boxes of COCO")
    rows += measure_hico(layout_model, read_hico(hico), prior)
    write_figures(folder, "quality", rows)
    write_page(folder)
    write_card(model or WEIGHTS, rows)


if __name__ == "__main__":
    run_command(main)
