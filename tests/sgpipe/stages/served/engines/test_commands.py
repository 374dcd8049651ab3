"""Command lines of engines, and how many replicas there is room for."""

from __future__ import annotations

import sys

import pytest

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig, Replicas, TagConfig
from sgpipe.stages.served.engines.commands import ModelServer, model_servers, replica_counts

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"


def server(engine: str = "vllm", **replicas: object) -> ModelServer:
    config = CaptionConfig(captioner=MODEL, engine=engine, replicas=Replicas(**replicas))
    return ModelServer.of("caption", config)


@pytest.mark.parametrize(
    ("engine", "gpus", "expected"),
    [
        ("vllm", 1, ["-m", "vllm.entrypoints.cli.main", "serve", MODEL]),
        ("sglang", 1, ["-m", "sglang.launch_server", "--model-path", MODEL]),
        ("vllm", 4, ["--tensor-parallel-size", "4"]),
        ("sglang", 4, ["--tp-size", "4"]),
        ("vllm", 1, ["--served-model-name", MODEL]),
        ("transformers", 0, ["serve", MODEL]),
        ("transformers", 0, ["--device", "cpu"]),
        ("transformers", 1, ["--host", "127.0.0.1", "--port", "8123"]),
    ],
)
def test_packaged_engines_get_model_address_and_gpus(
    engine: str, gpus: int, expected: list[str]
) -> None:
    command = server(engine).command("127.0.0.1", 8123, gpus)
    assert command[0] == sys.executable
    start = command.index(expected[0])
    assert command[start : start + len(expected)] == expected


def test_memory_and_arguments_are_passed_on() -> None:
    options = {"gpu_memory": 0.7, "arguments": ["--max-model-len", "8192"]}
    command = server("vllm", **options).command("127.0.0.1", 1, 1)
    assert command[-4:] == ["--gpu-memory-utilization", "0.7", "--max-model-len", "8192"]
    assert "--mem-fraction-static" in server("sglang", gpu_memory=0.7).command("127.0.0.1", 1, 1)


def test_a_command_of_the_users_own_is_filled_in() -> None:
    engine = "llama-server -hf {model} --host {host} --port {port} --name 'a b' --gpus={gpus}"
    command = server(engine).command("127.0.0.1", 8123, 2)
    expected = ["llama-server", "-hf", MODEL, "--host", "127.0.0.1", "--port", "8123"]
    assert command == [*expected, "--name", "a b", "--gpus=2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "vlm"}, "expected vllm, sglang, transformers, or a command with {model} and"),
        ({"engine": "serve {model} '{port}"}, "a quotation mark has no other end"),
        ({"engine": "vllm", "captioner": None}, "set caption.captioner, its model"),
        ({"engine": "vllm", "endpoint": "http://a/v1"}, "omit one of them"),
        ({"engine": "transformers", "replicas": {"gpu_memory": 0.5}}, "is for vllm and sglang"),
        ({"engine": "vllm", "replicas": {"min": 3, "max": 2}}, "max is less than"),
    ],
)
def test_what_cannot_be_started_is_refused(settings: dict[str, object], message: str) -> None:
    config = CaptionConfig.model_validate({"captioner": MODEL, **settings})
    with pytest.raises(UserError) as refusal:
        ModelServer.of("caption", config)
    assert message in str(refusal.value)
    assert str(refusal.value).startswith("caption.")


@pytest.mark.parametrize(
    ("replicas", "gpus", "counts"),
    [
        ([{}], 8, [8]), ([{"gpus": 2}], 8, [4]), ([{"gpus": 3}], 8, [2]), ([{"max": 2}], 8, [2]),
        ([{}, {"gpus": 2}], 8, [4, 2]), ([{"max": 1}, {}], 8, [1, 7]), ([{"gpus": 0}], 8, [1]),
        ([{"gpus": 0, "max": 3}], 0, [3]), ([{"gpus": 0, "min": 2}], 0, [2]),
    ],
)  # fmt: skip
def test_gpus_are_shared_out(
    replicas: list[dict[str, object]], gpus: int, counts: list[int]
) -> None:
    assert replica_counts([server(**settings) for settings in replicas], gpus) == counts


@pytest.mark.parametrize(
    ("replicas", "gpus", "message"),
    [
        ([{}], 0, "caption.engine is vllm, but there is no GPU"),
        ([{"gpus": 4}], 2, "caption.replicas.gpus is 4, but the number of GPUs is 2"),
        ([{"min": 3}], 2, "3 of vllm need 3 GPUs, but there are 2"),
    ],
)
def test_too_few_gpus_are_named(replicas: list[dict[str, object]], gpus: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replica_counts([server(**settings) for settings in replicas], gpus)


def test_other_engines_compute_without_gpus() -> None:
    assert replica_counts([server("transformers", max=2)], 0) == [2]


def test_stages_with_equal_servers_share_them() -> None:
    caption = CaptionConfig(captioner=MODEL, engine="vllm")
    tag = TagConfig(method="vlm", tagger=MODEL, engine="vllm")
    other = TagConfig(method="vlm", tagger="another", engine="vllm")
    assert list(model_servers({"caption": caption, "tag": tag}).values()) == [["caption", "tag"]]
    assert len(model_servers({"caption": caption, "tag": other})) == 2


def test_an_engine_that_is_not_installed_is_named_with_what_to_do() -> None:
    with pytest.raises(
        UserError, match=r"vllm, which is not installed: pip install 'sgpipe.vllm.'"
    ):
        server("vllm").check_installed()
    with pytest.raises(UserError, match=r"caption\.engine: there is no program no-such-server"):
        server("no-such-server {model} {port}").check_installed()
