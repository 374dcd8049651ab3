"""Runs in which stages fail: error rows, tracebacks, the budget, and units that are tried again."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from sgpipe.errors import ComputationError, EngineError, StoreError
from sgpipe.generation import run as generation
from sgpipe.generation.engine import UnitWriter
from sgpipe.generation.run import generate
from sgpipe.recipe import Recipe, Resources, load_recipe
from sgpipe.records import Record
from sgpipe.stages.base import Stage
from sgpipe.stages.build import build_stages
from sgpipe.storage.verify import verify
from sgpipe.utils.console import Progress
from sgpipe.utils.gpu import MemoryFullError
from tests.detections import make_coco
from tests.sgpipe.generation.in_process import label, rows, without_ray

IMAGES = 10
KINDS = [ValueError, MemoryError, TimeoutError, ComputationError, MemoryFullError, LookupError]
TIMES = 7  # each kind in each stage: one of two workers fails on 20 images in a row
STAGES = ["load", "parse", "pair", "tag"]


@dataclass
class Faulty(Stage):
    """Raises for images of some numbers what the remainder says."""

    name: str
    place: int
    every: int = len(STAGES)
    resources: Resources = field(default_factory=Resources)

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            number, place = divmod(int(record.image_id), self.every)
            if record.ok and place == self.place:
                raise KINDS[number % len(KINDS)](f"image {record.image_id}")
        return records


def faulty_stages(*_: object) -> Sequence[Stage]:
    return [Faulty(name, place) for place, name in enumerate(STAGES)]


def coco_recipe(folder: Path, images: int, **settings: object) -> Recipe:
    if not folder.exists():
        make_coco(folder, images)
    files = {
        "images": "images",
        "annotations": "instances_val.json",
        "captions": "captions_val.json",
    }
    values = {"source.root": str(folder), "source.splits": {"val": files}}
    values |= {"caption.captioner": None, "tag.method": "overlap"}
    return load_recipe("coco", values | settings)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "ray"])
def test_each_kind_of_exception_in_each_stage_is_an_error_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Too many in a row end the run; with a larger budget it goes on."""
    monkeypatch.setattr(generation, "build_stages", faulty_stages)
    images = TIMES * len(STAGES) * len(KINDS)
    settings = {"engine.kind": kind, "engine.cpus": 2, "engine.unit_size": 10}
    recipe = coco_recipe(tmp_path / "coco", images, **settings)
    with pytest.raises(EngineError, match="20 images in a row failed"):
        generate(recipe, tmp_path / "out", Progress(Console(quiet=True)))
    assert 0 < len(rows(tmp_path / "out")) < images
    recipe = coco_recipe(tmp_path / "coco", images, **settings, **{"engine.max_errors": 1.0})
    output = io.StringIO()
    generate(recipe, tmp_path / "out", Progress(Console(file=output, width=1000)))
    errors = Counter(str(record.error).partition(" image ")[0] for record in rows(tmp_path / "out"))
    shown = [f"{error.__name__}:" for error in KINDS]
    shown[KINDS.index(ComputationError)] = shown[KINDS.index(MemoryFullError)] = ""
    texts = [f"{stage}: {name}".strip() for stage in STAGES for name in shown]
    expected = Counter(TIMES * texts)
    assert Counter({name.strip(): number for name, number in errors.items()}) == expected
    tracebacks = [path.read_text() for path in (tmp_path / "out/.sgpipe/errors").iterdir()]
    assert sum(text.count("Traceback (most recent call last)") for text in tracebacks) >= images
    assert " images failed" in output.getvalue()
    assert not verify(tmp_path / "out").problems


class AfterEachStage:
    """Makes stages that raise when they have filled the columns of one image and of others."""

    def __init__(self, bad: str) -> None:
        self.bad = bad

    def __call__(self, *arguments: object, **settings: object) -> list[Stage]:
        stages = build_stages(*arguments, **settings)
        for stage in stages:
            stage.__class__ = self._failing(type(stage))
        return stages

    def _failing(self, kind: type[Stage]) -> type[Stage]:
        bad = self.bad

        class Failing(kind):
            def __call__(self, records: list[Record]) -> list[Record]:
                filled = super().__call__(records)
                if any(record.image_id == bad and record.ok for record in filled):
                    raise RuntimeError("after all")
                return filled

        return Failing


