"""The parse stage: captions to relation triplets, by the parser that a recipe names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from sgpipe.recipe import ParseConfig
from sgpipe.records import Record
from sgpipe.stages.base import Stage
from sgpipe.stages.endpoint import CacheFolder
from sgpipe.stages.parse.learned import WEIGHTS
from sgpipe.stages.parse.rules import Parsed, Parser, RuleParser, model_version
from sgpipe.utils.hashing import model_sha256

_CACHED_CAPTIONS = 1 << 16
_TEXTS = ("subject", "predicate", "object", "subject_head", "object_head", "predicate_lemma")  # of a triplet


def load_parser(config: ParseConfig, cache_folder: CacheFolder | None = None) -> Parser:
    """Return the parser of a recipe. Raises UserError: its model is not installed, or cannot be read."""
    if config.parser == "rules":
        return RuleParser(config)
    if config.parser == "seq2seq":
        from sgpipe.stages.parse.seq2seq import Seq2SeqParser

        return Seq2SeqParser(config)
    if config.parser == "llm":
        from sgpipe.stages.parse.llm import LlmParser

        return LlmParser(config, cache_folder)
    from sgpipe.stages.parse.learned.parser import LearnedParser

    return LearnedParser(config)


def parser_identity(config: ParseConfig) -> Any:
    """Return what decides the triplets besides the settings: versions of the spaCy model, hashes of weights."""
    if config.parser == "rules":
        return model_version(config.model)
    if config.parser == "learned":
        return {"learned": model_sha256(str(WEIGHTS)), "spacy": model_version(config.model)}
    model = config.model if config.parser == "llm" else model_sha256(config.model)
    return {config.parser: model, "spacy": model_version()}  # which finds the heads of what the model names


class CaptionParser(Parser):
    """The parser of a recipe, with a cache: each distinct caption is parsed once."""

    def __init__(self, config: ParseConfig | None = None, cache_folder: CacheFolder | None = None) -> None:
        """See `load_parser`."""
        self._parser = load_parser(config or ParseConfig(), cache_folder)
        self.device = self._parser.device
        self._cache: dict[str, Parsed] = {}

    def read(self, captions: Iterable[str], numbers: Iterable[int] | None = None) -> list[Parsed]:
        """Return triplets and mentions of each caption; their `caption` is of `numbers`, or else the index."""
        captions = list(captions)
        if len(self._cache) > _CACHED_CAPTIONS:
            self._cache.clear()
        if new := [caption for caption in dict.fromkeys(captions) if caption not in self._cache]:
            self._cache.update(zip(new, self._parser.read(new), strict=True))
        found = []
        for caption, number in zip(captions, range(len(captions)) if numbers is None else numbers, strict=True):
            triplets, mentions = self._cache[caption]
            named = [mention._replace(caption=number) for mention in mentions]
            found.append(([replace(triplet, caption=number) for triplet in triplets], named))
        return found


class ParseStage(Stage):
    """Fills `Record.triplets` and `mentions` from the captions of each record."""

    name = "parse"

    def __init__(self, config: ParseConfig) -> None:
        self.config, self.resources = config, config.resources

    def check(self) -> None:
        """Raise UserError if the server of its model does not answer."""
        if self.config.parser == "llm":
            from sgpipe.stages.parse.llm import LlmParser

            LlmParser(self.config).check()

    def setup(self) -> None:
        """Load the parser. Raises UserError if its model is not installed, or cannot be read."""
        self._parser = CaptionParser(self.config, self.cache_folder)
        self.device = self._parser.device

    def __call__(self, records: list[Record]) -> list[Record]:
        usable = [record for record in records if record.ok]
        texts = (caption.text for record in usable for caption in record.captions)
        numbers = (number for record in usable for number in range(len(record.captions)))
        parsed = iter(self._parser.read(texts, numbers))
        for record in usable:
            own = list(islice(parsed, len(record.captions)))
            record.triplets = [triplet for triplets, _ in own for triplet in triplets]
            record.mentions = [mention for _, mentions in own for mention in mentions]
        return records


def parse_lines(lines: Iterable[str], parser: Parser, batch_size: int = 256) -> Iterator[dict[str, Any]]:
    """Yield a dictionary per line, in order: `caption`, and `triplets` with the texts of each."""
    remaining = iter(lines)
    while batch := [line.strip() for line in islice(remaining, batch_size)]:
        for caption, parsed in zip(batch, parser.parse(batch), strict=True):
            yield {"caption": caption, "triplets": [{name: getattr(each, name) for name in _TEXTS} for each in parsed]}
