"""Published checkpoints: converted whole, refused with the reason, never run as code."""

import argparse
import json
import pickle
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import RobertaTokenizerFast

from rlip_model.checkpoint import convert, load_official, read_checkpoint
from rlip_model.config import Fusion, Gating, ParSeDConfig
from rlip_model.model import ParSeD, ParSeDA, RLIPModel, RTagger, build_model
from rlip_model.official import infer_config, is_ignored, renamed
from rlip_model.presets import SWIN_SIZES
from rlip_model.pretrained import CheckpointError
from rlip_model.text import TokenizerError
from tests.factories import tiny_config
from tests.rlip_model.conftest import random_pairs, tiny_network
from tests.rlip_model.official_names import official_state, write_official
from tests.values import values_of

OBJECTS = ["person", "dog", "horse", "no objects"]
RELATIONS = ["riding", "next to"]
UNIT_TESTED = ((ParSeD, "none"), (ParSeDA, "after_decoding"), (RTagger, "alif"))
OTHERS = {*product((ParSeD, ParSeDA, RTagger), get_args(Fusion))} - {*UNIT_TESTED}
SLOW = (pytest.param(*other, marks=pytest.mark.slow) for other in sorted(OTHERS, key=str))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, loaded_tagger: RTagger) -> str:
    """A tokenizer with the configuration of its RoBERTa beside it."""
    folder = tmp_path_factory.mktemp("words")
    loaded_tagger.tokenizer.save_pretrained(folder)
    loaded_tagger.config.text_config.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("kind", "fusion"), [*UNIT_TESTED, *SLOW])
def test_every_network_converts_with_every_fusion(
    tmp_path: Path, tagger: RTagger, words: str, kind: type[ParSeD], fusion: Fusion
) -> None:
    network = tiny_network(kind, fusion, text_config=tagger.config.text_config)
    network.set_tokenizer(tagger.tokenizer)
    noise = {"box_noise_scale": 0.6, "label_noise_scale": 0.3} if kind is RTagger else {}
    path = write_official(tmp_path / "checkpoint.pth", network, **noise)
    folder = convert(path, tmp_path / "out" / kind.__name__, words)
    assert values_of(folder.parent.iterdir(), "name") == [kind.__name__]
    converted = kind.from_pretrained(folder).eval()
    converted.save_pretrained(tmp_path / "again")
    reloaded = kind.from_pretrained(tmp_path / "again").eval()
    expected = outputs(network)
    for other in (converted, reloaded):
        assert all(torch.equal(*pair) for pair in zip(outputs(other), expected, strict=True))
    config = converted.config
    assert (config.fusion, config.gating, config.text_config.num_attention_heads) == (
        fusion,
        "VXAc",
        4,
    )
    assert getattr(config, "box_noise", 0.6) == 0.6


def outputs(network: RLIPModel) -> list[torch.Tensor]:
    """Everything that the network says about an image, all layers."""
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    pairs = ([random_pairs(5)],) if isinstance(network, RTagger) else ()
    output = network(pixels, None, network.encode_labels(OBJECTS, RELATIONS), *pairs)
    return [part for layer in (output.final, *output.auxiliary) for part in vars(layer).values()]


@pytest.mark.slow
@pytest.mark.parametrize("gating", get_args(Gating))
def test_every_gating_is_told_or_asked_for(gating: Gating) -> None:
    config = tiny_config(50)
    config.gating = gating
    state = official_state(RTagger(config))
    published = {
        "vision_gate.norm": "layer_norm_gating_v",
        "label_gate.norm": "layer_norm_gating_l",
    }
    published |= {"vision_gate.branches": "MBF_v", "label_gate.branches": "MBF_l"}
    if gating in ("SOtanh", "SDFOXAcLN"):
        published["_up."] = "_one."
    for ours, theirs in published.items():
        state = {key.replace(ours, theirs): value for key, value in state.items()}
    text = config.text_config
    inferred = infer_config(
        state, {"gating_mechanism": gating}, verb_query="vanilla_MBF", text_config=text
    )
    assert inferred.gating == gating
    load_official(build_model(inferred), state)
    if gating in ("MBF", "SOtanh", "SDFOXAcLN"):
        assert infer_config(state, verb_query="vanilla_MBF", text_config=text).gating == gating
    else:
        with pytest.raises(
            CheckpointError, match="weights do not determine the gating: choose one of .*" + gating
        ):
            infer_config(state, verb_query="vanilla_MBF", text_config=text)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    trace = tmp_path / "trace"
    torch.save({"model": {"a": torch.zeros(1)}, "args": Bomb(trace)}, path)
    with pytest.raises(
        CheckpointError, match="not a torch checkpoint that can be read safely"
    ) as caught:
        read_checkpoint(path)
    assert not trace.exists()
    assert "no code is run" in str(caught.value)
    assert "weights_only" not in str(caught.value), (
        "torch's advice to load it unsafely is not passed on"
    )


