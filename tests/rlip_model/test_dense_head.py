"""The dense head: which tokens stand for which object, its losses, its detections, and queries from
its proposals.
"""

from dataclasses import replace
from itertools import permutations

import torch
from torchvision.ops import box_iou

from rlip_model.backbone import ImageFeatures
from rlip_model.boxes import to_corners
from rlip_model.config import ParSeDAConfig
from rlip_model.dense_head import DenseHead, DenseOutput, LabelledBoxes, assign, dense_losses
from rlip_model.queries import ProposalQueries
from tests.rlip_model.training.worlds import DENSE, TEXTS, example, network
from tests.values import values_of

SHAPES = ((12, 16), (6, 8), (3, 4), (2, 2))
CONFIG = ParSeDAConfig(hidden_dim=32, dense_head=True, num_queries=12, proposals=4)


def features(batch: int = 2, width: float = 1.0, height: float = 1.0) -> ImageFeatures:
    """Random tokens; only this share of the maps is image."""
    generator = torch.Generator().manual_seed(0)
    padding = []
    for rows, columns in SHAPES:
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        padding.append(((y + 0.5 > height * rows) | (x + 0.5 > width * columns)).flatten())
    padded = torch.cat(padding).expand(batch, -1)
    tokens = torch.randn(batch, padded.shape[1], 32, generator=generator)
    ratios = torch.tensor([width, height]).expand(batch, len(SHAPES), -1)
    return ImageFeatures(tokens, torch.zeros_like(tokens), padded, ratios, SHAPES)


def head_output(width: float = 1.0, height: float = 1.0) -> DenseOutput:
    torch.manual_seed(0)
    head = DenseHead(CONFIG)
    return head(features(2, width, height), torch.randn(1, 5, 32))


def objects(*boxes: tuple[float, float, float, float]) -> LabelledBoxes:
    return LabelledBoxes(torch.tensor(boxes).reshape(-1, 4), torch.arange(len(boxes)))


def test_every_object_has_a_token_unless_another_takes_it() -> None:
    output = head_output(width=0.5)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        size = 0.02 + 0.9 * torch.rand(2, generator=generator)
        centre = size / 2 + (1 - size) * torch.rand(2, generator=generator)
        images, tokens, _ = assign(output, [objects(), objects((*centre.tolist(), *size.tolist()))])
        assert set(images.tolist()) == {1}
        assert not output.padding[1, tokens].any()


def test_perfect_predictions_have_no_loss_and_are_detected() -> None:
    output = head_output(0.75, 0.75)
    targets = [objects((0.3, 0.4, 0.2, 0.3), (0.7, 0.6, 0.5, 0.4)), objects((0.5, 0.5, 0.9, 0.8))]
    logits = torch.full_like(output.logits, -20.0)
    boxes = output.boxes.clone()
    images, tokens, chosen = assign(output, targets)
    logits[images, tokens, torch.cat(values_of(targets, "labels"))[chosen]] = 20.0
    boxes[images, tokens] = torch.cat(values_of(targets, "boxes"))[chosen]
    perfect = replace(output, logits=logits, boxes=boxes)
    losses = dense_losses(perfect, targets)
    assert max(losses.focal.item(), losses.giou.item()) < 1e-4
    for image, target in enumerate(targets):
        detected_boxes, scores, labels = perfect.detections(image, 0.5)
        order = labels.argsort()
        torch.testing.assert_close(detected_boxes[order], to_corners(target.boxes).clamp(0, 1))
        assert (labels[order].tolist(), bool((scores > 0.99).all())) == (
            target.labels.tolist(),
            True,
        )


def test_proposals_prefer_boxes_that_do_not_overlap() -> None:
    output = head_output()
    logits = torch.full_like(output.logits, -9.0)
    boxes = output.boxes.clone()
    logits[:, :3, 0] = torch.tensor([3.0, 2.0, 1.0])
    boxes[:, 0] = boxes[:, 1] = torch.tensor([0.2, 0.2, 0.2, 0.2])
    boxes[:, 2] = torch.tensor([0.7, 0.7, 0.2, 0.2])
    proposals = replace(output, logits=logits, boxes=boxes).proposals(4)
    assert proposals.boxes.shape == (2, 4, 4)
    torch.testing.assert_close(proposals.boxes[:, 1], boxes[:, 2])
    torch.testing.assert_close(proposals.features[:, 0], output.features[:, 0])
    assert not proposals.boxes.requires_grad


def test_queries_are_the_most_confident_pairs_of_different_proposals() -> None:
    torch.manual_seed(0)
    queries = ProposalQueries(CONFIG)
    proposals = head_output().proposals(4)
    entities = queries.entities(proposals)
    subjects, second_ends = entities.references.chunk(2, dim=1)
    assert subjects.shape == (2, CONFIG.num_pairs, 4)
    ends = (
        box_iou(to_corners(end[0]), to_corners(proposals.boxes[0])).argmax(1).tolist()
        for end in (subjects, second_ends)
    )
    pairs = set(zip(*ends, strict=True))
    assert {(0, 1)} <= pairs <= set(permutations(range(4), 2))
    assert len(pairs) == CONFIG.num_pairs


def test_predictions_do_not_depend_on_the_padding_of_the_batch() -> None:
    model = network("parseda", **DENSE).eval()
    alone = example(0).pixel_values[None]
    padded = torch.zeros(1, 3, 128, 128)
    padded[:, :, :64, :64] = alone
    padding = torch.ones(1, 128, 128, dtype=torch.bool)
    padding[:, :64, :64] = False
    labels = model.encode_labels(TEXTS.objects, TEXTS.relations)
    with torch.no_grad():
        first = model.detect_boxes(model.encode_image(alone), labels)
        second = model.detect_boxes(model.encode_image(padded, padding), labels)
    assert first.logits.shape[1] < second.logits.shape[1]
    assert int((~second.padding).sum()) == first.logits.shape[1]
    torch.testing.assert_close(second.centres[0][~second.padding[0]], first.centres[0])


def test_fsdp_can_divide_every_parameter() -> None:
    """It refuses scalars."""
    assert all(parameter.dim() for parameter in DenseHead(CONFIG).parameters())


def test_scores_are_as_fine_in_bfloat16_as_in_float32() -> None:
    """In bfloat16 hundreds of tokens share a score, and which of them are the best would be
    arbitrary.
    """
    model = network("parseda", **DENSE).eval()
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    labels = model.encode_labels(TEXTS.objects, TEXTS.relations)
    distinct = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model.detect_boxes(model.encode_image(pixels), labels).logits
        assert logits.dtype == torch.float32
        distinct.append(len(logits.unique()) / logits.numel())
    assert distinct[1] > 0.9 * distinct[0]
