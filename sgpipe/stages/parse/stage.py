"""The parse stage: captions to relation triplets, by the parser that a recipe names, and the parser
behind a server.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from sgpipe.errors import UserError
from sgpipe.recipe import ParseConfig
from sgpipe.records import Record
from sgpipe.stages.base import Stage
from sgpipe.stages.endpoint import CacheFolder, ChatEndpoint, ChatRequest
from sgpipe.stages.parse.grammar.tree import clean
from sgpipe.stages.parse.learned import WEIGHTS
from sgpipe.stages.parse.rules import (
    Parsed,
    Parser,
    RuleParser,
    analyse,
    ground,
    load_model,
    model_version,
    triplets,
)
from sgpipe.utils.hashing import model_sha256

INSTRUCTIONS = """\
You read image captions and list the relations between things that a caption states.
A relation has a subject, a predicate and an object:
- subject and object are nouns for things that can be seen, copied from the caption without articles, numbers and \
adjectives ("fire hydrant", not "a red fire hydrant"). Resolve pronouns.
- predicate is an action or a place, copied from the caption without auxiliary verbs ("riding", "sitting on", "in \
front of"). A thing that owns or has another is its subject, with the predicate "with" or "has".
- A color, number, size, material or state is not a relation.
- What the caption denies ("without a helmet"), supposes ("as if riding", "trying to catch") or only depicts \
("a poster of a man on a horse") is not a relation, but where the poster is, is one.
- Do not infer what the caption does not state. A caption without relations has an empty list.
Example: "two young women in hats are sitting on a bench, and a dog lies under it" has (women, in, hats), (women, \
sitting on, bench) and (dog, lies under, bench)."""
_ONCE_MORE = (
    'This is not JSON of the form {"relations": [{"subject": …, "predicate": …, "object": …}]}.'
    " Answer with it."
)


_CACHED_CAPTIONS = 1 << 16
_TEXTS = (
    "subject",
    "predicate",
    "object",
    "subject_head",
    "object_head",
    "predicate_lemma",
)  # of a triplet


def relations_schema(end: Mapping[str, Any], predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an answer that lists relations, from those of their ends and
    predicates.
    """

    def closed(**properties: Any) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": [*properties],
            "additionalProperties": False,
        }

    item = closed(subject=end, predicate=predicate, object=end)
    return closed(relations={"type": "array", "items": item})


