"""How good a captioner of the drawn world is: `python -m sgpipe.miniworld.caption_quality --captioner FOLDER`.

Captions are made by the pipeline's own caption stage from pictures that no training has seen, and read by
its own parser; the truth of a picture is known.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sgpipe.miniworld.caption_guess import ObjectsOnlyGuess
from sgpipe.miniworld.caption_judge import (
    CaptionJudge,
    Share,
    Truth,
    by_predicate,
    covered_share,
    true_share,
    truth_of,
)
from sgpipe.miniworld.command import run_command
from sgpipe.miniworld.relations import Statement
from sgpipe.miniworld.scene import Scene, random_scene
from sgpipe.miniworld.world import IMAGES, draw_world, file_name, image_id
from sgpipe.recipe import CaptionConfig
from sgpipe.records import Record
from sgpipe.stages.caption import CaptionStage

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
    """Caption the first pictures of a split, greedily and by ten nucleus samples (top_p 0.9), and judge them.

    Beside them: the greedy captions of other pictures, and what is likeliest to who knows the objects only.

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
        _row("greedy, of other pictures", [*said[1:], said[0]], truths),
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
