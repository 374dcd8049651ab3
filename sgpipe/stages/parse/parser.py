"""Parsers of captions: what each of them offers, which one a recipe means, and the cache that all of them share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

from sgpipe.recipe import ParseConfig
from sgpipe.records import Triplet
from sgpipe.stages.endpoint.cache import CacheFolder
from sgpipe.stages.parse.learned import WEIGHTS
from sgpipe.utils.hashing import model_sha256

_CACHED_CAPTIONS = 1 << 16


class Parser(Protocol):
    """Turns captions into triplets. The triplets of a caption do not depend on the captions parsed with it."""

    def parse(self, captions: Iterable[str]) -> list[list[Triplet]]:
        """The triplets of each caption, in order; `Triplet.caption` means nothing here, and the caller sets it."""
        ...


def load_parser(config: ParseConfig, cache_folder: CacheFolder | None = None) -> Parser:
    """The parser of a recipe, without a cache. Modules of other parsers are not imported.

    Args:
        cache_folder: where a served model's answers are kept; None: nowhere.

    Raises:
        UserError: its model is not installed, or cannot be read.
    """
    if config.parser == "rules":
        from sgpipe.stages.parse.rules import RuleParser

        return RuleParser(config)
    if config.parser == "seq2seq":
        from sgpipe.stages.parse.seq2seq import Seq2SeqParser

        return Seq2SeqParser(config)
    if config.parser == "llm":
        from sgpipe.stages.parse.llm import LlmParser

        return LlmParser(config, cache_folder)
    from sgpipe.stages.parse.learned.parser import LearnedParser

    return LearnedParser(config)


def check_parser(config: ParseConfig) -> None:
    """Raises UserError: there is no such model, or its server does not answer, as far as it is cheap to tell."""
    if config.parser == "seq2seq":
        from sgpipe.stages.parse.seq2seq import check_seq2seq

        check_seq2seq(config)
    elif config.parser == "llm":
        from sgpipe.stages.parse.llm import LlmParser

        LlmParser(config).check()


def parser_identity(config: ParseConfig) -> Any:
    """What decides the triplets, besides the settings: the version of the spaCy model, the hash of the weights."""
    from sgpipe.stages.parse.spacy_model import model_version

    if config.parser in ("seq2seq", "llm"):  # spaCy finds the heads of what the model names
        model = config.model if config.parser == "llm" else model_sha256(config.model)
        return {config.parser: model, "spacy": model_version()}
    if config.parser == "learned":
        return {"learned": model_sha256(str(WEIGHTS)), "spacy": model_version(config.model)}
    return model_version(config.model)


class CaptionParser:
    """The parser of a recipe, with a cache: each distinct caption is parsed once."""

    def __init__(self, config: ParseConfig | None = None, cache_folder: CacheFolder | None = None) -> None:
        """As `load_parser`."""
        config = config or ParseConfig()
        self._parser = load_parser(config, cache_folder)
        self._cache: OrderedDict[str, list[Triplet]] = OrderedDict()

    def parse(self, captions: Iterable[str]) -> list[list[Triplet]]:
        """Triplets of each caption, in word order; `Triplet.caption` is the index in `captions`.

        Each distinct caption is parsed once, and the most recent ones are cached between calls.
        """
        captions = list(captions)
        distinct = dict.fromkeys(captions)
        known = {caption: self._cache[caption] for caption in distinct if caption in self._cache}
        new = [caption for caption in distinct if caption not in known]
        if new:
            known.update(zip(new, self._parser.parse(new), strict=True))
        self._remember(known)
        return [
            [replace(triplet, caption=number) for triplet in known[caption]] for number, caption in enumerate(captions)
        ]

    def clear_cache(self) -> None:
        """Drop the triplets of earlier captions."""
        self._cache.clear()

    def _remember(self, known: dict[str, list[Triplet]]) -> None:
        for caption, parsed in known.items():
            self._cache[caption] = parsed
            self._cache.move_to_end(caption)
        while len(self._cache) > _CACHED_CAPTIONS:
            self._cache.popitem(last=False)
