"""The options of `sgpipe generate` that put files in the place of served models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sgpipe.cli import declare
from sgpipe.errors import UserError

if TYPE_CHECKING:
    from sgpipe.generation.batch import BatchFiles


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Where requests of batches are written to, and their answers read from."""

    batch_file: Annotated[
        Path | None,
        declare.writes_file("Write the requests without answers to it (JSONL); none is sent."),
    ] = None
    batch_answers: Annotated[
        list[Path] | None,
        declare.option(
            "File of answers to such requests (repeatable); none is sent.",
            exists=True,
            dir_okay=False,
        ),
    ] = None

    def files(self, max_cost: float | None) -> BatchFiles | None:
        """Return the files; None: requests are sent. Raises UserError: their cost is limited, but
        none is sent.
        """
        from sgpipe.generation.batch import BatchFiles

        if self.batch_file is None and not self.batch_answers:
            return None
        if max_cost is not None:
            raise UserError(
                "--max-cost is for requests that are sent: omit it with --batch-file and"
                " --batch-answers"
            )
        return BatchFiles(self.batch_file, self.batch_answers or ())
