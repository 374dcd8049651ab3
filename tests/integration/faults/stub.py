"""`sgpipe` with one made-up stage in the place of all models: a run costs no more than Ray does."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from unittest import mock

from sgpipe.cli import main as command_line
from sgpipe.generation import resolve, run
from sgpipe.recipe import Resources
from sgpipe.stages.base import Stage
from sgpipe.storage import mirror
from tests.integration.faults.stage import MARKS, SECONDS, Stub

COPIES = "SGPIPE_STUB_COPIES"  # seconds between copies of the manifest to a store


def stages(*_: object) -> list[Stage]:
    """One stage; or, where it shall leave marks, a quick one that does, and a slow one on half a
    CPU.
    """
    last = Stub(float(os.environ.get(SECONDS, "0")))
    marks = os.environ.get(MARKS)
    if not marks:
        return [last]
    # Ray keeps smaller units with the driver, where no lost machine takes them away
    heavy = 400_000
    return [Stub(bytes=heavy, marks=marks), replace(last, resources=Resources(cpus=0.5))]


def main(*arguments: str) -> None:
    """Run `sgpipe` with these arguments."""
    copies = float(os.environ.get(COPIES, mirror._SECONDS_BETWEEN_COPIES))
    with (
        mock.patch.object(run, "build_stages", stages),
        mock.patch.object(resolve, "hub_models", return_value=[]),  # `--tagger none` is not one
        mock.patch.object(mirror, "_SECONDS_BETWEEN_COPIES", copies),
        mock.patch.object(sys, "argv", ["sgpipe", *arguments]),
    ):
        command_line.main()
