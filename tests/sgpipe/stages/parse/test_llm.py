"""The parser by a served language model, from the schema it is sent to the triplets of a record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sgpipe.recipe import ParseConfig, Requests
from sgpipe.stages.endpoint import CacheFolder, RequestCache
from sgpipe.stages.parse import llm, rules
from sgpipe.stages.parse.grammar.tree import clean
from sgpipe.stages.parse.llm import LlmParser
from sgpipe.stages.parse.stage import CaptionParser, ParseStage
from tests.endpoint_server import Answerer, EndpointServer, scripted
from tests.parity.parser import load, predict

pytestmark = pytest.mark.usefixtures("no_pauses")

GOLD = {
    "a man riding a horse on a beach": [("man", "riding", "horse"), ("horse", "on", "beach")],
    "two dogs lying under the table": [("dogs", "lying under", "table")],
    "a clear sky": [],
}
CAPTIONS = list(GOLD)


@pytest.fixture(autouse=True, scope="module")
def one_spacy_model() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        once = cache(rules.load_model)
        for module in (llm, rules):
            patch.setattr(module, "load_model", once)
        yield


def answers(graphs: Mapping[str, Sequence[Sequence[str]]]) -> Answerer:
    """A model that knows these graphs, and that other captions have none."""

    def answer(body: dict[str, Any]) -> list[str]:
        caption = body["messages"][min(1, len(body["messages"]) - 1)]["content"]
        names = ("subject", "predicate", "object")
        relations = [dict(zip(names, texts, strict=True)) for texts in graphs.get(caption, ())]
        return [json.dumps({"relations": relations})]

    return answer


gold = answers(GOLD)


def config(server: EndpointServer) -> ParseConfig:
    return ParseConfig(parser="llm", endpoint=server.url, model="tiny-llm", requests=Requests(retries=1))


def served(answer: Any = gold, **options: Any) -> EndpointServer:
    return EndpointServer(answer, models=["tiny-llm"], **options)


def texts(parser: Any, captions: list[str]) -> list[list[tuple[str, str, str]]]:
    return [[(each.subject, each.predicate, each.object) for each in parsed] for parsed in parser.parse(captions)]


def test_relations_are_those_of_the_model() -> None:
    with served() as server:
        ParseStage(config(server)).check()
        assert texts(CaptionParser(config(server)), CAPTIONS) == list(GOLD.values())
    schema = server.requests[0]["response_format"]["json_schema"]
    item = schema["schema"]["properties"]["relations"]["items"]
    names = ["subject", "predicate", "object"]
    assert (schema["strict"], item["required"], item["additionalProperties"]) == (True, names, False)


@pytest.mark.parametrize("wrong", [
    "The relations are: man riding horse", '{"relations": [', '{"relations": {}}', '{"relations": [], "more": 1}',
    '{"relations": [{"subject": "man", "predicate": "on", "object": 3}]}',
    '{"relations": [{"subject": "man", "predicate": "on", "object": "horse", "score": 1}]}',
])  # fmt: skip
def test_a_wrong_answer_is_asked_for_once_more(wrong: str) -> None:
    def answer(body: dict[str, Any]) -> list[str]:
        return [wrong] if len(body["messages"]) == 2 else gold(body)

    with served(answer) as server:
        parser = LlmParser(config(server))
        assert texts(parser, CAPTIONS[:1]) == [GOLD[CAPTIONS[0]]]
        assert server.requests[1]["messages"][2] == {"role": "assistant", "content": wrong}


def test_then_the_rules_parse_it_and_it_is_counted(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> list[str]:
        return ["no graph"] if "dogs" in body["messages"][1]["content"] else gold(body)

    by_rules = texts(CaptionParser(), CAPTIONS[1:2])
    with served(faults=scripted("refusal")) as server:
        assert texts(LlmParser(config(server)), CAPTIONS[1:2]) == by_rules
    with served(answer) as server:
        for _ in range(2):  # the second time from the cache
            parser = LlmParser(config(server), CacheFolder(tmp_path))
            assert texts(parser, CAPTIONS) == [GOLD[CAPTIONS[0]], *by_rules, []]
            assert len(server.requests) == 4
    assert RequestCache(CacheFolder(tmp_path).file).count_by_rules() == 1


def test_gold_graphs_of_many_captions(oracle: Path) -> None:
    """What the model says survives, up to spelling ("donut") and to how much of a compound is the name."""
    graphs, scorer = load(oracle / "golden/parser")
    graphs = dict(list(graphs.items())[::16])
    known = {clean(each["caption"]): each["triplets"] for each in graphs.values()}
    with served(answers(known)) as server:
        parsed = predict(graphs, CaptionParser(config(server)))
    assert scorer.score(graphs, parsed["surface"])["strict"]["F1"] > 0.95
    assert scorer.score(graphs, parsed["lemma"])["pair"]["F1"] > 0.98
