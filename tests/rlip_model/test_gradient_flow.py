"""Training steps of whole networks: which parameters get a gradient, with gates, late fusion, and no triplets."""

import pytest
import torch

from rlip_model.config import Fusion
from rlip_model.losses import DetectionCriterion, ModelLosses, TaggerCriterion
from rlip_model.model import ParSeD, ParSeDA, RLIPModel, RTagger
from tests.rlip_model.conftest import tiny_network
from tests.rlip_model.samples import OBJECTS, RELATIONS, random_triplets

KINDS = (ParSeD, ParSeDA, RTagger)
PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(5, 100, (OBJECTS + RELATIONS, 4), generator=torch.Generator().manual_seed(0))
BOX_HEADS = ("relation_decoder.subject_box_heads", "relation_decoder.object_box_heads")


def train_step(network: RLIPModel, counts: tuple[int, int] = (4, 3)) -> ModelLosses:
    network.train()
    targets = [random_triplets(count) for count in counts]
    labels = network.encode_tokens(TOKENS, torch.ones_like(TOKENS), OBJECTS)
    if isinstance(network, RTagger):
        losses = TaggerCriterion()(network(PIXELS, None, labels, targets), targets)
    else:
        losses = DetectionCriterion()(network(PIXELS, None, labels), targets, labels.features[0, OBJECTS:])
    losses.total.backward()
    return losses


def without_gradient(network: RLIPModel) -> set[str]:
    return {name for name, value in network.named_parameters() if value.requires_grad and value.grad is None}


def box_heads(network: RLIPModel) -> set[str]:
    """The relation decoder's, whose boxes only steer attention."""
    return {name for name, _ in network.named_parameters() if name.startswith(BOX_HEADS)}


@pytest.mark.parametrize(
    ("backbone", "fusion"), [("swin", "alif"), ("resnet50", "alif"), ("swin", "after_decoding"), ("swin", "none")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_all_but_the_relation_decoders_box_heads_learn(kind: type, backbone: str, fusion: Fusion) -> None:
    network = tiny_network(kind, fusion, backbone=backbone)
    network.freeze()
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert frozen
    assert all(name.startswith("image_encoder.backbone.") for name in frozen)
    train_step(network)
    assert without_gradient(network) == box_heads(network)
    assert len(box_heads(network)) == 36
    assert all(value.grad is None for name, value in network.named_parameters() if name in frozen)


@pytest.mark.parametrize("gating", ["GLIP", "VXAc", "XGating"])
def test_gates_that_are_read_learn(gating: str) -> None:
    network = tiny_network(ParSeDA, gating=gating)
    train_step(network)
    gates = {name: value for name, value in network.named_parameters() if name.endswith(".gamma")}
    unused = without_gradient(network) - box_heads(network)
    assert gates
    assert unused == (set(gates) if gating == "XGating" else set())
    for value in gates.values():
        if gating == "VXAc":
            assert value.grad[0] != 0
            assert value.grad[1:].eq(0).all()
        if gating == "GLIP":
            assert value.grad.ne(0).float().mean() > 0.9


@pytest.mark.parametrize(("kind", "counts"), [*((kind, (0, 0)) for kind in KINDS), (RTagger, (2, 0))])
def test_images_without_triplets_train(kind: type, counts: tuple[int, int]) -> None:
    network = tiny_network(kind)
    losses = train_step(network, counts)
    assert losses.total.isfinite()
    assert all(value.grad.isfinite().all() for value in network.parameters() if value.grad is not None)
