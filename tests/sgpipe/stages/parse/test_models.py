"""The parsers by models: a tiny T5 with random weights, and a served language model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from sgpipe.errors import EngineError, UserError
from sgpipe.recipe import ParseConfig, Requests
from sgpipe.stages.parse import rules, seq2seq, stage
from sgpipe.stages.parse.rules import Texts, analyse, ground
from sgpipe.stages.parse.seq2seq import PREFIX, Seq2SeqParser, read_graph
from sgpipe.stages.parse.stage import CaptionParser, LlmParser, ParseStage
from sgpipe.stages.served.answers import CacheFolder, RequestCache
from tests.endpoint_server import Answerer, EndpointServer, scripted, wait_until
from tests.values import values_of

pytestmark = pytest.mark.usefixtures("no_pauses")

load_model = cache(rules.load_model)

GRAPHS = {
    "a man riding a horse": "( man , ride , horse )",
    "two pigs fly on the sky": "( pigs , is , two ) , ( pigs , fly on , sky )",
    "a black dog under a table": "( dog , is , black ) , ( dog , under , table",
}
WORDS = sorted(
    {word for pair in GRAPHS.items() for text in (*pair, PREFIX) for word in text.split()}
)

GOLD = {
    "a man riding a horse on a beach": [("man", "riding", "horse"), ("horse", "on", "beach")],
    "two dogs lying under the table": [("dogs", "lying under", "table")],
    "a clear sky": [],
}
CAPTIONS = list(GOLD)


@pytest.fixture(autouse=True, scope="module")
def one_spacy_model() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (stage, rules, seq2seq):
            patch.setattr(module, "load_model", load_model)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 with random weights, large enough that it does not always write the same."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    folder = tmp_path_factory.mktemp("t5")
    PreTrainedTokenizerFast(tokenizer_object=words, **tokens).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(vocabulary),
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
    }
    config = T5Config(**sizes, initializer_factor=20.0, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def config(folder: Path) -> ParseConfig:
    return ParseConfig(parser="seq2seq", model=str(folder))


@pytest.fixture(scope="module")
def parser(checkpoint: Path) -> Iterator[Seq2SeqParser]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seq2seq, "_MAX_TOKENS", 12)
        yield Seq2SeqParser(config(checkpoint))


def test_graphs_become_triplets(parser: Seq2SeqParser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without attributes and without what was cut; worded as in the caption."""
    monkeypatch.setattr(
        parser, "_graphs", lambda captions: [GRAPHS[caption] for caption in captions]
    )
    parsed = parser.parse(list(GRAPHS))
    expected = [[("man", "riding", "ride", "horse")], [("pigs", "fly on", "fly on", "sky")], []]
    assert [
        values_of(triplets, "subject", "predicate", "predicate_lemma", "object")
        for triplets in parsed
    ] == expected


def test_what_is_written_does_not_depend_on_other_captions(parser: Seq2SeqParser) -> None:
    captions = [*GRAPHS, "a dog", "", "A HORSE  on a table", "a horse on a table", "sky " * 100]
    together = parser._graphs(captions)
    assert [parser._graphs([caption])[0] for caption in captions] == together
    assert together[5] == together[6]
    assert len(set(together)) > 4
    assert all(len(triplets) <= 4 for triplets in parser.parse(captions))


def test_the_utilization_of_its_device_can_be_measured(checkpoint: Path) -> None:
    stage = ParseStage(config(checkpoint))
    stage.setup()
    assert (stage.device.type, stage.gpu_use()) == ("cpu", {})


def test_another_kind_of_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"is a bert, not a sequence-to-sequence language model$"):
        ParseStage(config(tmp_path)).setup()


def test_missing_files(checkpoint: Path, tmp_path: Path) -> None:
    for name, message in (
        ("tokenizer.json", "tokenizer"),
        ("model.safetensors", "cannot load its "),
    ):
        folder = shutil.copytree(checkpoint, tmp_path / name)
        (folder / name).unlink()
        with pytest.raises(UserError, match=message):
            Seq2SeqParser(config(folder))


def grounded(caption: str, *texts: Texts) -> list[str]:
    [(tree, _)] = analyse(load_model(), [caption], 1)
    triplets = ground(tree, texts)
    return [
        f"{t.subject} {t.subject_head} | {t.predicate} | {t.predicate_lemma} | {t.object}"
        f" {t.object_head}"
        for t in triplets
    ]


def test_what_a_caption_denies_is_not_stated_whatever_a_model_writes() -> None:
    written = ("man", "wear", "helmet"), ("man", "ride", "bike")
    assert grounded("a man without a helmet rides a bike", *written) == grounded(
        "a man rides a bike", *written[1:]
    )


@pytest.mark.parametrize(
    ("caption", "texts", "expected"),
    [
        ("Two young women are sitting on a wooden bench.", ("2 young women", "are sitting on", "a wooden bench"),
         "women woman | sitting on | sit on | bench bench"),
        ("a red fire hydrant next to a parked car", ("Fire hydrant", "next to", "car"),
         "fire hydrant hydrant | next to | next to | car car"),
        ("pigs flying on the sky", ("pig", "fly on", "sky"), "pigs pig | flying on | fly on | sky sky"),
        ("a man eating a hot dog", ("man", "eat", "hot dog"), "man man | eating | eat | hot dog dog"),
        ("he holds an umbrella", ("he", "holds", "umbrella"), "man man | holds | hold | umbrella umbrella"),
        ("a dog on the left of a cat", ("dog", "left of", "cat"), "dog dog | left of | left of | cat cat"),
        ("a surfer in the sea", ("surfer", "riding", "big waves"), "surfer surfer | riding | ride | big waves wave"),
        ("🐕 on 🛋", ("dog", "on", "sofa"), "dog dog | on | on | sofa sofa"),
    ],
)  # fmt: skip
def test_texts_as_the_caption_has_them(caption: str, texts: Texts, expected: str) -> None:
    assert grounded(caption, texts) == [expected]


