"""Matching and losses: empty batches, degenerate boxes, several processes, and where gradients go
in whole networks.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from rlip_model.boxes import generalized_iou
from rlip_model.config import Fusion
from rlip_model.distributed import gather, rank, without_collectives, world_size
from rlip_model.heads import LayerOutput, RelationOutput
from rlip_model.losses import DetectionCriterion, ModelLosses, TaggerCriterion
from rlip_model.matcher import NonFiniteError, match, matching_costs
from rlip_model.model import ParSeD, ParSeDA, RLIPModel, RTagger
from rlip_model.postprocess import hoi_detections, scene_graph_detections, zero_shot_hoi_detections
from rlip_model.relation_losses import focal_loss, quality_focal_loss
from rlip_model.settings import MatchingCosts
from rlip_model.targets import Triplets, join
from tests.rlip_model.conftest import tiny_network

OBJECTS = 5
RELATIONS = 4
PAIRS = 6
COSTS = MatchingCosts()
FEATURES = torch.randn(RELATIONS, 8, generator=torch.Generator().manual_seed(3))
CRITERIA: dict[str, Callable[[RelationOutput, list[Triplets]], ModelLosses]] = {
    "plain": DetectionCriterion(quality_labels=False, pseudo_labels=False),
    "quality": DetectionCriterion(pseudo_labels=False),
    "pseudo": partial(DetectionCriterion(quality_labels=False), relation_features=FEATURES),
    "pre-training": partial(DetectionCriterion(), relation_features=FEATURES),
    "tagger": TaggerCriterion(),
}

KINDS = (ParSeD, ParSeDA, RTagger)
PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(5, 100, (OBJECTS + RELATIONS, 4), generator=torch.Generator().manual_seed(0))
BOX_HEADS = ("relation_decoder.subject_box_heads", "relation_decoder.object_box_heads")
COUNTS = (3, 0, 1, 2)  # triplets of four images; two processes have two images each


def random_boxes(generator: torch.Generator, *shape: int) -> Tensor:
    """cxcywh, inside the image."""
    size = 0.1 + 0.4 * torch.rand(*shape, 2, generator=generator)
    centre = size / 2 + (1 - size) * torch.rand(*shape, 2, generator=generator)
    return torch.cat((centre, size), dim=-1)


def random_triplets(count: int) -> Triplets:
    """Every pair has at least one relation; no label is "no objects"."""
    generator = torch.Generator().manual_seed(1000 * count)
    relations = (torch.rand(count, RELATIONS, generator=generator) < 0.3).float()
    relations[torch.arange(count), torch.randint(0, RELATIONS, (count,), generator=generator)] = 1
    return Triplets(
        random_boxes(generator, count), random_boxes(generator, count),
        torch.randint(0, OBJECTS - 1, (count,), generator=generator),
        torch.randint(0, OBJECTS - 1, (count,), generator=generator), relations,
    )  # fmt: skip


def random_layer(batch: int = 2, seed: int = 0, subjects: bool = True) -> LayerOutput:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, batch, PAIRS, OBJECTS, generator=generator)
    relations = 2 * torch.randn(batch, PAIRS, RELATIONS, generator=generator)
    boxes = random_boxes(generator, 2, batch, PAIRS)
    leaves = [
        tensor.requires_grad_() for tensor in (logits[0], logits[1], relations, boxes[0], boxes[1])
    ]
    return LayerOutput(leaves[0] if subjects else None, *leaves[1:])


def random_output(batch: int = 2) -> RelationOutput:
    layers = [random_layer(batch, seed) for seed in range(3)]
    return RelationOutput(layers[0], tuple(layers[1:]))


def test_boxes_without_area_give_numbers_and_gradients() -> None:
    point = torch.tensor([[0.3, 0.3, 0.3, 0.3]], requires_grad=True)
    for other in (torch.zeros(1, 4), point.detach(), torch.tensor([[0.0, 0.0, 1.0, 1.0]])):
        value = generalized_iou(point, other)
        assert value.isfinite().all()
        (gradient,) = torch.autograd.grad(value.sum(), point)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", [focal_loss, quality_focal_loss])
def test_certain_and_wrong_is_finite(loss: Callable[..., torch.Tensor]) -> None:
    logits = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    value = loss(logits, torch.tensor([[0.0, 1.0]]))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_diverged_predictions_are_refused() -> None:
    output = random_layer(batch=1)
    broken = replace(output, relation_logits=torch.full_like(output.relation_logits, float("nan")))
    with pytest.raises(NonFiniteError, match="not finite"):
        match([broken], join([random_triplets(2)], RELATIONS), COSTS)


def test_subjects_that_are_not_classified_cost_nothing_and_are_not_detected() -> None:
    triplets = random_triplets(3)
    layer = random_layer(batch=1, subjects=False)
    other = replace(triplets, subject_labels=(triplets.subject_labels + 1) % 4)
    first, second = (
        matching_costs(layer, join([targets], RELATIONS), COSTS) for targets in (triplets, other)
    )
    torch.testing.assert_close(first, second)
    output = random_layer(subjects=False)
    sizes = torch.tensor([[100, 200], [50, 40]])
    assert len(hoi_detections(output, sizes)[0]) == PAIRS
    for detections in (zero_shot_hoi_detections, scene_graph_detections):
        with pytest.raises(ValueError, match="does not classify subjects"):
            detections(output, sizes)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (2, 0)])
def test_images_without_triplets(name: str, counts: tuple[int, int]) -> None:
    output = random_output()
    losses = CRITERIA[name](output, list(map(random_triplets, counts)))
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(tensor.grad.isfinite().all() for tensor in vars(output.final).values())
    if counts == (0, 0):
        parts = [
            losses.final.subject_box,
            losses.final.object_box,
            losses.final.subject_giou,
            losses.final.object_giou,
        ]
        assert [float(part.detach()) for part in parts] == [0] * 4
        assert name != "tagger" or float(losses.total.detach()) == 0


@pytest.mark.parametrize("published", [False, True])
def test_pseudo_labels_move_the_text_encoder_only_if_asked_to(published: bool) -> None:
    features = FEATURES.clone().requires_grad_()
    criterion = DetectionCriterion(pseudo_label_gradient=published)
    criterion(random_output(), [random_triplets(3), random_triplets(2)], features).total.backward()
    assert (features.grad is not None and bool(features.grad.abs().sum() > 0)) is published
    assert published or features.grad is None


def train_step(network: RLIPModel, counts: tuple[int, int] = (4, 3)) -> ModelLosses:
    network.train()
    targets = list(map(random_triplets, counts))
    labels = network.encode_tokens(TOKENS, torch.ones_like(TOKENS), OBJECTS)
    if isinstance(network, RTagger):
        losses = TaggerCriterion()(network(PIXELS, None, labels, targets), targets)
    else:
        losses = DetectionCriterion()(
            network(PIXELS, None, labels), targets, labels.features[0, OBJECTS:]
        )
    losses.total.backward()
    return losses


def without_gradient(network: RLIPModel) -> set[str]:
    return {
        name
        for name, value in network.named_parameters()
        if value.requires_grad and value.grad is None
    }


def box_heads(network: RLIPModel) -> set[str]:
    """The relation decoder's, whose boxes only steer attention."""
    return {name for name, _ in network.named_parameters() if name.startswith(BOX_HEADS)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "fusion"),
    [("swin", "alif"), ("resnet50", "alif"), ("swin", "after_decoding"), ("swin", "none")],
)
@pytest.mark.parametrize("kind", KINDS)
def test_all_but_the_relation_decoders_box_heads_learn(
    kind: type, backbone: str, fusion: Fusion
) -> None:
    network = tiny_network(kind, fusion, backbone=backbone)
    network.freeze()
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert frozen
    assert all(name.startswith("image_encoder.backbone.") for name in frozen)
    assert backbone == "swin" or {name.split(".")[2] for name in frozen} == {"conv1", "layer1"}
    train_step(network)
    assert without_gradient(network) == box_heads(network)
    assert len(box_heads(network)) == 36
    assert all(value.grad is None for name, value in network.named_parameters() if name in frozen)


