"""Captioners of every family of tests/vlm_checkpoints.py; those that cannot caption end in one
line.
"""

import json
import re
import shutil
import threading
from functools import cache
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig
from transformers.models.smolvlm import processing_smolvlm

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption import vision_language
from sgpipe.stages.caption.captioner import CaptionInput, Refusal, one_line, settings_of
from sgpipe.stages.caption.nucleus import draw, process
from sgpipe.stages.caption.stage import CaptionStage, load_captioner
from tests.factories import make_blip
from tests.vlm_checkpoints import FAMILIES, make_vlm

SIZES = [(60, 40), (33, 90), (64, 64)]
WRITTEN = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is on what?<|im_end|>\n"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return cache(lambda family: make_vlm(tmp_path_factory.mktemp("vlm") / family, family))


def inputs(sizes=SIZES):
    rng = np.random.default_rng(0)
    pixels = (rng.integers(0, 256, (4, 4, 3), dtype=np.uint8) for _ in sizes)
    images = [
        Image.fromarray(pixel).resize(size) for pixel, size in zip(pixels, sizes, strict=True)
    ]
    return [CaptionInput(image, 2**62 + 12345 * number) for number, image in enumerate(images)]


def make_captioner(folder, **settings):
    settings = {"samples": 3, "max_tokens": 7, "device": "cpu"} | settings
    captioner = load_captioner(CaptionConfig(captioner=str(folder), **settings))
    captioner.setup()
    return captioner


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_captions_depend_on_the_image_and_the_key_alone(checkpoint, family):
    captioner = make_captioner(checkpoint(family), max_tokens=10)
    sources = inputs()
    together = list(captioner.caption(sources))
    assert list(map(len, together)) == [3, 3, 3]
    assert len({text for captions in together for text in captions}) == 9
    assert [next(captioner.caption([source])) for source in sources[::-1]] == together[::-1]
    image = sources[0].image
    key = sources[0].key
    assert next(captioner.caption([CaptionInput(image, key + 1)])) != together[0]
    other = {
        tuple(next(captioner.caption([CaptionInput(source.image, key)]))) for source in sources
    }
    assert len(other) > 1, "the image makes no difference"


@pytest.mark.parametrize("family", FAMILIES)
def test_each_token_is_the_argmax_of_the_scores_of_a_whole_pass_plus_the_noise(
    checkpoint, family, monkeypatch
):
    """What the copied cache, the positions and the attention mask of every family must amount
    to.
    """
    captioner = make_captioner(
        checkpoint(family), top_p=0.95, top_k=100, temperature=1.3, repetition_penalty=1.2
    )
    [source] = inputs(SIZES[:1])
    drawn = []
    decode = captioner.tokenizer.decode
    monkeypatch.setattr(
        captioner.tokenizer, "decode", lambda row, **_: drawn.append(row) or decode(row)
    )
    next(captioner.caption([source]))
    forced = 1 if family == "florence2" else 0  # its first token is always the same
    for sample, tokens in enumerate(drawn):
        scores = whole_pass(captioner, captioner.inputs(source.image), tokens)
        for step in range(forced, 4):  # shorter than min_tokens, where no end can follow
            before = torch.tensor([tokens[:step]], dtype=torch.long)
            allowed = scores[step].clone()
            allowed[captioner.generation.eos_token_id] = -torch.inf
            if family == "florence2" and step >= 3:
                break  # from here on it may not repeat three tokens
            filtered = process(allowed[None], before, captioner.config)
            number = torch.tensor([sample])
            assert (
                draw(filtered, 0.95, torch.tensor([source.key]), number, step)[0].item()
                == tokens[step]
            )


def whole_pass(captioner, prompt, tokens):
    """The scores of each token, computed without a cache and for one row."""
    following = torch.tensor([tokens])
    if captioner.model.config.is_encoder_decoder:
        begun = torch.cat(
            [torch.tensor([[captioner.generation.decoder_start_token_id]]), following], dim=1
        )
        return (
            captioner.model(**prompt, decoder_input_ids=begun, use_cache=False).logits[0].detach()
        )
    start = prompt["input_ids"].shape[1] - 1
    longer = {"input_ids": torch.cat([prompt["input_ids"], following], dim=1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    if "mm_token_type_ids" in prompt:
        longer["mm_token_type_ids"] = torch.cat(
            [prompt["mm_token_type_ids"], torch.zeros_like(following)], dim=1
        )
    return captioner.model(**{**prompt, **longer}, use_cache=False).logits[0, start:].detach()


@pytest.mark.parametrize("decoding", ["nucleus", "beam"])
@pytest.mark.parametrize("family", FAMILIES)
def test_vision_features_are_computed_once_per_image(checkpoint, family, decoding):
    captioner = make_captioner(checkpoint(family), decoding=decoding, samples=5, max_tokens=6)
    towers = ("visual", "vision_model", "vision_tower")
    [tower] = [
        module
        for name, module in captioner.model.named_modules()
        if name.rpartition(".")[2] in towers
    ]
    pixels = []
    tower.register_forward_pre_hook(
        lambda _, *arguments: pixels.append([*arguments[0], *arguments[1].values()][0]),
        with_kwargs=True,
    )
    arguments = inputs()
    assert list(map(len, captioner.caption(arguments))) == [1 if decoding == "beam" else 5] * 3
    expected = [captioner.inputs(tensor.image)["pixel_values"] for tensor in arguments]
    assert [seen.numel() for seen in pixels] == [tensor.numel() for tensor in expected]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "florence2", "blip-2"])