@pytest.mark.slow
def test_every_stage_can_be_repeated_for_a_part_of_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("miniworld", {"source.miniworld.images": IMAGES, "caption.samples": 2})
    with without_ray():
        label(recipe, tmp_path / "undisturbed")
        undisturbed = rows(tmp_path / "undisturbed")
        bad = undisturbed[3].image_id
        monkeypatch.setattr(generation, "build_stages", AfterEachStage(bad))
        label(recipe, tmp_path / "out")
    disturbed = rows(tmp_path / "out")
    assert disturbed[3].error == "caption: RuntimeError: after all"
    del undisturbed[3], disturbed[3]
    assert disturbed == undisturbed


def test_too_many_failures_end_a_run_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"engine.unit_size": 50, "source.open_images": False}
    recipe = coco_recipe(tmp_path / "coco", 400, **settings)
    out = tmp_path / "out"
    with without_ray():
        monkeypatch.setattr(generation, "build_stages", lambda *_: [Faulty("tag", 0, 12)])
        with pytest.raises(EngineError) as caught:
            label(recipe, out)
        assert str(caught.value) == (
            "17 of 200 images failed, more than engine.max_errors=0.05 allows, 3 in tag:"
            f" ValueError: image 0; tracebacks are in {out}/.sgpipe/errors; the same command"
            " resumes; --retry-failed repeats these images, too"
        )
        assert len(rows(out)) == 150
        monkeypatch.setattr(generation, "build_stages", lambda *_: [Faulty("tag", 0, 100)])
        _, lines = label(recipe, out)
        assert len(rows(out)) == 400
        assert lines[-1].startswith("NOTE: 2 images failed, 1 in tag: TimeoutError: image 200;")
        label(recipe, out, retry_failed=True)
        assert sum(not record.ok for record in rows(out)) <= 4


def test_a_class_that_fails_on_every_image_ends_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = coco_recipe(tmp_path / "coco", 60, **{"source.open_images": False})
    monkeypatch.setattr(
        generation, "build_stages", lambda *_: [Faulty("pair", 99, 100), Faulty("tag", 0, 1)]
    )
    out = tmp_path / "out"
    with without_ray(), pytest.raises(EngineError) as caught:
        label(recipe, out)
    assert str(caught.value) == (
        "20 images in a row failed, 4 in tag: ValueError: image 0; tracebacks are in"
        f" {out}/.sgpipe/errors; the same command resumes; --retry-failed repeats these images,"
        " too"
    )
    assert "Traceback" in (out / ".sgpipe/errors/in-a-row.txt").read_text()
    assert [record.ok for record in rows(out)] == [False] * 15  # the first unit


@dataclass(frozen=True)
class Unsteady(UnitWriter):
    """Its store does not answer when the first images are written, or never."""

    marks: Path = Path()
    is_lost: bool = False

    def __call__(self, unit, records, usage):
        mark = self.marks / f"unit-{unit.start}"
        if self.is_lost or (unit.start < 6 and not mark.exists()):
            mark.touch()
            raise StoreError("the store does not answer")
        return super().__call__(unit, records, usage)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "ray"])
def test_units_whose_store_does_not_answer_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    settings = {"engine.kind": kind, "engine.cpus": 2, "engine.unit_size": 5}
    recipe = coco_recipe(tmp_path / "coco", 20, **settings)
    monkeypatch.setattr(
        generation, "UnitWriter", lambda storage, claim: Unsteady(storage, claim, marks)
    )
    quiet = Progress(Console(quiet=True))
    summary = generate(recipe, tmp_path / "out", quiet)
    assert summary.complete
    assert list(marks.iterdir())
    monkeypatch.setattr(
        generation, "UnitWriter", lambda storage, claim: Unsteady(storage, claim, marks, True)
    )
    with pytest.raises(EngineError, match=r"^the store does not answer$"):
        generate(recipe, tmp_path / "another", quiet)
