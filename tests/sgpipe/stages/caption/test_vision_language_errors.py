"""Checkpoints that cannot caption, and what is said of them in one line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, LlamaConfig
from transformers.models.smolvlm import processing_smolvlm

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption import vision_language, weights
from sgpipe.stages.caption.captioner import CaptionInput, Refused
from sgpipe.stages.caption.families import load_captioner, settings_of
from sgpipe.stages.caption.stage import CaptionStage
from sgpipe.utils.hashing import model_sha256
from tests.factories import make_blip
from tests.sgpipe.stages.caption.test_vision_language import inputs
from tests.vlm_checkpoints import make_vlm


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_vlm(tmp_path_factory.mktemp("vlm"), "qwen2_vl")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "captioner")


def error_of(folder, *, setup=False, **settings):
    """What `check` says, or `setup` of what `check` accepts."""
    stage = CaptionStage(CaptionConfig(captioner=str(folder), device="cpu", **settings), {}, 0)
    if setup:
        stage.check()
    with pytest.raises(UserError) as caught:
        (stage.setup if setup else stage.check)()
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message or message.startswith("caption.")
    return message


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def write_template(folder, text):
    (folder / "chat_template.jinja").write_text(text)


def test_a_model_that_takes_no_images_is_refused(tmp_path):
    BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path)
    assert "cannot caption images: it is a BertModel (model_type 'bert')" in error_of(tmp_path)
    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    assert "cannot caption images: it is a LlamaForCausalLM" in error_of(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "model of an unknown architecture" in error_of(tmp_path)


def test_another_class_of_the_family_is_refused(folder):
    change(folder / "config.json", architectures=["Qwen2VLModel"])
    assert "it is a Qwen2VLModel, expected Qwen2VLForConditionalGeneration" in error_of(folder)


def test_code_in_a_repository_is_refused(folder):
    change(folder / "config.json", model_type="new_vl", auto_map={"AutoConfig": "configuration.NewConfig"})
    (folder / "configuration.py").write_text("raise SystemExit('executed')")
    assert "trust_remote_code), which is never run" in error_of(folder)
    change(folder / "config.json", model_type="qwen2_vl")  # transformers has the family: its own code is used
    load_captioner(CaptionConfig(captioner=str(folder), device="cpu")).setup()


def test_no_such_model():
    assert "no such folder" in error_of("./nowhere")
    assert "no such model in the local Hugging Face cache" in error_of("somebody/captioner")


def test_a_missing_processor_or_tokenizer_is_refused(folder):
    for file in folder.glob("*processor_config.json"):
        file.unlink()
    assert "processor" in error_of(folder)


def test_a_missing_tokenizer_is_refused(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer.json is missing" in error_of(folder)


def test_a_package_that_a_processor_needs_is_named(tmp_path, monkeypatch):
    make_vlm(tmp_path, "smolvlm")
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    assert "pip install num2words" in error_of(tmp_path)


def test_a_prompt_without_a_place_for_the_image_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    message = error_of(folder)
    assert "no chat template, and caption.prompt has no place for the image" in message
    assert "<|image_pad|>" in message
    written = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is on what?<|im_end|>\n"
    load_captioner(CaptionConfig(captioner=str(folder), prompt=written, device="cpu")).check()
    assert "caption.system is set" in error_of(folder, prompt=written, system="Be brief.")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only user and assistant') }}", "chat template fails: only user and assistant"),
        ("{{ messages[0]['content'][7].text.nothing }}", "chat template fails"),
        ("{% for m in messages", "chat template fails"),
        ("{% for m in messages %}{{ m.content[1].text }}{% endfor %}", "chat template has no place for the image"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "chat template has no place for the image"),
        ("<|vision_start|><|image_pad|><|vision_end|>", "chat template leaves out caption.prompt"),
    ],
)
def test_a_chat_template_that_fails_or_leaves_something_out(folder, template, message):
    write_template(folder, template)
    assert message in error_of(folder)


def test_weights_that_are_not_whole_are_refused_before_work(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert "model.safetensors is truncated" in error_of(folder)
    for damaged in (b"", b"junk" * 100, whole[:50]):
        file.write_bytes(damaged)
        assert "model.safetensors is damaged" in error_of(folder)
    file.unlink()
    assert "the folder has no model.safetensors" in error_of(folder)
    (folder / "pytorch_model.bin").write_bytes(b"junk" * 100)
    assert "cannot load its weights" in error_of(folder, setup=True)


def test_shards_that_are_missing_are_refused_before_work(folder):
    parameters = weights.check_weights(str(folder))
    index = folder / "model.safetensors.index.json"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index.write_text(json.dumps({"weight_map": {"some.weight": "model-00001-of-00001.safetensors"}}))
    assert weights.check_weights(str(folder)) == parameters > 100_000
    index.write_text(json.dumps({"weight_map": {"some.weight": "model-00002-of-00002.safetensors"}}))
    assert "model-00002-of-00002.safetensors is missing" in error_of(folder)
    index.write_text("{")
    assert "model.safetensors.index.json is damaged" in error_of(folder)


def test_missing_and_misshapen_weights_are_refused(folder):
    file = folder / "model.safetensors"
    kept = load_file(file)
    name = next(key for key in kept if key.endswith("q_proj.weight"))
    save_file({key: value for key, value in kept.items() if key != name}, file, metadata={"format": "pt"})
    assert "1 weight is missing, such as" in error_of(folder, setup=True)
    save_file({**kept, name: torch.zeros(3, 3)}, file, metadata={"format": "pt"})
    assert "cannot load its weights" in error_of(folder, setup=True)


def test_weights_with_nan_are_refused(folder):
    file = folder / "model.safetensors"
    kept = load_file(file)
    name = next(key for key in kept if key.endswith("norm.weight"))
    save_file({**kept, name: torch.full_like(kept[name], torch.nan)}, file, metadata={"format": "pt"})
    assert "scores are not finite" in error_of(folder, setup=True)


def test_a_model_larger_than_the_memory_is_refused(folder, monkeypatch):
    monkeypatch.setattr(weights, "free_memory", lambda _: 300_000)
    message = error_of(folder, setup=True)
    assert "this machine has 0.0 GiB of free memory: set caption.dtype to bfloat16" in message
    assert "choose a smaller captioner" in message
    load_captioner(CaptionConfig(captioner=str(folder), device="cpu", dtype="bfloat16")).setup()


def test_free_memory_is_no_more_than_the_machine_has(tmp_path, monkeypatch):
    free = weights.free_memory(torch.device("cpu"))
    assert 1e7 < free < 1e14
    values = {"max": "3000000", "current": "2500000", "stat": "anon 1\ninactive_file 500000\nactive_file 7"}
    for name, value in values.items():
        (tmp_path / f"memory.{name}").write_text(value + "\n")
    monkeypatch.setattr(weights, "_CGROUP", tmp_path)
    assert weights.free_memory(torch.device("cpu")) == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert weights.free_memory(torch.device("cpu")) > 1_000_000


def test_lengths_that_leave_no_room_are_refused(folder):
    assert "expected at least caption.min_tokens (30)" in error_of(folder, max_tokens=20, min_tokens=30)
    assert "has only 4096 positions" in error_of(folder, max_tokens=5000)


def test_a_full_gpu_is_reported_in_one_line(original, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    captioner = load_captioner(CaptionConfig(captioner=str(original), device="cpu"))
    captioner.setup()
    monkeypatch.setattr(vision_language.VisionLanguageCaptioner, "_decode", full)
    with pytest.raises(UserError, match=r"memory of cpu is full; lower caption.samples"):
        list(captioner.caption([CaptionInput(inputs()[0].image, 1)]))


def test_null_settings_are_those_of_the_family(original, tmp_path):
    def own(captioner, **settings):
        config = settings_of(CaptionConfig(captioner=str(captioner), **settings))
        return config.prompt, config.max_tokens

    blip = make_blip(tmp_path)
    assert own(blip) == ("a picture of", 20)
    assert own("hub/not-here") == ("a picture of", 20)
    assert own(original)[0].startswith("Write one short sentence about how the things in this image relate")
    assert own(original)[1] == 128
    assert own(original, prompt="", max_tokens=7) == ("", 7)
    assert own("gpt", endpoint="http://localhost:1/v1") == own(original)


def test_a_model_that_fails_is_refused_before_work_and_later_is_an_error_row(original, monkeypatch):
    captioner = load_captioner(CaptionConfig(captioner=str(original), device="cpu"))
    captioner.setup()

    def fail(*_, **__):
        raise RuntimeError("shapes do not match\nbut how")

    monkeypatch.setattr(vision_language.SharedPrefix, "__call__", fail)
    assert list(captioner.caption(inputs()[:1])) == [
        Refused("the captioner cannot process the image: shapes do not match")
    ]
    assert "cannot caption an example image: shapes do not match" in error_of(original, setup=True)


def test_captions_without_a_word_are_an_error_row(original, monkeypatch):
    captioner = load_captioner(CaptionConfig(captioner=str(original), device="cpu", samples=3))
    captioner.setup()
    texts = iter(["\n", "a cat", "<think> a", "", "- ", "**"])
    monkeypatch.setattr(captioner.prompt, "decode", lambda _: next(texts))
    assert list(captioner.caption(inputs()[:2])) == [["a cat"], Refused("the captions are empty")]


def test_a_system_message_for_blip_is_refused(tmp_path):
    assert "BLIP is no chat model" in error_of(make_blip(tmp_path), system="Be brief.")


def test_the_chat_template_is_part_of_the_checkpoint(folder):
    before = model_sha256(str(folder))
    write_template(folder, "another")
    assert model_sha256(str(folder)) != before