def test_lengths_are_within_limits_and_a_caption_ends_before_its_end_token(
    checkpoint, family, monkeypatch
):
    captioner = make_captioner(
        checkpoint(family), samples=20, min_tokens=4, max_tokens=8, top_p=1, temperature=3
    )
    drawn = []
    monkeypatch.setattr(captioner.tokenizer, "decode", lambda row, **_: drawn.append(row) or "")
    list(captioner.caption(inputs()))
    lengths = set(map(len, drawn))
    assert 8 in lengths <= {4, 5, 6, 7, 8}
    assert not any(captioner.generation.eos_token_id in row for row in drawn)


def test_sampling_settings_and_beams_reach_the_decoder(checkpoint):
    folder = checkpoint("qwen3_vl")
    images = inputs()
    greedy = [
        captions[0] for captions in make_captioner(folder, decoding="beam", beams=1).caption(images)
    ]
    likeliest = list(make_captioner(folder, top_k=1).caption(images))
    assert list(map(set, likeliest)) == [{text} for text in greedy]
    assert [
        captions[0] for captions in make_captioner(folder, decoding="beam").caption(images)
    ] != greedy


def test_the_prompt_and_the_system_message_are_in_the_chat_template(checkpoint):
    captioner = make_captioner(
        checkpoint("qwen2_5_vl"), prompt="What is on what?", system="Be brief."
    )
    assert (
        captioner.text == "<|im_start|>system\nBe"
        " brief.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is"
        " on what?<|im_end|>\n<|im_start|>assistant\n"
    )
    asked = make_captioner(checkpoint("qwen2_5_vl")).text
    assert "one short sentence" in asked
    assert make_captioner(checkpoint("florence2"), prompt="<CAPTION>").text == "<CAPTION>"
    assert make_captioner(checkpoint("blip-2")).text == "a photo of"


def test_image_size_limits_the_longer_side_and_exif_turns_nothing(checkpoint):
    captioner = make_captioner(checkpoint("qwen2_5_vl"), image_size=56)
    assert captioner.inputs(Image.new("RGB", (112, 112)))["image_grid_thw"].tolist() == [[1, 4, 4]]
    captioner = make_captioner(checkpoint("qwen2_5_vl"))
    wide = Image.new("RGB", (112, 56))
    exif = wide.getexif()
    exif[0x0112] = 6  # as displayed, it is turned
    wide.info["exif"] = exif.tobytes()
    assert captioner.inputs(wide)["image_grid_thw"].tolist() == [[1, 4, 8]]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_thread_prepares_the_next_image_and_changes_no_caption(checkpoint, family):
    alone = make_captioner(checkpoint(family))
    ahead = make_captioner(checkpoint(family), resources={"io_threads": 4})
    threads = []
    prompt = ahead.inputs
    ahead.inputs = lambda *sources: (
        threads.append(threading.current_thread().name) or prompt(*sources)
    )
    sources = inputs(SIZES * 3)
    if family == "qwen2_5_vl":
        # which its processor refuses
        sources.insert(4, CaptionInput(Image.new("RGB", (2, 600)), 1))
    expected = list(alone.caption(sources))
    assert list(ahead.caption(sources)) == expected
    refused = [result.reason for result in expected if isinstance(result, Refusal)]
    assert len(refused) == len(sources) - 9
    assert all(re.fullmatch(".*aspect ratio.*", result) for result in refused)
    assert set(threads) == {"prefetch_0"}
    taken = []
    assert next(ahead.caption(taken.append(result) or result for result in sources)) == expected[0]
    assert len(taken) == 2


@pytest.mark.parametrize(("text", "expected"), [
    ("A man rides a horse.\n", "A man rides a horse."), ("1. A cat on a mat\r\n2) a dog", "A cat on a mat. a dog"),
    ("- A man on a horse\n- A dog under a table.\n\n* a cat", "A man on a horse. A dog under a table. a cat"),
    ("# Scene\n\n**A man** is *riding* a `horse`.", "Scene. A man is riding a horse."), ("```\na cat\n```", "a cat"),
    ('"A cat on a mat."', "A cat on a mat."), ('"A" and "B"', '"A" and "B"'), ("---\nA cat\n***", "A cat"),
    ("<think>\nA man, a horse.\n</think>\n\nA man on a horse.", "A man on a horse."), ("```\n<think>\nA man", ""),
    ("A 3*4 grid, snake_case and well-known 2 - 1", "A 3*4 grid, snake_case and well-known 2 - 1"), ("\n \t", ""),
    ("see [the bus](http://x.y/z)\u2028here\x00\ufffd", "see the bus. here"),
    ("a cat<loc_12><loc_999> on a mat", "a cat on a mat"), ("猫がマットの上にいる。\n犬", "猫がマットの上にいる。 犬"),
])  # fmt: skip
def test_a_caption_is_one_line(text, expected):
    assert one_line(text) == expected
    assert one_line(expected) == expected


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint("qwen2_5_vl"), tmp_path / "captioner")