def test_attributes_repetitions_and_empty_parts_are_left_out() -> None:
    texts = [
        ("dog", "is", "black"),
        ("dog", "on", "sofa"),
        ("the dog", "on", "a sofa"),
        ("dog", "on", "!"),
    ]
    assert len(grounded("a black dog on a sofa", *texts, ("", "on", "sofa"))) == 1


@pytest.mark.parametrize(("text", "expected"), [
    ("( pigs , is , 2 ) , ( pigs , fly on , sky )", [("pigs", "is", "2"), ("pigs", "fly on", "sky")]),
    ("( dog , on , sofa ) , ( cat , under", [("dog", "on", "sofa")]),
    ("( dog , on ) , ( dog , on , sofa ) ) , ( a , b , c , d )", [("dog", "on", "sofa")]),
    ("( ( dog , on , sofa )", [("dog", "on", "sofa")]), ("(dog,on,sofa),( , on , sofa )", [("dog", "on", "sofa")]),
    ("no relations", []),
])  # fmt: skip
def test_graphs_are_read_piece_by_piece(text: str, expected: list[Texts]) -> None:
    assert read_graph(text) == expected


def answers(graphs: Mapping[str, Sequence[Sequence[str]]]) -> Answerer:
    """A model that knows these graphs, and that other captions have none."""

    def answer(body: dict[str, Any]) -> list[str]:
        caption = body["messages"][min(1, len(body["messages"]) - 1)]["content"]
        names = ("subject", "predicate", "object")
        relations = [dict(zip(names, texts, strict=True)) for texts in graphs.get(caption, ())]
        return [json.dumps({"relations": relations})]

    return answer


gold = answers(GOLD)


def llm_config(server: EndpointServer) -> ParseConfig:
    return ParseConfig(
        parser="llm", endpoint=server.url, model="tiny-llm", requests=Requests(retries=1)
    )


def served(answer: Any = gold, **options: object) -> EndpointServer:
    return EndpointServer(answer, models=["tiny-llm"], **options)


def texts(parser: Any, captions: list[str]) -> list[list[tuple[str, str, str]]]:
    return [
        values_of(parsed, "subject", "predicate", "object") for parsed in parser.parse(captions)
    ]


def test_relations_are_those_of_the_model() -> None:
    with served() as server:
        ParseStage(llm_config(server)).check()
        assert texts(CaptionParser(llm_config(server)), CAPTIONS) == list(GOLD.values())
    schema = server.requests[0]["response_format"]["json_schema"]
    item = schema["schema"]["properties"]["relations"]["items"]
    names = ["subject", "predicate", "object"]
    assert (schema["strict"], item["required"], item["additionalProperties"]) == (
        True,
        names,
        False,
    )


@pytest.mark.parametrize("wrong", [
    "The relations are: man riding horse", '{"relations": [', '{"relations": {}}', '{"relations": [], "more": 1}',
    '{"relations": [{"subject": "man", "predicate": "on", "object": 3}]}',
    '{"relations": [{"subject": "man", "predicate": "on", "object": "horse", "score": 1}]}',
])  # fmt: skip
def test_a_wrong_answer_is_asked_for_once_more(wrong: str) -> None:
    def answer(body: dict[str, Any]) -> list[str]:
        return [wrong] if len(body["messages"]) == 2 else gold(body)

    with served(answer) as server:
        parser = LlmParser(llm_config(server))
        assert texts(parser, CAPTIONS[:1]) == [GOLD[CAPTIONS[0]]]
        assert server.requests[1]["messages"][2] == {"role": "assistant", "content": wrong}


def test_then_the_rules_parse_it_and_it_is_counted(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> list[str]:
        return ["no graph"] if "dogs" in body["messages"][1]["content"] else gold(body)

    by_rules = texts(CaptionParser(), CAPTIONS[1:2])
    with served(faults=scripted("refusal")) as server:
        assert texts(LlmParser(llm_config(server)), CAPTIONS[1:2]) == by_rules
    with served(answer) as server:
        for _ in range(2):  # the second time from the cache
            parser = LlmParser(llm_config(server), CacheFolder(tmp_path))
            assert texts(parser, CAPTIONS) == [GOLD[CAPTIONS[0]], *by_rules, []]
            assert len(server.requests) == 4
    assert RequestCache(CacheFolder(tmp_path).file).count_by_rules() == 1


def test_threads_wait_for_servers_together_and_ask_about_a_caption_once() -> None:
    parts = [CAPTIONS[:2], CAPTIONS[1:], CAPTIONS]
    with served() as server, ThreadPoolExecutor(len(parts)) as threads:
        parser = CaptionParser(llm_config(server))
        server.released.clear()
        parsed = [threads.submit(texts, parser, part) for part in parts]
        wait_until(lambda: server.at_once == len(CAPTIONS))
        server.released.set()
        for part, graphs in zip(parts, parsed, strict=True):
            assert graphs.result() == [GOLD[caption] for caption in part]
    assert len(server.requests) == len(CAPTIONS)


def test_captions_of_a_thread_that_failed_are_asked_for_again() -> None:
    with served(faults=scripted("unpaid")) as server, ThreadPoolExecutor(2) as threads:
        parser = CaptionParser(llm_config(server))
        server.released.clear()
        parsed = [threads.submit(texts, parser, CAPTIONS[:1]) for _ in range(2)]
        wait_until(lambda: server.at_once == 1)
        server.released.set()
        for graphs in parsed:
            assert isinstance(graphs.exception(), EngineError)
        assert texts(parser, CAPTIONS) == list(GOLD.values())
