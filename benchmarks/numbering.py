"""Numbered boxes against outlined ones: a scripted judge on the miniworld (synthetic).

    python -m benchmarks.numbering [--images 300] [--seed 0] [--data FOLDER] [--lines FILE]

No vision-language model was asked: the judge is a script. It gets the images and questions of
`tag.questions`, but no boxes. Of the objects of a scene with the name in the question it takes the
one whose outline has most pixels in the colour of the mark. Of the pair that it found it knows
whether the relation holds, but it is unsure: its log-odds are 2 or -2, times the share of both
boxes that marks do not hide, plus normal noise, which is the same for both images. So the rows
differ by what marks hide, and by boxes that are mistaken for others. It reads no digits: the colour
of a number is told.

Images of the miniworld's val split with captions by the packaged captioner; candidates as by
`tag.method: all`. Precision and recall: relations of score 0.5 or more.

Photographs: COCO-MINI's of val2017 with all boxes that candidates of human captions name; the share
of these boxes that marks hide, on average over the candidates.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageColor
from rich.console import Console
from rich.table import Table

from benchmarks.bench_questions import (
    WAYS,
    Line,
    Way,
    photographs,
    relations_of,
    scorer_of,
)
from benchmarks.measure import report
from experiments.miniworld.judge_quality import Candidates, read_candidates
from rlip_model.evaluation.inputs import Array
from sgpipe.evaluation.label_quality import area, precision_recall
from sgpipe.generation.run import generate
from sgpipe.generation.scoring import Scorer, score_run
from sgpipe.recipe import load_recipe
from sgpipe.records import Box, Record, Relation
from sgpipe.stages.matching import normalise_predicate
from sgpipe.stages.score.numbered import draw_numbers, numbered_images
from sgpipe.stages.score.scorer import (
    LONGEST_SIDE,
    OBJECT_COLOUR,
    SUBJECT_COLOUR,
    Score,
    marked_images,
)
from sgpipe.stages.served.chat import ChatRequest, Choice
from sgpipe.storage.run_folder import ground_truth_of
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.shards import VLM_SCORE
from sgpipe.utils.console import Progress
from sgpipe.utils.lemmas import predicate_lemma
from sgpipe.viz import colour_of, corners

EVIDENCE = 2.0
LIKELY = 0.5
NEAR = 60  # of 255; colours that are taken for that of a mark
CHANGED = 24
QUESTION = re.compile(
    r"Is the (.+?) \((.+?)\) (.+?)(?: the ([^()]+) \(([^()]+)\))?\? Answer", re.DOTALL
)
NAMES = {
    "all": "nobody: all candidates",
    "each": "outlined boxes (each)",
    "shared": "numbered boxes (shared)",
}
RGB = tuple[int, int, int]
Fact = tuple[int, str, int]


def frame_of(box: Box, scale: float, size: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of a box in an image."""
    left, top, right, bottom = corners(box.bbox, scale, size)
    return slice(int(top), round(bottom) + 1), slice(int(left), round(right) + 1)


def outline_share(pixels: Array, colour: RGB, width: int) -> float:
    """Return the share of the outline of a part of an image that has a colour."""
    is_near = (np.abs(pixels.astype(int) - colour) < NEAR).all(axis=2)
    inside = np.zeros_like(is_near)
    inside[width:-width, width:-width] = True
    return float(is_near[~inside].mean()) if (~inside).any() else 0.0


def unmarked(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)


def visible_share(plain: Image.Image, marked: Image.Image, place: tuple[slice, slice]) -> float:
    """Return the share of a box that marks do not hide."""
    before = np.asarray(plain, int)[place]
    after = np.asarray(marked, int)[place]
    is_changed = (np.abs(before - after) > CHANGED).any(axis=2)
    return 1.0 - float(is_changed.mean()) if is_changed.size else 0.0


@dataclass
class Judge:
    """In place of a vision-language model. `facts`: what holds in each image, by image id."""

    facts: dict[str, set[Fact]]

    def show(self, record: Record, image: Image.Image) -> None:
        """Show the scene of the questions that follow."""
        self.record = record
        self.image = image

    def ask_all(self, requests: Iterable[ChatRequest]) -> Iterator[list[Choice]]:
        for request in requests:
            share = self._probability(request)
            yield [Choice("", None, {"yes": math.log(share), "no": math.log1p(-share)})]

    def ask_groups(self, groups: Iterable[Sequence[ChatRequest]]) -> Iterator[list[list[Choice]]]:
        return (list(self.ask_all(group)) for group in groups)

    def _probability(self, request: ChatRequest) -> float:
        assert isinstance(request.image, Image.Image)
        match = QUESTION.search(request.text)
        assert match is not None
        subject_name, subject_mark, predicate, object_name, object_mark = match.groups()
        subject = self._find(request.image, subject_name, subject_mark)
        object_ = self._find(request.image, object_name, object_mark)
        lemma = predicate_lemma(normalise_predicate(predicate))
        holds = (subject, lemma, object_) in self.facts[self.record.image_id]
        evidence = EVIDENCE if holds else -EVIDENCE
        for index in (subject, object_):
            evidence *= self._visible(request.image, index)
        noise = random.Random(f"{self.record.image_id} {subject} {lemma} {object_}").gauss(0, 1)
        return 1 / (1 + math.exp(-evidence - noise))

    def _find(self, marked: Image.Image, name: str, mark: str) -> int:
        """Return the object with this name whose outline is most like the mark."""
        colours = {"red box": SUBJECT_COLOUR, "blue box": OBJECT_COLOUR}
        colour = colours.get(mark) or ImageColor.getrgb(colour_of(int(mark) - 1))[:3]
        shares = {}
        for index, box in enumerate(self.record.objects):
            if box.category == name:
                place = self._place(marked, index)
                shares[index] = outline_share(np.asarray(marked)[place], colour, 2)
        return max(shares, key=shares.__getitem__)

    def _place(self, marked: Image.Image, index: int) -> tuple[slice, slice]:
        scale = marked.width / self.image.width
        return frame_of(self.record.objects[index], scale, marked.size)

    def _visible(self, marked: Image.Image, index: int) -> float:
        plain = unmarked(self.image, marked.size)
        return visible_share(plain, marked, self._place(marked, index))