def error_of(folder, **settings):
    stage = CaptionStage(CaptionConfig(captioner=str(folder), device="cpu", **settings), {}, 0)
    with pytest.raises(UserError) as caught:
        stage.check() or stage.setup()
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
    tensors = load_file(file)
    next(tensors[name] for name in tensors if name.endswith("norm.weight")).fill_(torch.nan)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "word"),
    {
        "another model": (lambda folder: BertConfig().save_pretrained(folder), "'bert'"),
        "another class of the family": (
            change(architectures=["Qwen2_5_VLModel"]),
            "expected Qwen2_5_VLForConditional",
        ),
        "few positions": (
            change(text_config={"max_position_embeddings": 100}),
            "caption.max_tokens is 128",
        ),
        "no vocabulary": (change(text_config={"vocab_size": 9999}), "tokenizer.json or vocab.txt"),
        "a list of models": (change(model_type=["blip"]), "['blip']"),
        "code of its own": (
            change(model_type="new_vl", auto_map={"AutoConfig": "x.Y"}),
            "never run",
        ),
        "no processor": (without("*processor_config.json"), "processor"),
        "no tokenizer": (without("tokenizer*"), "token"),
        "no chat template": (without("chat_template.jinja"), "<|image_pad|>"),
        "a template that raises": (template("{{ raise_exception('only user') }}"), "only user"),
        "a template that is damaged": (template("{% for m in messages"), "template fails"),
        "a template without the image": (
            template("{{ messages[0].content[1].text }}"),
            "0 <|image_pad|>",
        ),
        "a template without the prompt": (
            template("<|vision_start|><|image_pad|><|vision_end|>"),
            "caption.prompt",
        ),
        "NaN": (of_nan, "not finite"),
    }.values(),
)
def test_a_damaged_checkpoint_is_refused(folder, damage, word):
    damage(folder)
    message = error_of(folder)
    assert word in message
    assert str(folder) in message


def test_what_a_checkpoint_does_not_need(folder):
    """Code in its repository, if transformers has the family; a chat template, if the prompt has
    what it would add.
    """
    change(auto_map={"AutoConfig": "configuration.NewConfig"})(folder)
    (folder / "configuration.py").write_text("raise SystemExit('executed')")
    (folder / "chat_template.jinja").unlink()
    load_captioner(CaptionConfig(captioner=str(folder), prompt=WRITTEN, device="cpu")).setup()
    assert "caption.system" in error_of(folder, prompt=WRITTEN, system="Be brief.")


def test_a_package_that_a_processor_needs_is_named(tmp_path, monkeypatch):
    make_vlm(tmp_path, "smolvlm")
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    assert "pip install num2words" in error_of(tmp_path)


def test_null_settings_are_those_of_the_family(folder, tmp_path):
    def prompt_and_tokens(captioner, **settings):
        config = settings_of(CaptionConfig(captioner=str(captioner), **settings))
        return config.prompt, config.max_tokens

    assert (
        prompt_and_tokens(make_blip(tmp_path))
        == prompt_and_tokens("hub/not-here")
        == ("a picture of", 20)
    )
    assert prompt_and_tokens(folder) == prompt_and_tokens("gpt", endpoint="http://localhost:1/v1")
    assert prompt_and_tokens(folder)[1] == 128
    assert prompt_and_tokens(folder, prompt="", max_tokens=7) == ("", 7)
    assert "caption.system" in error_of(tmp_path, system="Be brief.")


def test_failures_while_captioning(folder, monkeypatch):
    captioner = load_captioner(CaptionConfig(captioner=str(folder), device="cpu", samples=3))
    captioner.setup()
    texts = iter(["\n", "a cat", "<think> a", "", "- ", "**"])
    with monkeypatch.context() as patch:
        patch.setattr(captioner, "decode", lambda _: next(texts))
        assert list(captioner.caption(inputs()[:2])) == [
            ["a cat"],
            Refusal("the answer has no caption in it"),
        ]

    with monkeypatch.context() as patch:
        fail = Mock(side_effect=RuntimeError("shapes do not match\nbut how"))
        patch.setattr(vision_language, "sample_nucleus", fail)
        reason = "the captioner cannot process the image: shapes do not match"
        assert list(captioner.caption(inputs()[:1])) == [Refusal(reason)]
        assert "example image: shapes do not match" in error_of(folder)
    full = Mock(side_effect=torch.cuda.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(vision_language.VisionLanguageCaptioner, "_decode", full)
    with pytest.raises(UserError, match="use a smaller model or fewer samples"):
        list(captioner.caption([CaptionInput(inputs()[0].image, 1)]))
