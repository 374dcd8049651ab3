"""Checkpoints that cannot caption: each ends in one line, before the first image."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig
from transformers.models.smolvlm import processing_smolvlm

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption import vision_language
from sgpipe.stages.caption.captioner import CaptionInput, Refusal, settings_of
from sgpipe.stages.caption.stage import CaptionStage, load_captioner
from tests.factories import make_blip
from tests.sgpipe.stages.caption.test_vision_language import inputs
from tests.vlm_checkpoints import make_vlm

WRITTEN = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is on what?<|im_end|>\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_vlm(tmp_path_factory.mktemp("vlm"), "qwen2_vl")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "captioner")


def start(folder, **settings):
    stage = CaptionStage(CaptionConfig(captioner=str(folder), device="cpu", **settings), {}, 0)
    stage.check()
    stage.setup()


def error_of(folder, **settings):
    with pytest.raises(UserError) as caught:
        start(folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(**values):
    def damage(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return damage


def without(*patterns):
    return lambda folder: [file.unlink() for pattern in patterns for file in folder.glob(pattern)]


def template(text):
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def of_nan(folder):
    file = folder / "model.safetensors"
    kept = load_file(file)
    next(kept[name] for name in kept if name.endswith("norm.weight")).fill_(torch.nan)
    save_file(kept, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "word"),
    {
        "another model": (lambda folder: BertConfig().save_pretrained(folder), "'bert'"),
        "another class of the family": (change(architectures=["Qwen2VLModel"]), "expected Qwen2VLForConditional"),
        "code of its own": (change(model_type="new_vl", auto_map={"AutoConfig": "x.Y"}), "never run"),
        "no processor": (without("*processor_config.json"), "processor"),
        "no tokenizer": (without("tokenizer*"), "tokenizer.json"),
        "no chat template": (without("chat_template.jinja"), "<|image_pad|>"),
        "a template that raises": (template("{{ raise_exception('only user') }}"), "only user"),
        "a template that is damaged": (template("{% for m in messages"), "template fails"),
        "a template without the image": (template("{{ messages[0].content[1].text }}"), "0 <|image_pad|>"),
        "a template without the prompt": (template("<|vision_start|><|image_pad|><|vision_end|>"), "caption.prompt"),
        "NaN": (of_nan, "not finite"),
    }.values(),
)
def test_a_damaged_checkpoint_is_refused(folder, damage, word):
    damage(folder)
    message = error_of(folder)
    assert word in message
    assert str(folder) in message


@pytest.mark.parametrize("settings", [{"max_tokens": 20, "min_tokens": 30}, {"max_tokens": 5000}])
def test_lengths_that_leave_no_room_are_refused(folder, settings):
    assert "caption.max_tokens" in error_of(folder, **settings)


def test_what_a_checkpoint_does_not_need(folder):
    """Code in its repository, if transformers has the family; a chat template, if the prompt has what it would add."""
    change(auto_map={"AutoConfig": "configuration.NewConfig"})(folder)
    (folder / "configuration.py").write_text("raise SystemExit('executed')")
    (folder / "chat_template.jinja").unlink()
    load_captioner(CaptionConfig(captioner=str(folder), prompt=WRITTEN, device="cpu")).setup()
    assert "caption.system" in error_of(folder, prompt=WRITTEN, system="Be brief.")


def test_a_package_that_a_processor_needs_is_named(tmp_path, monkeypatch):
    make_vlm(tmp_path, "smolvlm")
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    assert "pip install num2words" in error_of(tmp_path)


def test_null_settings_are_those_of_the_family(original, tmp_path):
    def own(captioner, **settings):
        config = settings_of(CaptionConfig(captioner=str(captioner), **settings))
        return config.prompt, config.max_tokens

    assert own(make_blip(tmp_path)) == own("hub/not-here") == ("a picture of", 20)
    assert own(original) == own("gpt", endpoint="http://localhost:1/v1")
    assert own(original)[1] == 128
    assert own(original, prompt="", max_tokens=7) == ("", 7)
    assert "caption.system" in error_of(tmp_path, system="Be brief.")


def test_failures_while_captioning(original, monkeypatch):
    captioner = load_captioner(CaptionConfig(captioner=str(original), device="cpu", samples=3))
    captioner.setup()
    texts = iter(["\n", "a cat", "<think> a", "", "- ", "**"])
    with monkeypatch.context() as patch:
        patch.setattr(captioner.prompt, "decode", lambda _: next(texts))
        assert list(captioner.caption(inputs()[:2])) == [["a cat"], Refusal("the captions are empty")]

    def fail(*_, **__):
        raise RuntimeError("shapes do not match\nbut how")

    with monkeypatch.context() as patch:
        patch.setattr(vision_language.SharedPrefix, "__call__", fail)
        assert list(captioner.caption(inputs()[:1])) == [
            Refusal("the captioner cannot process the image: shapes do not match")
        ]
        assert "example image: shapes do not match" in error_of(original)

    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(vision_language.VisionLanguageCaptioner, "_decode", full)
    with pytest.raises(UserError, match=r"lower caption.samples"):
        list(captioner.caption([CaptionInput(inputs()[0].image, 1)]))
