"""The parser by a language model."""

from __future__ import annotations

from collections.abc import Iterable

from sgpipe.errors import UserError
from sgpipe.recipe import ParseConfig
from sgpipe.records import Triplet


class LlmParser:
    """Not there yet."""

    def __init__(self, config: ParseConfig) -> None:
        """
        Raises:
            UserError: always.
        """
        raise UserError(f"parse.parser: {config.parser} is not available yet; choose rules")

    def parse(self, captions: Iterable[str]) -> list[list[Triplet]]:
        """The triplets of each caption, in order."""
        raise NotImplementedError