def read_relations(text: str) -> list[tuple[Any, Any, Any]] | None:
    """Return the ends and predicate of each relation in an answer, of any type, or None if it has
    another form.

    Reasoning, code fences and words around the JSON are passed over.
    """
    text = text.rpartition("</think>")[2]
    try:
        answered = json.loads(text[text.find("{") : text.rfind("}") + 1])
        relations = answered.pop("relations")
        if answered or not isinstance(relations, list):
            return None
        found = [
            (relation.pop("subject"), relation.pop("predicate"), relation.pop("object"))
            for relation in relations
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return None if any(relations) else found


SCHEMA = relations_schema({"type": "string"}, {"type": "string"})


class LlmParser(Parser):
    """Parses captions with a served language model; names and heads are found as the rules find
    them.

    An answer that is not a graph is requested once more; then the rules parse that caption, and it
    is counted.
    """

    def __init__(self, config: ParseConfig, cache_folder: CacheFolder | None = None) -> None:
        """Raises UserError: no endpoint or model is named; see also `ChatEndpoint`."""
        if config.endpoint is None or config.model is None:
            unset = "endpoint" if config.endpoint is None else "model"
            raise UserError(
                f"parse.{unset} is not set: parse.parser=llm needs a server's URL and its model's"
                " name"
            )
        self._batch_size = config.batch_size
        self._endpoint = ChatEndpoint(config.endpoint, config.model, config.requests, cache_folder)
        self._nlp = load_model()

    def check(self) -> None:
        """Parse a caption. Raises UserError: see `ChatEndpoint.check`."""
        self._endpoint.check(_request("a dog on a sofa"))

    def read(self, captions: Iterable[str]) -> list[Parsed]:
        """Return the triplets of each caption, in the order of the model; no mentions. Raises as
        `ChatEndpoint`.
        """
        captions = list(captions)
        answers = self._endpoint.ask_all(
            _request(caption) for caption in captions if clean(caption)
        )
        found: list[Parsed] = []
        for caption, (tree, _) in zip(
            captions, analyse(self._nlp, captions, self._batch_size), strict=True
        ):
            answer = next(answers) if clean(caption) else []
            graph = _read(answer[0].text) if isinstance(answer, list) and answer else None
            if graph is None and clean(caption) and self._endpoint.cache is not None:
                self._endpoint.cache.put_by_rules(caption.encode())
            found.append((triplets(tree) if graph is None else ground(tree, graph), []))
        return found


def _request(caption: str) -> ChatRequest:
    def check(text: str) -> str | None:
        return _ONCE_MORE if _read(text) is None else None

    return ChatRequest(clean(caption), system=INSTRUCTIONS, schema=SCHEMA, check=check)


def _read(text: str) -> list[tuple[str, str, str]] | None:
    graph = read_relations(text)
    return (
        graph
        if graph is not None and all(isinstance(text, str) for texts in graph for text in texts)
        else None
    )


def _load_parser(config: ParseConfig, cache_folder: CacheFolder | None) -> Parser:
    """Raises UserError: its model is not installed, or cannot be read."""
    if config.parser == "rules":
        return RuleParser(config)
    if config.parser == "seq2seq":
        from sgpipe.stages.parse.seq2seq import Seq2SeqParser

        return Seq2SeqParser(config)
    if config.parser == "llm":
        return LlmParser(config, cache_folder)
    from sgpipe.stages.parse.learned.parser import LearnedParser

    return LearnedParser(config)


def parser_identity(config: ParseConfig) -> Any:
    """Return what decides the triplets besides the settings: versions of the spaCy model, hashes of
    weights.
    """
    if config.parser == "rules":
        return model_version(config.model)
    if config.parser == "learned":
        return {"learned": model_sha256(str(WEIGHTS)), "spacy": model_version(config.model)}
    model = config.model if config.parser == "llm" else model_sha256(config.model)
    return {
        config.parser: model,
        "spacy": model_version(),
    }  # which finds the heads of what the model names


class CaptionParser(Parser):
    """The parser of a recipe, with a cache: each distinct caption is parsed once."""

    def __init__(
        self, config: ParseConfig | None = None, cache_folder: CacheFolder | None = None
    ) -> None:
        self._parser = _load_parser(config or ParseConfig(), cache_folder)
        self.device = self._parser.device
        self._cache: dict[str, Parsed] = {}

    def read(self, captions: Iterable[str], numbers: Iterable[int] | None = None) -> list[Parsed]:
        """Return triplets and mentions of each caption; their `caption` is of `numbers`, or else
        the index.
        """
        captions = list(captions)
        if len(self._cache) > _CACHED_CAPTIONS:
            self._cache.clear()
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._cache]
        if new:
            self._cache.update(zip(new, self._parser.read(new), strict=True))
        found = []
        for caption, number in zip(
            captions, range(len(captions)) if numbers is None else numbers, strict=True
        ):
            triplets, mentions = self._cache[caption]
            named = [mention._replace(caption=number) for mention in mentions]
            found.append(([replace(triplet, caption=number) for triplet in triplets], named))
        return found


class ParseStage(Stage):
    """Fills `Record.triplets` and `mentions` from the captions of each record."""

    name = "parse"

    def __init__(self, config: ParseConfig) -> None:
        self.config = config
        self.resources = config.resources

    def check(self) -> None:
        if self.config.parser == "llm":
            LlmParser(self.config).check()

    def setup(self) -> None:
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


def parse_lines(
    lines: Iterable[str], parser: Parser, batch_size: int = 256
) -> Iterator[dict[str, Any]]:
    """Yield a dictionary per line, in order: `caption`, and `triplets` with the texts of each."""
    remaining = iter(lines)
    while batch := [line.strip() for line in islice(remaining, batch_size)]:
        for caption, parsed in zip(batch, parser.parse(batch), strict=True):
            yield {
                "caption": caption,
                "triplets": [{name: getattr(each, name) for name in _TEXTS} for each in parsed],
            }
