"""Runs without Ray: its place is taken by a loop over units, which costs no processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import spacy
from spacy.language import Language

from sgpipe.generation import run
from sgpipe.generation.pools import Pool
from sgpipe.generation.work_units import WorkUnit
from sgpipe.recipe import Resources
from sgpipe.records import Record
from sgpipe.stages.base import Stage, StageRunner
from sgpipe.storage.manifest import ShardEntry

RAN: list[str] = []  # the names of the stages that ran


@contextmanager
def without_ray() -> Iterator[None]:
    """Let `generate` run the stages in this process, and load a spaCy model once."""
    load, loaded = spacy.load, {}

    def load_once(name: str, **options: object) -> Language:
        return loaded.get(name) or loaded.setdefault(name, load(name, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spacy, "load", load_once)
        patch.setattr(run, "start_ray", lambda *_: None)
        patch.setattr(run, "check_machines", lambda: [])
        patch.setattr(run, "gpu_notes", lambda *_: ())
        patch.setattr(run, "plan_pools", lambda stages, units: [Pool(tuple(stages), Resources(), 1)])
        patch.setattr(run, "run_units", _run_units)
        yield


def _run_units(
    stages: Sequence[Stage],
    units: Sequence[WorkUnit],
    reader: Callable[[WorkUnit], list[Record]],
    writer: Callable[..., ShardEntry],
) -> Iterator[ShardEntry]:
    RAN.extend(stage.name for stage in stages)
    runner = StageRunner(stages)
    for unit in units:
        yield writer(unit, *runner(reader(unit)))
