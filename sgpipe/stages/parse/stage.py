"""The parse stage: captions to relation triplets, by the parser that a recipe names, and the parser
behind a server.
"""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import TypeAlias

from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from sgpipe.errors import UserError
from sgpipe.recipe import ParseConfig
from sgpipe.records import Record
from sgpipe.stages.base import Stage
from sgpipe.stages.parse.grammar.tree import clean
from sgpipe.stages.parse.learned import WEIGHTS
from sgpipe.stages.parse.rules import (
    Parsed,
    Parser,
    RuleParser,
    Texts,
    analyse,
    ground,
    load_model,
    model_version,
    triplets,
)
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.stages.served.chat import ChatRequest, Choice, Refusal
from sgpipe.stages.served.endpoint import ChatEndpoint
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
# Those of a triplet.
_TEXTS = ("subject", "predicate", "object", "subject_head", "object_head", "predicate_lemma")
_GRAPH = TypeAdapter(list[Texts])

Schema: TypeAlias = dict[str, object]


class _Relation(BaseModel, extra="forbid"):
    subject: JsonValue
    predicate: JsonValue
    object: JsonValue


class _Answer(BaseModel, extra="forbid"):
    relations: list[_Relation]


def relations_schema(end: Mapping[str, object], predicate: Mapping[str, object]) -> Schema:
    """Return the JSON schema of an answer that lists relations, from those of their ends and
    predicates.
    """

    def closed(**properties: object) -> Schema:
        return {
            "type": "object",
            "properties": properties,
            "required": [*properties],
            "additionalProperties": False,
        }

    item = closed(subject=end, predicate=predicate, object=end)
    return closed(relations={"type": "array", "items": item})


def read_relations(text: str) -> list[tuple[JsonValue, JsonValue, JsonValue]] | None:
    """Return the ends and predicate of each relation in an answer, of any type, or None if it has
    another form.

    Reasoning, code fences and words around the JSON are passed over.
    """
    text = text.rpartition("</think>")[2]
    try:
        answer = _Answer.model_validate(json.loads(text[text.find("{") : text.rfind("}") + 1]))
    except (ValueError, RecursionError):
        return None
    return [(item.subject, item.predicate, item.object) for item in answer.relations]


SCHEMA = relations_schema({"type": "string"}, {"type": "string"})


class LlmParser(Parser):
    """Parses captions with a served language model; names and heads are found as the rules find
    them.

    An answer that is not a graph is requested once more; then the rules parse that caption, and it
    is counted.
    """

    def __init__(self, config: ParseConfig, cache_folder: CacheFolder | None = None) -> None:
        """Name the endpoint that is asked, and load spaCy.

        Raises:
            UserError: no endpoint or model is named; see also `ChatEndpoint`.
        """
        if config.endpoint is None or config.model is None:
            unset = "endpoint" if config.endpoint is None else "model"
            raise UserError(
                f"parse.{unset} is not set: parse.parser=llm needs a server's URL and its model's"
                " name"
            )
        self._batch_size = config.batch_size
        self._endpoint = ChatEndpoint(config.endpoint, config.model, config.requests, cache_folder)
        self._nlp = load_model()
        self._analysing = threading.Lock()

    def check(self) -> None:
        """Parse a caption.

        Raises:
            UserError: see `ChatEndpoint.check`.
        """
        self._endpoint.check(_request("a dog on a sofa"))

    def read(self, captions: Iterable[str]) -> list[Parsed]:
        """Return the triplets of each caption, in the order of the model; no mentions.

        Several threads may do so at once: they wait for servers together, and analyse captions one
        after the other. Raises as `ChatEndpoint`.
        """
        captions = list(captions)
        asked = (_request(caption) for caption in captions if clean(caption))
        answers = iter(list(self._endpoint.ask_all(asked)))
        parsed: list[Parsed] = []
        with self._analysing:
            analysed = analyse(self._nlp, captions, self._batch_size)
            for caption, (tree, _) in zip(captions, analysed, strict=True):
                graph = self._graph(caption, next(answers)) if clean(caption) else []
                stated = triplets(tree) if graph is None else ground(tree, graph)
                parsed.append((stated, []))
        return parsed

    def _graph(self, caption: str, answer: list[Choice] | Refusal) -> list[Texts] | None:
        """Return what an answer states; None, which is counted: it is no graph."""
        graph = None if isinstance(answer, Refusal) else _read(answer[0].text)
        if graph is None and self._endpoint.cache is not None:
            self._endpoint.cache.put_by_rules(caption.encode())
        return graph


def _request(caption: str) -> ChatRequest:
    def check(text: str) -> str | None:
        return _ONCE_MORE if _read(text) is None else None

    return ChatRequest(clean(caption), system=INSTRUCTIONS, schema=SCHEMA, check=check)


def _read(text: str) -> list[Texts] | None:
    """Return the relations of an answer; None: it is no graph, or not of texts alone."""
    with suppress(ValidationError):
        return _GRAPH.validate_python(read_relations(text))
    return None


