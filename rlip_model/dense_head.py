"""A dense box detector on the feature maps, and its loss: every token predicts classes and a box
(FCOS, ICCV 2019).

No published network has it. It trains a backbone from scratch in a fraction of the steps that
queries need, and finds boxes of its own. It sees the feature maps before the encoder, so images and
texts meet only in its class scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, nms, sigmoid_focal_loss

from rlip_model.backbone import ImageFeatures
from rlip_model.boxes import to_corners
from rlip_model.config import RLIPConfig
from rlip_model.distributed import global_mean
from rlip_model.gpu_memory import send, send_all
from rlip_model.heads import PRIOR_LOGIT
from rlip_model.position import at_least_float32

CELLS_PER_BOX = 4  # a box belongs to the level where its side is nearest to this many cells
INITIAL_CELLS = 2.0  # size of an untrained box
MOST_CELLS = 55.0
SMALLEST_SIDE = 1e-3
OVERLAP = 0.6  # of two boxes of a class, above which only the more confident one is kept
_EPSILON = 1e-7  # of the GIoU, as in torchvision
CANDIDATES = 300  # per image, before overlapping boxes are removed


@dataclass(frozen=True)
class LabelledBoxes:
    """The objects of one image: boxes `[objects, 4]` normalised cxcywh, labels `[objects]`, indices
    of object texts.
    """

    boxes: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> LabelledBoxes:
        return LabelledBoxes(*send_all([self.boxes, self.labels], device))


@dataclass(frozen=True)
class Proposals:
    """Boxes that queries start from, without gradient, best first.

    boxes `[batch, proposals, 4]` normalised cxcywh; features `[batch, proposals, dim]` of their
    tokens; scores `[batch, proposals]`.
    """

    boxes: Tensor
    features: Tensor
    scores: Tensor


@dataclass(frozen=True)
class DenseOutput:
    """Predictions of every token, levels from fine to coarse.

    features `[batch, tokens, dim]`; logits `[batch, tokens, objects]`, independent of each other,
    without "no objects"; boxes `[batch, tokens, 4]` normalised cxcywh; centres and cells `[batch,
    tokens, 2]`, the centre of each token and the size of its cell, as shares of the image; levels
    `[tokens]`; padding `[batch, tokens]`, True outside the image.
    """

    features: Tensor
    logits: Tensor
    boxes: Tensor
    centres: Tensor
    cells: Tensor
    levels: Tensor
    padding: Tensor

    @torch.no_grad()
    def proposals(self, count: int) -> Proposals:
        """Return the `count` most confident boxes of each image, those that overlap a better one of
        their class last.
        """
        scores, labels = self.logits.sigmoid().max(-1)
        scores = scores.masked_fill(self.padding, -1.0)
        best = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1).indices
        corners = to_corners(self.boxes)
        is_overlapped = torch.ones_like(best)
        for image, candidates in enumerate(best):
            boxes = corners[image, candidates]
            # As batched_nms, which copies to the GPU: boxes of different classes lie apart.
            shifts = labels[image, candidates, None].to(boxes) * (boxes.max() + 1)
            remaining = nms(boxes + shifts, scores[image, candidates], OVERLAP)
            is_overlapped[image].index_fill_(0, remaining, 0)
        tokens = best.gather(1, is_overlapped.argsort(dim=1, stable=True))[:, :count]
        images = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
        return Proposals(
            self.boxes[images, tokens].clamp(SMALLEST_SIDE, 1 - SMALLEST_SIDE),
            self.features[images, tokens],
            scores[images, tokens],
        )

    def detections(self, image: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes `[boxes, 4]` normalised xyxy, scores and labels `[boxes]` of an image, best first.

        Every token gives its best class; of overlapping boxes of a class the most confident one is
        kept.
        """
        scores, labels = self.logits[image].sigmoid().max(-1)
        tokens = ((scores > threshold) & ~self.padding[image]).nonzero().squeeze(1)
        tokens = tokens[scores[tokens].topk(min(len(tokens), CANDIDATES)).indices]
        boxes = to_corners(self.boxes[image][tokens]).clamp(0, 1)
        chosen = batched_nms(boxes, scores[tokens], labels[tokens], OVERLAP)
        return boxes[chosen], scores[tokens][chosen], labels[tokens][chosen]


