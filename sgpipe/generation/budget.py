"""How many images of a run may fail, and the tracebacks of those that did."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

from sgpipe.errors import EngineError
from sgpipe.generation.engine import LabelledUnit
from sgpipe.stages.failures import Failure, FailuresInARowError, FailureSummary
from sgpipe.storage.manifest import ShardEntry
from sgpipe.utils.console import count

ERRORS = "errors"  # the folder of tracebacks, in the private folder of a run
_FIRST_IMAGES = 200  # before which the share of failures says little


class ErrorBudget:
    """Counts the failures of one command; a run that is resumed begins at 0.

    Attributes:
        max_errors: the share of images that may fail.
        folder: of the tracebacks, one file for each shard with failures.
    """

    def __init__(self, max_errors: float, private: Path) -> None:
        self.max_errors = max_errors
        self.folder = private / ERRORS
        self._images = 0
        self._summary = FailureSummary()

    def shards(self, units: Generator[LabelledUnit]) -> Generator[ShardEntry]:
        """Yield the shards of units that an engine labels.

        Raises:
            EngineError: too many images failed.
        """
        with closing(units):
            try:
                for labelled in units:
                    self._add(labelled)
                    yield labelled.shard
            except FailuresInARowError as error:
                self._write("in-a-row", error.failures)
                raise EngineError(f"{error}; {self._advice()}") from None

    def note(self) -> str | None:
        """Return what the user should know of the failures; None: there were none."""
        if not self._summary.number:
            return None
        failed = count(self._summary.number, "image")
        return f"NOTE: {failed} failed, {self._summary}; tracebacks are in {self.folder}"

    def _add(self, labelled: LabelledUnit) -> None:
        """Count what is about to be committed.

        Raises:
            EngineError: too many images failed.
        """
        self._images += labelled.rows
        if not labelled.failures:
            return
        self._summary.add(labelled.failures)
        self._write(Path(labelled.shard.file).stem, labelled.failures)
        number = self._summary.number
        if self._images >= _FIRST_IMAGES and number > self.max_errors * self._images:
            raise EngineError(
                f"{number:,} of {count(self._images, 'image')} failed, more than"
                f" engine.max_errors={self.max_errors:g} allows, {self._summary};"
                f" {self._advice()}"
            )

    def _advice(self) -> str:
        again = "the same command resumes; --retry-failed repeats these images, too"
        return f"tracebacks are in {self.folder}; {again}"

    def _write(self, name: str, failures: Sequence[Failure]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        texts = []
        for failure in failures:
            texts.append(f"{failure.file_name} ({failure.stage}: {failure.reason})")
            texts.append(failure.traceback)
        (self.folder / f"{name}.txt").write_text("\n".join(texts), "utf-8", "replace")
