"""Evaluate a captioner of the miniworld: `python -m experiments.miniworld.caption_quality
--captioner FOLDER`.

The pipeline's caption stage captions images of a split that was not used for training. The
pipeline's parser and matcher read the captions as statements, which are compared with the exact
ground truth. The baselines are captions of other images, and the most likely statements given only
the classes in an image.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from experiments.command import run_command
from sgpipe.miniworld.actors import KINDS
from sgpipe.miniworld.dataset import IMAGES, file_name, image_id, render_dataset
from sgpipe.miniworld.relations import PREDICATES, Statement
from sgpipe.miniworld.scene import Scene, random_scene
from sgpipe.recipe import CaptionConfig
from sgpipe.records import Record
from sgpipe.sources.vocabulary import packaged_synonyms
from sgpipe.stages.caption.stage import CaptionStage
from sgpipe.stages.matching import HeadMatcher
from sgpipe.stages.parse.stage import CaptionParser
from sgpipe.utils.lemmas import verb_lemma

SAMPLES = 10


@dataclass(frozen=True)
class SceneTruth:
    """The statements that are true of a scene, and those that were composed."""

    everything: frozenset[Statement]
    composed: frozenset[Statement]


def truth_of(scene: Scene) -> SceneTruth:
    return SceneTruth(
        frozenset(scene.statement(fact) for fact in scene.facts),
        frozenset(scene.statement(fact) for fact in scene.facts if not fact.implied),
    )


class CaptionJudge:
    """Reads captions as statements about the classes of the miniworld."""

    def __init__(self) -> None:
        self._parser = CaptionParser()
        self._matcher = HeadMatcher(packaged_synonyms("coco"))
        self._predicates = {_lemma(predicate): predicate for predicate in PREDICATES}

    def statements(self, captions: Sequence[str]) -> list[tuple[Statement, ...]]:
        """The statements of each caption, in order; unknown nouns and predicates are kept as
        written.
        """
        return [
            tuple(
                (
                    self._kind(triplet.subject, triplet.subject_head),
                    self._predicates.get(triplet.predicate_lemma, triplet.predicate),
                    self._kind(triplet.object, triplet.object_head),
                )
                for triplet in triplets
            )
            for triplets in self._parser.parse(captions)
        ]

    def _kind(self, phrase: str, head: str) -> str:
        return self._matcher.choose(phrase, head, dict.fromkeys(KINDS)) or phrase


@dataclass(frozen=True)
class HitRate:
    """A count of hits out of a total."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """Hits divided by the total; 0 if the total is 0."""
        return self.hits / self.total if self.total else 0.0


def is_true(stated: Sequence[Statement], truth: SceneTruth) -> bool:
    """Whether a caption states at least one relation, and all its statements are true."""
    return bool(stated) and truth.everything.issuperset(stated)


def correct_rate(
    captions: Iterable[Sequence[Sequence[Statement]]], truths: Sequence[SceneTruth]
) -> HitRate:
    """The share of correct captions among all captions of all images."""
    hits = [
        is_true(stated, truth)
        for caption, truth in zip(captions, truths, strict=True)
        for stated in caption
    ]
    return HitRate(sum(hits), len(hits))


def coverage(
    captions: Iterable[Sequence[Sequence[Statement]]], targets: Sequence[frozenset[Statement]]
) -> HitRate:
    """The share of the `targets` of all images that are stated by the captions of their image."""
    pairs = zip(captions, targets, strict=True)
    hits = sum(
        len(image_targets.intersection(*[chain.from_iterable(texts_of_image)]))
        for texts_of_image, image_targets in pairs
    )
    return HitRate(hits, sum(map(len, targets)))


def by_predicate(
    captions: Iterable[Sequence[Sequence[Statement]]], truths: Sequence[SceneTruth]
) -> dict[str, tuple[HitRate, HitRate]]:
    """By predicate: the share of its statements that are true, and the share of its composed facts
    that are stated.
    """
    predicted = Counter[str]()
    correct = Counter[str]()
    targets = Counter[str]()
    matched = Counter[str]()
    for caption, truth in zip(captions, truths, strict=True):
        statements = list(chain.from_iterable(caption))
        predicted.update(predicate for _, predicate, _ in statements)
        correct.update(statement[1] for statement in statements if statement in truth.everything)
        targets.update(predicate for _, predicate, _ in truth.composed)
        matched.update(predicate for _, predicate, _ in truth.composed.intersection(statements))
    return {
        predicate: (
            HitRate(correct[predicate], predicted[predicate]),
            HitRate(matched[predicate], targets[predicate]),
        )
        for predicate in PREDICATES
        if predicted[predicate] or targets[predicate]
    }


def _lemma(predicate: str) -> str:
    """The lemma of a predicate as given by the parser: "sit on"."""
    verb, *rest = predicate.split()
    return " ".join([verb_lemma(verb), *rest]) if verb.endswith("ing") else predicate


class ObjectsOnlyGuess:
    """A baseline that sees only the classes in a scene: the statements most often true of each pair
    of classes.
    """

    def __init__(self, scenes: Iterable[tuple[Scene, SceneTruth]]) -> None:
        """Count in `scenes` how often two classes occur together, and how often each statement
        about them is true.
        """
        present = Counter[tuple[str, str]]()
        true = Counter[Statement]()
        for scene, truth in scenes:
            present.update(_pairs(scene))
            true.update(truth.everything)
        self._chances: dict[tuple[str, str], list[tuple[float, Statement]]] = {}
        for statement, count in true.items():
            pair = statement[0], statement[2]
            self._chances.setdefault(pair, []).append((count / present[pair], statement))

    def __call__(self, scene: Scene, count: int) -> list[Statement]:
        """The `count` most likely statements about the scene, best first."""
        chances = [chance for pair in _pairs(scene) for chance in self._chances.get(pair, ())]
        return [
            statement
            for _, statement in sorted(chances, key=lambda chance: (-chance[0], chance[1]))[:count]
        ]


def _pairs(scene: Scene) -> set[tuple[str, str]]:
    """Ordered pairs of the classes in a scene; a class with itself only if it occurs twice."""
    kinds = Counter(thing.kind for thing in scene.things)
    return {pair for pair in product(kinds, kinds) if pair[0] != pair[1] or kinds[pair[0]] > 1}


@dataclass(frozen=True)
class CaptionScores:
    """Quality of the captions of one method.

    `correct`: captions that are correct. `composed`: composed statements that the captions cover;
    `everything`: also implied statements.
    """

    name: str
    correct: HitRate
    composed: HitRate
    everything: HitRate


@dataclass(frozen=True)
class CaptionQuality:
    """Scores by captioning method, and by predicate the correctness and the coverage of the nucleus
    samples.
    """

    images: int
    rows: tuple[CaptionScores, ...]
    predicates: dict[str, tuple[HitRate, HitRate]]


def measure(
    captioner: str, images: int, seed: int = 0, split: str = "val", *, counted: int = 4000
) -> CaptionQuality:
    """Caption the first images of a split, greedily and by ten nucleus samples (top_p 0.9), and
    score the captions.

    The baselines are the greedy captions of other images and `ObjectsOnlyGuess`.

    Args:
        counted: number of train scenes from which the baseline estimates likelihoods.

    Raises UserError: the captioner cannot be used, or there is no such split.
    """
    scenes = [random_scene(seed, split, number) for number in range(images)]
    truths = [truth_of(scene) for scene in scenes]
    with tempfile.TemporaryDirectory() as folder:
        render_dataset(Path(folder), images, seed, split)
        greedy = _captions(captioner, "beam", scenes, Path(folder))
        samples = _captions(captioner, "nucleus", scenes, Path(folder))
    judge = CaptionJudge()
    best, sampled = (_read(judge, captions) for captions in (greedy, samples))
    guess = _objects_only(seed, counted)
    rows = (
        _scores("greedy", best, truths),
        _scores(f"{SAMPLES} nucleus samples", sampled, truths),
        _scores("greedy, of other images", [*best[1:], best[0]], truths),
        _scores(
            "objects known: best guess",
            [[[s] for s in guess(scene, 1)] for scene in scenes],
            truths,
        ),
        _scores(
            f"objects known: {SAMPLES} best",
            [[[s] for s in guess(scene, SAMPLES)] for scene in scenes],
            truths,
        ),
    )
    return CaptionQuality(images, rows, by_predicate(sampled, truths))


def _scores(
    name: str, captions: Sequence[Sequence[Sequence[Statement]]], truths: Sequence[SceneTruth]
) -> CaptionScores:
    return CaptionScores(
        name,
        correct_rate(captions, truths),
        coverage(captions, [truth.composed for truth in truths]),
        coverage(captions, [truth.everything for truth in truths]),
    )


def _captions(
    captioner: str, decoding: str, scenes: Sequence[Scene], folder: Path
) -> list[list[str]]:
    config = CaptionConfig(captioner=captioner, decoding=decoding, beams=1, samples=SAMPLES)
    records = [
        Record(
            str(image_id(scene.split, scene.number)),
            "miniworld",
            scene.split,
            file_name(scene.split, scene.number),
            scene.width,
            scene.height,
        )
        for scene in scenes
    ]
    stage = CaptionStage(config, {scene.split: folder / IMAGES for scene in scenes}, seed=0)
    stage.setup()
    return [[caption.text for caption in record.captions] for record in stage(records)]


def _read(
    judge: CaptionJudge, captions: Sequence[Sequence[str]]
) -> list[list[tuple[Statement, ...]]]:
    return [judge.statements(caption) for caption in captions]


def _objects_only(seed: int, counted: int) -> ObjectsOnlyGuess:
    scenes = (random_scene(seed, "train", number) for number in range(counted))
    return ObjectsOnlyGuess((scene, truth_of(scene)) for scene in scenes)


def quality_rows(quality: CaptionQuality) -> list[list[str]]:
    """Table cells; the first row is the header."""
    return [
        ["captions", "correct", "cover composed", "cover all"],
        *(
            [
                row.name,
                *(f"{rate.value:.1%}" for rate in (row.correct, row.composed, row.everything)),
            ]
            for row in quality.rows
        ),
    ]


def predicate_rows(quality: CaptionQuality) -> list[list[str]]:
    """Table cells by predicate; the first row is the header."""
    return [
        ["predicate", "stated", "correct", "composed", "covered"],
        *(
            [
                predicate,
                f"{correct.total}",
                f"{correct.value:.1%}",
                f"{covered.total}",
                f"{covered.value:.1%}",
            ]
            for predicate, (correct, covered) in quality.predicates.items()
        ),
    ]


def print_quality(quality: CaptionQuality, console: Console) -> None:
    for head, *body in (quality_rows(quality), predicate_rows(quality)):
        table = Table(*head)
        for row in body:
            table.add_row(*row)
        console.print(table)


def main(
    captioner: Annotated[str, typer.Option(help="folder of the captioner")],
    images: Annotated[int, typer.Option(min=1)] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    split: Annotated[str, typer.Option()] = "val",
) -> None:
    """Print the quality of a captioner of the miniworld."""
    print_quality(measure(captioner, images, seed, split), Console())


if __name__ == "__main__":
    run_command(main)
