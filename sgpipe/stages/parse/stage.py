"""The parse stage: captions to relation triplets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from sgpipe.recipe import ParseConfig
from sgpipe.records import Record, Triplet
from sgpipe.stages.endpoint.cache import CacheFolder
from sgpipe.stages.parse.parser import CaptionParser, Parser, check_parser


class ParseStage:
    """Fills `Record.triplets` from the captions of each record."""

    name = "parse"
    fills: tuple[str, ...] = ("triplets",)
    cache_folder: CacheFolder | None = None  # where a served model's answers are kept; None: nowhere

    def __init__(self, config: ParseConfig) -> None:
        self.config = config
        self.resources = config.resources

    def check(self) -> None:
        """Raises UserError: see `check_parser`."""
        check_parser(self.config)

    def setup(self) -> None:
        """Load the parser.

        Raises:
            UserError: its model is not installed, or cannot be read.
        """
        self._parser = CaptionParser(self.config, self.cache_folder)

    def gpu_use(self) -> dict[str, Any]:
        """See `GpuStage`."""
        if self.config.parser != "seq2seq":
            return {}
        from sgpipe.utils.devices import pick_device  # they import PyTorch, which the rules do not need
        from sgpipe.utils.gpu_memory import gpu_use

        return gpu_use(pick_device(self.config.device, self.config.resources.gpus))

    def __call__(self, records: list[Record]) -> list[Record]:
        usable = [record for record in records if record.ok]
        parsed = iter(self._parser.parse(c.text for record in usable for c in record.captions))
        for record in usable:
            record.triplets = [
                replace(triplet, caption=number)
                for number, caption_triplets in enumerate(islice(parsed, len(record.captions)))
                for triplet in caption_triplets
            ]
        return records


def parse_lines(lines: Iterable[str], parser: Parser, batch_size: int = 256) -> Iterator[dict[str, Any]]:
    """Yield a dictionary per line, in order: `caption` and `triplets`, each with the texts of a `Triplet`.

    Lines are read in batches of `batch_size`; an empty line has no triplets.
    """
    remaining = iter(lines)
    while batch := [line.strip() for line in islice(remaining, batch_size)]:
        for caption, parsed in zip(batch, parser.parse(batch), strict=True):
            yield {"caption": caption, "triplets": [_texts(triplet) for triplet in parsed]}


def _texts(triplet: Triplet) -> dict[str, str]:
    return {
        "subject": triplet.subject,
        "predicate": triplet.predicate,
        "object": triplet.object,
        "subject_head": triplet.subject_head,
        "object_head": triplet.object_head,
        "predicate_lemma": triplet.predicate_lemma,
    }