@pytest.mark.parametrize(
    ("kind", "counts"), [*((kind, (0, 0)) for kind in KINDS), (RTagger, (2, 0))]
)
def test_images_without_triplets_train(kind: type, counts: tuple[int, int]) -> None:
    network = tiny_network(kind)
    losses = train_step(network, counts)
    assert losses.total.isfinite()
    assert all(
        value.grad.isfinite().all() for value in network.parameters() if value.grad is not None
    )


def part(output: RelationOutput, images: slice) -> RelationOutput:
    parts = [vars(layer).values() for layer in (output.final, *output.auxiliary)]
    final, *auxiliary = (
        LayerOutput(*(tensor.detach()[images] for tensor in layer)) for layer in parts
    )
    return RelationOutput(final, tuple(auxiliary))


def losses(images: slice) -> list[float]:
    output = random_output(batch=len(COUNTS))
    triplets = list(map(random_triplets, COUNTS))
    chosen = [
        CRITERIA[name](part(output, images), triplets[images])
        for name in ("plain", "quality", "tagger")
    ]
    return [float(loss.total) for loss in chosen]


def _one_of_two(number: int, meeting: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=number, world_size=2
    )
    try:
        local = losses(slice(2 * number, 2 * number + 2))
        every = gather(local)
        expected = torch.tensor(losses_alone)
        assert (rank(), world_size()) == (number, 2)
        torch.testing.assert_close(torch.tensor(every).mean(0), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(torch.tensor(every[0]), expected, rtol=1e-2)
        with without_collectives():
            assert world_size() == 1
            if number == 0:  # the other process computes nothing here
                assert losses(slice(None)) == losses_alone
    finally:
        distributed.destroy_process_group()


losses_alone = losses(slice(None))  # in every process, before it meets the others


@pytest.mark.slow
def test_two_processes_lose_as_much_as_one(tmp_path: Path) -> None:
    multiprocessing.spawn(_one_of_two, args=(str(tmp_path / "meeting"),), nprocs=2)