class DenseHead(nn.Module):
    """Class scores, as dot products with label features, and boxes for every token of the projected
    maps.
    """

    def __init__(self, config: RLIPConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.convolutions = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(dim, dim, 3, padding=1, bias=False),
                nn.GroupNorm(dim // 8, dim),
                nn.ReLU(),
            )
            for _ in range(config.num_levels)
        )
        self.classes = nn.Linear(dim, dim)
        self.labels = nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.full((1,), 8.0))  # FSDP divides no scalars
        self.boxes = nn.Linear(dim, 4)

    def forward(self, image: ImageFeatures, labels: Tensor) -> DenseOutput:
        """`labels` `[1 or batch, objects, dim]`: resized features of the object texts, without "no
        objects".
        """
        tokens = self._tokens(image)
        directions = F.normalize(self.labels(F.normalize(labels, dim=-1)), dim=-1) * self.scale
        # bfloat16 has few values: the best would be arbitrary.
        with torch.autocast(tokens.device.type, enabled=False):
            classes = self.classes(at_least_float32(tokens))
            logits = classes @ at_least_float32(directions).transpose(-1, -2) + PRIOR_LOGIT
        centres, cells, levels = _grid(image)
        offset, size = self.boxes(tokens).float().chunk(2, dim=-1)
        size = (size.exp() * INITIAL_CELLS).clamp(max=MOST_CELLS)
        boxes = torch.cat((centres + offset * cells, size * cells), dim=-1)
        return DenseOutput(tokens, logits, boxes, centres, cells, levels, image.padding)

    def _tokens(self, image: ImageFeatures) -> Tensor:
        """Return each level plus the coarser ones (FPN, CVPR 2017), through a convolution; `[batch,
        tokens, dim]`.
        """
        sizes = [height * width for height, width in image.shapes]
        maps = [
            level.transpose(1, 2).unflatten(2, shape)
            for level, shape in zip(image.tokens.split(sizes, 1), image.shapes, strict=True)
        ]
        for finer in range(len(maps) - 2, -1, -1):
            maps[finer] = maps[finer] + F.interpolate(maps[finer + 1], size=image.shapes[finer])
        levels = [
            convolution(level) for convolution, level in zip(self.convolutions, maps, strict=True)
        ]
        return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)


def _grid(image: ImageFeatures) -> tuple[Tensor, Tensor, Tensor]:
    """Centres and cells `[batch, tokens, 2]` and levels `[tokens]` of all tokens, see
    `DenseOutput`.
    """
    centres = []
    cells = []
    levels = []
    device = image.tokens.device
    for level, (height, width) in enumerate(image.shapes):
        y, x = torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
        cell = 1 / (
            image.valid_ratios[:, None, level].float() * send(torch.tensor([width, height]), device)
        )
        centres.append((torch.stack((x.flatten(), y.flatten()), dim=-1) + 0.5) * cell)
        cells.append(cell.expand(-1, height * width, -1))
        levels.append(torch.full((height * width,), level, device=device))
    return torch.cat(centres, 1), torch.cat(cells, 1), torch.cat(levels)


@dataclass(frozen=True)
class DenseLosses:
    """focal: of the classes of all tokens; giou: 1 - GIoU of the tokens that stand for an object.

    Each is a scalar, a sum over tokens divided by the number of objects in all training processes.
    """

    focal: Tensor
    giou: Tensor