def scorer_by(judge: Judge, way: Way) -> Scorer:
    scorer = scorer_of(way, judge, served=False)

    def score(record: Record, image: Image.Image) -> list[Score]:
        judge.show(record, image)
        return scorer.scores(image, record.objects, record.relations)

    return score


def facts_of(run: Path) -> dict[str, set[Fact]]:
    """Return what holds in each image of a run of the miniworld."""
    truth = ground_truth_of(run)
    assert truth is not None
    facts = {}
    for record in iter_records(truth.relations):
        facts[record.image_id] = {
            (relation.subject, predicate_lemma(relation.predicate), relation.object)
            for relation in record.relations
        }
    return facts


def quality(way: str, scored: Candidates, scores: Array) -> Line:
    ranked = scored.ranked_by(scores)
    likely = ranked.above(LIKELY)
    curve = precision_recall(ranked, scored.targets)
    return {
        "page": "numbering",
        "table": "miniworld",
        "way": way,
        "relations": len(likely),
        "precision": round(float(likely.true_positive.mean()), 4),
        "recall": round(float(likely.matched.sum() / scored.targets), 4),
        "AP": round(area(*curve, scored.targets), 4),
    }


def judged(images: int, seed: int) -> Iterator[Line]:
    """Yield how good the candidates of the miniworld are, unjudged and judged both ways."""
    progress = Progress(Console(stderr=True, quiet=True))
    drawn = {"images": images, "seed": seed, "split": "val"}
    settings = {"source.miniworld": drawn, "tag.method": "all"}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        generate(load_recipe("miniworld", settings), folder / "run", progress)
        truth = ground_truth_of(folder / "run")
        assert truth is not None
        for way in WAYS:
            scorer = scorer_by(Judge(facts_of(folder / "run")), way)
            out = folder / way
            score_run(folder / "run", out, VLM_SCORE, lambda: scorer, {"by": way}, progress)  # noqa: B023
            scored = read_candidates(out, truth)
            if way == "each":
                yield quality("all", scored, np.ones_like(scored.vlm_score))
            yield quality(way, scored, scored.vlm_score)


def shown(record: Record, image: Image.Image, way: Way) -> Iterator[tuple[Image.Image, Relation]]:
    """Yield each candidate with the image that shows it."""
    relations = relations_of(record)
    if way == "each":
        yield from zip(
            marked_images(image, record.objects, relations, LONGEST_SIDE), relations, strict=True
        )
        return
    for numbered in numbered_images(record.objects, relations):
        marked = draw_numbers(image, [record.objects[index] for index in numbered.boxes])
        for index in numbered.relations:
            yield marked, relations[index]


def hidden(data: Path) -> Iterator[Line]:
    """Yield what marks hide of the boxes on photographs."""
    images = photographs(data)
    for way in WAYS:
        shares = []
        for record, image in images:
            for marked, relation in shown(record, image, way):
                plain = unmarked(image, marked.size)
                for index in (relation.subject, relation.object):
                    scale = marked.width / image.width
                    place = frame_of(record.objects[index], scale, marked.size)
                    shares.append(1 - visible_share(plain, marked, place))
        line: Line = {"page": "numbering", "table": "photographs", "way": way}
        yield line | {"photographs": len(images), "hidden": round(float(np.mean(shares)), 4)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    data = Path(os.environ.get("SGPIPE_ORACLE", ""), "data")
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--lines", type=Path, help="file to write the figures to, as JSON lines")
    options = parser.parse_args()
    scored = list(judged(options.images, options.seed))
    table = Table("who decides", "relations", "precision", "recall", "AP")
    for line in scored:
        shares = [f"{line[name]:.1%}" for name in ("precision", "recall")]
        table.add_row(
            NAMES[str(line["way"])], f"{line['relations']:,}", *shares, f"{line['AP']:.3f}"
        )
    photographed = list(hidden(options.data))
    hides = Table("image", "photographs", "hidden of boxes")
    for line in photographed:
        hides.add_row(NAMES[str(line["way"])], str(line["photographs"]), f"{line['hidden']:.1%}")
    if options.lines:
        text = "".join(f"{json.dumps(line)}\n" for line in (*scored, *photographed))
        options.lines.write_text(text, encoding="utf-8")
    report(__doc__ or "", f"{options.images} images, seed {options.seed}.", table, hides)


if __name__ == "__main__":
    main()
