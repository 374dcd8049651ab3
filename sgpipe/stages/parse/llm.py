"""The parser by a language model behind a server with the OpenAI chat API, which enforces a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sgpipe.errors import UserError
from sgpipe.recipe import ParseConfig
from sgpipe.stages.endpoint import CacheFolder, ChatEndpoint, ChatRequest, ChatSampling, conversation
from sgpipe.stages.parse.grammar.tree import clean
from sgpipe.stages.parse.rules import Parsed, Parser, Texts, analyse, ground, load_model, triplets

INSTRUCTIONS = """\
You read image captions and list the relations between things that a caption states.
A relation has a subject, a predicate and an object:
- subject and object are nouns for things that can be seen, copied from the caption without articles, numbers and \
adjectives ("fire hydrant", not "a red fire hydrant"). Resolve pronouns.
- predicate is an action or a place, copied from the caption without auxiliary verbs ("riding", "sitting on", "in \
front of"). A thing that owns or has another is its subject, with the predicate "with" or "has".
- A color, number, size, material or state is not a relation.
- Do not infer what the caption does not state. A caption without relations has an empty list.
Example: "two young women in hats are sitting on a bench, and a dog lies under it" has (women, in, hats), (women, \
sitting on, bench) and (dog, lies under, bench)."""
_ONCE_MORE = (
    'This is not JSON of the form {"relations": [{"subject": …, "predicate": …, "object": …}]}. Answer with it.'
)
_SAMPLING = ChatSampling(max_tokens=1024)


def relations_schema(end: Mapping[str, Any], predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an answer that lists relations, from those of their ends and predicates."""

    def closed(**properties: Any) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}

    item = closed(subject=end, predicate=predicate, object=end)
    return closed(relations={"type": "array", "items": item})


def read_relations(text: str) -> list[tuple[Any, Any, Any]] | None:
    """Return the ends and predicate of each relation in an answer, of any type, or None if it has another form.

    Reasoning, code fences and words around the JSON are passed over.
    """
    text = text.rpartition("</think>")[2]
    try:
        answered = json.loads(text[text.find("{") : text.rfind("}") + 1])
        relations = answered.pop("relations")
        if answered or not isinstance(relations, list):
            return None
        found = [(each.pop("subject"), each.pop("predicate"), each.pop("object")) for each in relations]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return None if any(relations) else found


SCHEMA = relations_schema({"type": "string"}, {"type": "string"})


class LlmParser(Parser):
    """Parses captions with a served language model; names and heads are found as the rules find them.

    An answer that is no graph is requested once more; then the rules parse that caption, and it is counted.
    """

    def __init__(self, config: ParseConfig, cache_folder: CacheFolder | None = None) -> None:
        """Raises UserError: no endpoint or model is named; see also `ChatEndpoint`."""
        if config.endpoint is None or config.model is None:
            unset = "endpoint" if config.endpoint is None else "model"
            raise UserError(f"parse.{unset} is not set: parse.parser=llm needs a server's URL and its model's name")
        self._batch_size = config.batch_size
        self._endpoint = ChatEndpoint(config.endpoint, config.model, config.requests, cache_folder)
        self._nlp = load_model()

    def check(self) -> None:
        """Parse a caption. Raises UserError: see `ChatEndpoint.check`."""
        self._endpoint.check(_request("a dog on a sofa"))

    def read(self, captions: Iterable[str]) -> list[Parsed]:
        """Return the triplets of each caption, in the order of the model; no mentions. Raises as `ChatEndpoint`."""
        captions = list(captions)
        answers = self._endpoint.ask_all(_request(caption) for caption in captions if clean(caption))
        found: list[Parsed] = []
        for caption, (tree, _) in zip(captions, analyse(self._nlp, captions, self._batch_size), strict=True):
            answer = next(answers) if clean(caption) else []
            graph = _read(answer[0].text) if isinstance(answer, list) and answer else None
            if graph is None and clean(caption) and self._endpoint.cache is not None:
                self._endpoint.cache.put_by_rules(caption.encode())
            found.append((triplets(tree) if graph is None else ground(tree, graph), []))
        return found


def _request(caption: str) -> ChatRequest:
    def check(text: str) -> str | None:
        return _ONCE_MORE if _read(text) is None else None

    return ChatRequest(conversation(clean(caption), system=INSTRUCTIONS), _SAMPLING, schema=SCHEMA, check=check)


def _read(text: str) -> list[Texts] | None:
    """Return the graph of an answer, or None if it is none."""
    graph = read_relations(text)
    return graph if graph is not None and all(isinstance(each, str) for texts in graph for each in texts) else None