def _load_parser(config: ParseConfig, cache_folder: CacheFolder | None) -> Parser:
    """Return the parser that a recipe names.

    Raises:
        UserError: its model is not installed, or cannot be read.
    """
    if config.parser == "rules":
        return RuleParser(config)
    if config.parser == "seq2seq":
        from sgpipe.stages.parse.seq2seq import Seq2SeqParser

        return Seq2SeqParser(config)
    if config.parser == "llm":
        return LlmParser(config, cache_folder)
    from sgpipe.stages.parse.learned.parser import LearnedParser

    return LearnedParser(config)


def parser_identity(config: ParseConfig) -> object:
    """Return what decides the triplets besides the settings: versions of the spaCy model, hashes of
    weights.
    """
    if config.parser == "rules":
        return model_version(config.model)
    if config.parser == "learned":
        return {"learned": model_sha256(str(WEIGHTS)), "spacy": model_version(config.model)}
    model = config.model if config.parser == "llm" else model_sha256(config.model)
    # spaCy finds the heads of what the model names.
    return {config.parser: model, "spacy": model_version()}


class CaptionParser(Parser):
    """The parser of a recipe, with a cache: each distinct caption is parsed once, by whichever
    thread comes first.
    """

    def __init__(
        self, config: ParseConfig | None = None, cache_folder: CacheFolder | None = None
    ) -> None:
        self._parser = _load_parser(config or ParseConfig(), cache_folder)
        self.device = self._parser.device
        self._cache: dict[str, Parsed] = {}
        self._under_way: dict[str, Future[dict[str, Parsed]]] = {}  # what threads parse now
        self._claiming = threading.Lock()

    def read(self, captions: Iterable[str], numbers: Iterable[int] | None = None) -> list[Parsed]:
        """Return triplets and mentions of each caption; their `caption` is of `numbers`, or else
        the index.
        """
        captions = list(captions)
        if numbers is None:
            numbers = range(len(captions))
        by_caption = self._read_once(dict.fromkeys(captions))
        parsed = []
        for caption, number in zip(captions, numbers, strict=True):
            triplets, mentions = by_caption[caption]
            stated = [replace(triplet, caption=number) for triplet in triplets]
            named = [mention._replace(caption=number) for mention in mentions]
            parsed.append((stated, named))
        return parsed

    def _read_once(self, captions: Iterable[str]) -> dict[str, Parsed]:
        """Return what distinct captions state; those that another thread is parsing are waited
        for.
        """
        parsed: dict[str, Parsed] = {}
        elsewhere: dict[str, Future[dict[str, Parsed]]] = {}
        new: list[str] = []
        work: Future[dict[str, Parsed]] = Future()
        with self._claiming:
            if len(self._cache) > _CACHED_CAPTIONS:
                self._cache.clear()
            for caption in captions:
                if caption in self._cache:
                    parsed[caption] = self._cache[caption]
                elif caption in self._under_way:
                    elsewhere[caption] = self._under_way[caption]
                else:
                    new.append(caption)
            self._under_way.update(dict.fromkeys(new, work))
        if new:
            parsed |= self._parse_claimed(new, work)
        for caption, other_work in elsewhere.items():
            parsed[caption] = other_work.result()[caption]
        return parsed

    def _parse_claimed(
        self, captions: list[str], work: Future[dict[str, Parsed]]
    ) -> dict[str, Parsed]:
        """Parse captions that this thread has claimed, and end `work`, for which others may wait."""
        parsed: dict[str, Parsed] = {}
        try:
            parsed = dict(zip(captions, self._parser.read(captions), strict=True))
            work.set_result(parsed)
        except BaseException as error:
            work.set_exception(error)
            raise
        finally:
            with self._claiming:
                self._cache |= parsed
                for caption in captions:
                    del self._under_way[caption]
        return parsed


class ParseStage(Stage):
    """Fills `Record.triplets` and `mentions` from the captions of each record."""

    name = "parse"

    def __init__(self, config: ParseConfig) -> None:
        self.config = config
        self.resources = config.resources
        self.streams = config.streams

    def check(self) -> None:
        if self.config.parser == "llm":
            LlmParser(self.config).check()

    def setup(self) -> None:
        self._parser = CaptionParser(self.config, self.cache_folder)
        self.device = self._parser.device

    def __call__(self, records: list[Record]) -> list[Record]:
        usable = [record for record in records if record.ok]
        texts: list[str] = []
        numbers: list[int] = []
        for record in usable:
            texts += [caption.text for caption in record.captions]
            numbers += range(len(record.captions))
        parsed = iter(self._parser.read(texts, numbers))
        for record in usable:
            record.triplets = []
            record.mentions = []
            for stated, named in islice(parsed, len(record.captions)):
                record.triplets += stated
                record.mentions += named
        return records


def parse_lines(
    lines: Iterable[str], parser: Parser, batch_size: int = 256
) -> Iterator[dict[str, object]]:
    """Yield a dictionary per line, in order: `caption`, and `triplets` with the texts of each."""
    remaining = iter(lines)
    while batch := [line.strip() for line in islice(remaining, batch_size)]:
        for caption, parsed in zip(batch, parser.parse(batch), strict=True):
            triplets = [{name: getattr(triplet, name) for name in _TEXTS} for triplet in parsed]
            yield {"caption": caption, "triplets": triplets}
