"""Starting from detectors: what goes where, and which detectors are refused."""

import re
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlip_model.checkpoint import convert_detector
from rlip_model.detector import initialise_from_detector, published_names
from rlip_model.model import ParSeD, ParSeDA, RLIPModel, RTagger
from tests.rlip_model.conftest import tiny_network
from tests.rlip_model.official_names import official_state

DETECTOR_LAYERS = 6
DETECTOR_QUERIES = 60
DIM = 64
PARTS_WITHOUT_DETECTOR = ("text_encoder", "encoder", "label_resizer", "scorer", "queries")


def detector(anchored: bool) -> dict[str, Tensor]:
    """As Deformable-DETR or DAB-Deformable-DETR with box refinement is saved: every head under two
    names.
    """
    published = official_state(tiny_network(ParSeDA if anchored else ParSeD, "none"))
    generator = torch.Generator().manual_seed(3)
    state: dict[str, Tensor] = {}

    def add(key: str, shape: torch.Size) -> None:
        state[key] = torch.randn(shape, generator=generator)

    for key, value in published.items():
        if re.match(
            r"backbone|input_proj|transformer\.level_embed|transformer\.(ho_)?encoder\.layers", key
        ):
            add(key.replace("ho_encoder", "encoder"), value.shape)
        elif re.match(r"transformer\.ho_decoder\.(query_scale|ref_point_head)", key):
            add(key.replace("ho_decoder", "decoder"), value.shape)
        elif key.startswith("transformer.ho_decoder.layers.0."):
            for layer in range(DETECTOR_LAYERS):
                add(key.replace("ho_decoder.layers.0.", f"decoder.layers.{layer}."), value.shape)
        elif key.startswith("sub_bbox_embed.0."):
            for head in range(DETECTOR_LAYERS):
                name = key.replace("sub_bbox_embed.0.", f"bbox_embed.{head}.")
                add(name, value.shape)
                state["transformer.decoder." + name] = state[name]
    for layer in range(DETECTOR_LAYERS):
        add(f"class_embed.{layer}.weight", torch.Size((91, DIM)))
    if anchored:
        add("tgt_embed.weight", torch.Size((DETECTOR_QUERIES, DIM)))
        add("refpoint_embed.weight", torch.Size((DETECTOR_QUERIES, 4)))
    else:
        add("query_embed.weight", torch.Size((DETECTOR_QUERIES, 2 * DIM)))
        add("transformer.reference_points.weight", torch.Size((2, DIM)))
        add("transformer.reference_points.bias", torch.Size((2,)))
    return state


@pytest.mark.parametrize(("kind", "anchored"), [(ParSeDA, True), (ParSeD, False), (RTagger, False)])
def test_layers_and_heads(kind: type[ParSeD], anchored: bool) -> None:
    network = tiny_network(kind)
    state = detector(anchored)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = initialise_from_detector(network, state)
    for layer in range(3):
        expected = state[f"transformer.decoder.layers.{layer}.linear1.weight"]
        assert torch.equal(network.entity_decoder.layers[layer].linear1.weight, expected)
        assert torch.equal(network.relation_decoder.layers[layer].linear1.weight, expected)
        for decoder, head in (
            (network.entity_decoder, layer),
            (network.relation_decoder, layer + 3),
        ):
            expected = state[f"bbox_embed.{head}.layers.1.weight"]
            assert torch.equal(decoder.subject_box_heads[layer].mlp.layers[1].weight, expected)
            assert torch.equal(decoder.object_box_heads[layer].mlp.layers[1].weight, expected)
    expected = state["transformer.encoder.layers.1.self_attn.value_proj.weight"]
    assert torch.equal(network.encoder.layers[1].self_attn.value_proj.weight, expected)
    assert torch.equal(network.image_encoder.level_embed, state["transformer.level_embed"])
    assert set(report.loaded).isdisjoint(report.unchanged)
    assert set(report.loaded) | set(report.unchanged) >= {
        name for name, _ in network.named_parameters()
    }
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in report.unchanged)
    assert all(name.split(".")[0] in PARTS_WITHOUT_DETECTOR for name in report.unchanged)
    without_place = re.compile(r"class_embed\.|transformer\.decoder\.layers\.[345]\.|query_embed\.")
    assert all(map(without_place.match, report.unused))
    assert {"class_embed.0.weight", "transformer.decoder.layers.3.linear1.weight"} <= set(
        report.unused
    )
    assert ("query_embed.weight" in report.unused) == (kind is RTagger)


@pytest.mark.parametrize(("kind", "anchored"), [(ParSeDA, True), (ParSeD, False)])
def test_files_of_the_published_conversion_give_the_same(
    kind: type[ParSeD], anchored: bool
) -> None:
    """In them the relation decoder's heads have two names with different values; the one read last
    counts.
    """
    state = detector(anchored)
    converted = {**state, **published_names(state)}
    for key in state:
        if key.startswith("transformer.encoder."):
            converted[key.replace("encoder", "ho_encoder", 1)] = state[key]
    for decoder, role in product(("ho", "verb"), ("sub", "obj")):
        for key in [key for key in state if key.startswith("bbox_embed.")]:
            converted[f"transformer.{decoder}_decoder.{role}_{key}"] = state[key]
    ours = tiny_network(kind)
    theirs = tiny_network(kind)
    initialise_from_detector(ours, state)
    initialise_from_detector(theirs, converted)
    torch.testing.assert_close(theirs.state_dict(), ours.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "network"), [("parseda", ParSeDA), ("tagger", RTagger), ("rlipv1", ParSeD)]
)
def test_a_folder_from_a_detector_and_a_roberta(
    tmp_path: Path, tagger: RTagger, kind: str, network: type[RLIPModel]
) -> None:
    roberta = tmp_path / "roberta"
    tagger.tokenizer.save_pretrained(roberta)
    tagger.text_encoder.roberta.save_pretrained(roberta)
    path = tmp_path / "detector.pth"
    state = detector(anchored=kind == "parseda")
    torch.save({"model": state, "optimizer": {"state": {}}}, path)
    convert_detector(path, tmp_path / "a", kind, str(roberta), num_queries=40)
    torch.manual_seed(99)
    convert_detector(path, tmp_path / "b", kind, str(roberta), num_queries=40)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1], "what the detector has not follows from the seed"
    started = network.from_pretrained(tmp_path / "a")
    assert torch.equal(
        started.text_encoder.roberta.pooler.dense.weight,
        tagger.text_encoder.roberta.pooler.dense.weight,
    )
    assert torch.equal(started.image_encoder.level_embed, state["transformer.level_embed"])
    assert torch.equal(started.encode_texts(["riding"]), tagger.encode_texts(["riding"]))
