"""How good a captioner of the drawn world is: `python -m experiments.miniworld.caption_quality --captioner FOLDER`.

Captions are made by the pipeline's own caption stage from images that no training has seen, and read by
its own parser; the truth of an image is known.

Whether what captions say of a drawn scene is true: they are read by the pipeline's own parser and matcher.

What can be said of a scene by someone who knows which things are in it, but has not seen the image.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sgpipe.miniworld.actors import KINDS
from sgpipe.miniworld.dataset import IMAGES, draw_world, file_name, image_id
from sgpipe.miniworld.relations import PREDICATES, Statement
from sgpipe.miniworld.scene import Scene, random_scene
from sgpipe.recipe import CaptionConfig
from sgpipe.records import Record
from sgpipe.sources.vocabulary import packaged_synonyms
from sgpipe.stages.caption.stage import CaptionStage
from sgpipe.stages.pair.matching import HeadMatcher
from sgpipe.stages.parse.grammar.clauses import verb_lemma
from sgpipe.stages.parse.stage import CaptionParser
from sgpipe.utils.console import run_command

SAMPLES = 10


@dataclass(frozen=True)
class Row:
    """How often one way to get captions is right, and what of the truth its captions hold.

    `composed` counts what the scenes were composed of, `everything` also what follows from it.
    """

    name: str
    true: Share
    composed: Share
    everything: Share


@dataclass(frozen=True)
class Quality:
    """On so many images: a row per way to caption, and per predicate the truth of the samples and their coverage."""

    images: int
    rows: tuple[Row, ...]
    predicates: dict[str, tuple[Share, Share]]


def measure(captioner: str, images: int, seed: int = 0, split: str = "val", *, counted: int = 4000) -> Quality:
    """Caption the first images of a split, greedily and by ten nucleus samples (top_p 0.9), and judge them.

    Beside them: the greedy captions of other images, and what is likeliest to who knows the objects only.

    Args:
        counted: number of train scenes that tell what is likely.

    Raises UserError: the captioner cannot be used, or there is no such split.
    """
    scenes = [random_scene(seed, split, number) for number in range(images)]
    truths = [truth_of(scene) for scene in scenes]
    with tempfile.TemporaryDirectory() as folder:
        draw_world(Path(folder), images, seed, split)
        greedy = _captions(captioner, "beam", scenes, Path(folder))
        samples = _captions(captioner, "nucleus", scenes, Path(folder))
    judge = CaptionJudge()
    said, sampled = (_judged(judge, captions) for captions in (greedy, samples))
    guess = _objects_only(seed, counted)
    rows = (
        _row("greedy", said, truths),
        _row(f"{SAMPLES} nucleus samples", sampled, truths),
        _row("greedy, of other images", [*said[1:], said[0]], truths),
        _row("objects known: best guess", [[[s] for s in guess(scene, 1)] for scene in scenes], truths),
        _row(f"objects known: {SAMPLES} best", [[[s] for s in guess(scene, SAMPLES)] for scene in scenes], truths),
    )
    return Quality(images, rows, by_predicate(sampled, truths))


def _row(name: str, captions: Sequence[Sequence[Sequence[Statement]]], truths: Sequence[Truth]) -> Row:
    return Row(
        name,
        true_share(captions, truths),
        covered_share(captions, [truth.composed for truth in truths]),
        covered_share(captions, [truth.everything for truth in truths]),
    )


def _captions(captioner: str, decoding: str, scenes: Sequence[Scene], folder: Path) -> list[list[str]]:
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


def _judged(judge: CaptionJudge, captions: Sequence[Sequence[str]]) -> list[list[tuple[Statement, ...]]]:
    return [judge.statements(own) for own in captions]


def _objects_only(seed: int, counted: int) -> ObjectsOnlyGuess:
    scenes = (random_scene(seed, "train", number) for number in range(counted))
    return ObjectsOnlyGuess((scene, truth_of(scene)) for scene in scenes)


def quality_rows(quality: Quality) -> list[list[str]]:
    """The figures as cells, the first row their heads."""
    return [
        ["captions", "true", "cover composed", "cover all"],
        *(
            [row.name, *(f"{share.value:.1%}" for share in (row.true, row.composed, row.everything))]
            for row in quality.rows
        ),
    ]


def predicate_rows(quality: Quality) -> list[list[str]]:
    """The figures per predicate as cells, the first row their heads."""
    return [
        ["predicate", "stated", "true", "composed", "covered"],
        *(
            [predicate, f"{right.total}", f"{right.value:.1%}", f"{covered.total}", f"{covered.value:.1%}"]
            for predicate, (right, covered) in quality.predicates.items()
        ),
    ]


def print_quality(quality: Quality, console: Console) -> None:
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
    """Print how good a captioner of the drawn world is."""
    print_quality(measure(captioner, images, seed, split), Console())


if __name__ == "__main__":
    run_command(main)


@dataclass(frozen=True)
class Truth:
    """The relations of a scene between classes: all that are true, and those that were composed."""

    everything: frozenset[Statement]
    composed: frozenset[Statement]


def truth_of(scene: Scene) -> Truth:
    return Truth(
        frozenset(scene.statement(fact) for fact in scene.facts),
        frozenset(scene.statement(fact) for fact in scene.facts if not fact.implied),
    )


class CaptionJudge:
    """Reads captions as statements about classes of the world."""

    def __init__(self) -> None:
        self._parser = CaptionParser()
        self._matcher = HeadMatcher(packaged_synonyms("coco"))
        self._predicates = {_lemma(predicate): predicate for predicate in PREDICATES}

    def statements(self, captions: Sequence[str]) -> list[tuple[Statement, ...]]:
        """What each caption states, in its order; nouns or predicates the world lacks stay as they are written."""
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
class Share:
    """So many of so many."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """Between 0 and 1; 0 of 0 is 0."""
        return self.hits / self.total if self.total else 0.0


def is_true(stated: Sequence[Statement], truth: Truth) -> bool:
    """A caption is true if it states a relation and all that it states holds."""
    return bool(stated) and truth.everything.issuperset(stated)


def true_share(captions: Iterable[Sequence[Sequence[Statement]]], truths: Sequence[Truth]) -> Share:
    """How many captions are true, of all captions of all images."""
    verdicts = [is_true(stated, truth) for own, truth in zip(captions, truths, strict=True) for stated in own]
    return Share(sum(verdicts), len(verdicts))


def covered_share(captions: Iterable[Sequence[Sequence[Statement]]], wanted: Sequence[frozenset[Statement]]) -> Share:
    """How many of the `wanted` statements of all images are in the captions of their image."""
    pairs = list(zip(captions, wanted, strict=True))
    hits = sum(len(statements.intersection(*[{s for stated in own for s in stated}])) for own, statements in pairs)
    return Share(hits, sum(map(len, wanted)))


def by_predicate(
    captions: Iterable[Sequence[Sequence[Statement]]], truths: Sequence[Truth]
) -> dict[str, tuple[Share, Share]]:
    """Per predicate: how many of the times it is stated it is true, and how many of its composed facts are stated."""
    stated, right, wanted, found = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for own, truth in zip(captions, truths, strict=True):
        said = [statement for each in own for statement in each]
        stated.update(predicate for _, predicate, _ in said)
        right.update(s[1] for s in said if s in truth.everything)
        wanted.update(predicate for _, predicate, _ in truth.composed)
        found.update(predicate for _, predicate, _ in truth.composed.intersection(said))
    return {
        predicate: (Share(right[predicate], stated[predicate]), Share(found[predicate], wanted[predicate]))
        for predicate in PREDICATES
        if stated[predicate] or wanted[predicate]
    }


def _lemma(predicate: str) -> str:
    """As the parser writes it: "sit on"."""
    verb, *rest = predicate.split()
    return " ".join([verb_lemma(verb), *rest]) if verb.endswith("ing") else predicate


class ObjectsOnlyGuess:
    """Says what is most often true of scenes with such things: the best that knowing the objects alone allows
    to someone who looks at two classes at a time."""

    def __init__(self, scenes: Iterable[tuple[Scene, Truth]]) -> None:
        """Counts in `scenes` how often two classes are there, and how often a statement about them is true."""
        present, true = Counter[tuple[str, str]](), Counter[Statement]()
        for scene, truth in scenes:
            present.update(_pairs(scene))
            true.update(truth.everything)
        self._chances: dict[tuple[str, str], list[tuple[float, Statement]]] = {}
        for statement, count in true.items():
            pair = statement[0], statement[2]
            self._chances.setdefault(pair, []).append((count / present[pair], statement))

    def __call__(self, scene: Scene, count: int) -> list[Statement]:
        """The `count` statements that are most likely true of the scene, best first."""
        chances = [chance for pair in _pairs(scene) for chance in self._chances.get(pair, ())]
        return [statement for _, statement in sorted(chances, key=lambda chance: (-chance[0], chance[1]))[:count]]


def _pairs(scene: Scene) -> set[tuple[str, str]]:
    """Ordered pairs of classes; a class with itself if there are two of it."""
    kinds = Counter(thing.kind for thing in scene.things)
    return {pair for pair in product(kinds, kinds) if pair[0] != pair[1] or kinds[pair[0]] > 1}