def dense_losses(
    output: DenseOutput, targets: Sequence[LabelledBoxes], total: Tensor | None = None
) -> DenseLosses:
    """Return the losses of the dense detector.

    Args:
        targets: all objects of each image.
        total: number of objects, see `global_mean`.
    """
    images, tokens, objects = assign(output, targets)
    labels = torch.cat([image.labels for image in targets])[objects]
    boxes = torch.cat([image.boxes for image in targets])[objects]
    expected = torch.zeros_like(output.logits)
    expected[images, tokens, labels] = 1
    inside = (~output.padding).nonzero(as_tuple=True)
    focal = sigmoid_focal_loss(output.logits[inside], expected[inside], reduction="sum")
    giou = _giou_losses(to_corners(output.boxes[images, tokens]), to_corners(boxes)).sum()
    count = giou.new_full((), float(sum(len(image.labels) for image in targets)))
    return DenseLosses(
        global_mean(focal, count, total=total), global_mean(giou, count, total=total)
    )


def _giou_losses(first: Tensor, second: Tensor) -> Tensor:
    """1 - GIoU of each pair of xyxy boxes, as torchvision's `generalized_box_iou_loss`, which lets
    the host wait.
    """

    def area(corners: Tensor) -> Tensor:
        width, height = (corners[:, 2:] - corners[:, :2]).unbind(-1)
        return width * height

    inner = torch.cat(
        (torch.max(first[:, :2], second[:, :2]), torch.min(first[:, 2:], second[:, 2:])), dim=1
    )
    outer = torch.cat(
        (torch.min(first[:, :2], second[:, :2]), torch.max(first[:, 2:], second[:, 2:])), dim=1
    )
    width, height = (inner[:, 2:] - inner[:, :2]).clamp(min=0).unbind(-1)
    shared = width * height
    hull = area(outer)
    union = area(first) + area(second) - shared
    return 1 - (shared / (union + _EPSILON) - (hull - union) / (hull + _EPSILON))


@torch.no_grad()
def assign(output: DenseOutput, targets: Sequence[LabelledBoxes]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens that stand for an object: image, token and object of each, `[tokens]` each.

    Objects are numbered through all images. An object is assigned to the tokens of one level, by
    its size, whose centre is within one cell of its own; a token near several objects to the
    smallest one.
    """
    sides = []
    objects = []
    first = 0
    for image, of_image in enumerate(targets):
        side, number = _smallest(output, image, of_image)
        sides.append(side)
        objects.append(first + number)
        first += len(of_image.boxes)
    # The host waits for this once.
    images, tokens = torch.stack(sides).isfinite().nonzero(as_tuple=True)
    return images, tokens, torch.stack(objects)[images, tokens]


def _smallest(output: DenseOutput, image: int, targets: LabelledBoxes) -> tuple[Tensor, Tensor]:
    """Return the side of the smallest object that is assigned to each token (inf: none), and its
    number; `[tokens]` each.
    """
    if not len(targets.boxes):
        no_side = torch.full_like(output.levels, torch.inf, dtype=torch.float32)
        return no_side, torch.zeros_like(output.levels)
    centres = output.centres[image]
    cells = output.cells[image]
    # In cells of the finest level.
    sides = (targets.boxes[:, 2:] / cells[0]).prod(-1).sqrt().clamp(min=1e-6)
    level = (sides / CELLS_PER_BOX).log2().round().clamp(min=0).minimum(output.levels[-1].float())
    fits_level = (output.levels.unsqueeze(1) == level) & ~output.padding[image].unsqueeze(1)
    distance = ((centres.unsqueeze(1) - targets.boxes[:, :2]).abs() / cells.unsqueeze(1)).amax(-1)
    distance = distance.masked_fill(~fits_level, torch.inf)
    near = (distance <= 1) | (distance == distance.amin(0)) & distance.isfinite()
    smallest = sides.expand_as(near).masked_fill(~near, torch.inf).min(1)
    return smallest.values, smallest.indices