def test_old_torch_files_are_read(tmp_path: Path) -> None:
    """Detectors of before torch 1.6 are no zip archives."""
    torch.save(
        {"model": {"a": torch.arange(3.0)}},
        tmp_path / "old.pth",
        _use_new_zipfile_serialization=False,
    )
    state, args = read_checkpoint(tmp_path / "old.pth")
    assert torch.equal(state["a"], torch.arange(3.0))
    assert args == {}


@pytest.mark.parametrize("content", [b"hello", b"", pickle.dumps([1, 2])])
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^[^\n]*not a torch checkpoint[^\n]*$"):
        read_checkpoint(tmp_path / "file.pth")


def test_what_cannot_be_converted_changes_nothing(
    tmp_path: Path, tagger: RTagger, words: str
) -> None:
    write_official(tmp_path / "good.pth", tagger)
    other = {"model": {"layer.weight": torch.zeros(2, 2)}, "args": argparse.Namespace(a=1)}
    torch.save(other, tmp_path / "other.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    RobertaTokenizerFast().save_pretrained(tmp_path / "bare")
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "mine.txt").write_text("keep")
    for name, out, tokenizer, reason in (
        ("other", "out", words, r"not an RLIP checkpoint: it has no transformer\.level_embed"),
        ("empty", "out", words, "contains no parameters; its entries are epoch"),
        ("absent", "out", words, "no such file"),
        ("good", "occupied", words, "exists and is not an empty folder"),
        ("good", "out", str(tmp_path / "bare"), "has only 5 tokens"),
        ("good", "out", str(tmp_path / "nowhere"), "no tokenizer in"),
    ):
        with pytest.raises((CheckpointError, TokenizerError), match=reason):
            convert(tmp_path / f"{name}.pth", tmp_path / out, tokenizer)
    assert not (tmp_path / "out").exists()
    assert values_of((tmp_path / "occupied").iterdir(), "name") == ["mine.txt"]


@pytest.mark.parametrize(("model", "keys"), [
    ("tagger_vxac", "keys_swint"), ("parsed", "keys_swint"), ("parseda", "keys_swint"),
    ("tagger_glip", "keys_r50"), ("parsed", "keys_r50"), ("parseda", "keys_r50"),
])  # fmt: skip
def test_every_published_key_converts(oracle: Path, model: str, keys: str) -> None:
    shapes = json.loads((oracle / "golden" / "model" / model / f"{keys}.json").read_text())
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
        fused = "transformer.verb_tgt_generator.fc_1.0.weight" in state
        options = {
            "gating_mechanism": "VXAc",
            "verb_query_tgt_type": "vanilla_MBF" if fused else "vanilla",
        }
        network = build_model(infer_config(state, options))
    network_shapes = {key: value.shape for key, value in network.state_dict().items()}
    names = {key: renamed(key, 3) for key in state if not is_ignored(key, network.config)}
    assert {name: state[key].shape for key, name in names.items()} == network_shapes
    assert (network.config.text_config.num_attention_heads, network.config.num_heads) == (12, 8)


@pytest.mark.parametrize("size", SWIN_SIZES)
def test_every_swin_size_builds_and_is_recognised(size: str) -> None:
    swin = SWIN_SIZES[size]
    with torch.device("meta"):
        network = ParSeD(
            ParSeDConfig(
                swin_embed_dim=swin.embed_dim, swin_depths=swin.depths, swin_heads=swin.heads
            )
        )
    assert network.image_encoder.backbone.channels[-1] == swin.embed_dim * 8
    inferred = infer_config(official_state(network), gating="VXAc", verb_query="vanilla_MBF")
    assert (type(inferred), inferred.swin_window) == (ParSeDConfig, 7)
    assert (tuple(inferred.swin_depths), tuple(inferred.swin_heads)) == (swin.depths, swin.heads)
