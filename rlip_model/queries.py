"""The queries of the decoders: learned (ParSeD), anchors (ParSeDA) or given pairs (R-Tagger).

Row j of the first half of the queries is the subject of pair j, row j of the second half is its
object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlip_model.config import RLIPConfig, RTaggerConfig
from rlip_model.dense_head import Proposals
from rlip_model.fusion import MultiBranchFusion
from rlip_model.gpu_memory import send
from rlip_model.noise import Noise, perturb_boxes, perturb_labels
from rlip_model.position import at_least_float32, inverse_sigmoid


@dataclass(frozen=True)
class EntityQueries:
    """Queries of the entity decoder.

    content `[batch, 2 * pairs, dim]`; positions likewise, or None if they are computed from the
    references; references `[batch, 2 * pairs, 2 (xy) or 4 (cxcywh)]`; padding `[batch, 2 * pairs]`,
    True in unused slots; attention_mask `[batch * heads, 2 * pairs, 2 * pairs]`, True where
    attention is forbidden.
    """

    content: Tensor
    positions: Tensor | None
    references: Tensor
    padding: Tensor | None = None
    attention_mask: Tensor | None = None


@dataclass(frozen=True)
class RelationQueries:
    """Queries of the relation decoder, one per pair; see `EntityQueries`."""

    content: Tensor
    positions: Tensor | None
    padding: Tensor | None = None


@dataclass(frozen=True)
class GivenPairs:
    """The given pairs of one image: boxes `[pairs, 4]` normalised cxcywh, labels `[pairs]`, indices
    of object texts.
    """

    subject_boxes: Tensor
    object_boxes: Tensor
    subject_labels: Tensor
    object_labels: Tensor

    def __len__(self) -> int:
        return self.subject_labels.shape[0]


class RelationQueryBuilder(nn.Module):
    """Builds relation queries: learned vectors, the multi-branch fusion of the decoded entities, or
    both.

    Args:
        anchored: the relation decoder computes positions from boxes, so the queries have none.
    """

    def __init__(self, config: RLIPConfig, anchored: bool = False) -> None:
        super().__init__()
        self.kind = config.verb_query
        self.anchored = anchored
        self.num_pairs = config.num_pairs
        if anchored or self.kind != "vanilla":
            self.verb_fusion = MultiBranchFusion(config.hidden_dim)
        if not anchored and self.kind != "vanilla":
            self.verb_position = nn.Embedding(config.num_pairs, config.hidden_dim)

    def build(self, entities: Tensor, learned: Tensor, padding: Tensor | None) -> RelationQueries:
        """Build the relation queries of the first `pairs` slots.

        Args:
            entities: `[batch, 2 * pairs, dim]`, the last states of the entity decoder.
            learned: `[num_queries, dim]`; its two halves are added.
            padding: `[batch, 2 * pairs]`.
        """
        subjects, objects = entities.chunk(2, dim=1)
        pairs = subjects.shape[1]
        halves = learned[:pairs] + learned[self.num_pairs : self.num_pairs + pairs]
        content = halves.expand_as(subjects)
        if self.kind != "vanilla":
            fused = self.verb_fusion(subjects, objects)
            content = fused if self.kind == "MBF" else fused + content
        padding = None if padding is None else padding[:, :pairs]
        return RelationQueries(content, self._positions(subjects, objects), padding)

    def _positions(self, subjects: Tensor, objects: Tensor) -> Tensor | None:
        if self.anchored:
            return None
        if self.kind == "vanilla":
            return subjects + objects
        return self.verb_position.weight[: subjects.shape[1]].expand_as(subjects)


class ReferencePoints(nn.Module):
    """Predicts the initial reference points (x, y) of queries from their position vectors."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.subject = nn.Linear(dim, 2)
        self.object = nn.Linear(dim, 2)
        for linear in (self.subject, self.object):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, positions: Tensor) -> Tensor:
        """`[batch, 2 * pairs, dim]` to `[batch, 2 * pairs, 2]`, normalised, in at least float32."""
        subjects, objects = positions.chunk(2, dim=1)
        logits = torch.cat((self.subject(subjects), self.object(objects)), dim=1)
        return at_least_float32(logits).sigmoid()


class LearnedQueries(nn.Module):
    """The queries of ParSeD: learned position, content and relation vectors."""

    def __init__(self, config: RLIPConfig) -> None:
        super().__init__()
        self.query_embed = nn.Embedding(config.num_queries, 3 * config.hidden_dim)
        self.reference_points = ReferencePoints(config.hidden_dim)
        self.relation_builder = RelationQueryBuilder(config)

    def entities(self, batch: int) -> EntityQueries:
        """Return the queries of the entity decoder, repeated for each image of the batch."""
        position, content, _ = self.query_embed.weight.unsqueeze(0).chunk(3, dim=-1)
        positions = position.expand(batch, -1, -1)
        return EntityQueries(
            content.expand_as(positions), positions, self.reference_points(positions)
        )

    def relations(self, entities: Tensor, padding: Tensor | None) -> RelationQueries:
        """Return the queries of the relation decoder; see `RelationQueryBuilder.build`."""
        return self.relation_builder.build(
            entities, self.query_embed.weight.chunk(3, dim=-1)[2], padding
        )


class AnchorQueries(nn.Module):
    """The queries of ParSeDA: learned contents and anchor boxes; positions are computed from the
    boxes.
    """

    def __init__(self, config: RLIPConfig) -> None:
        super().__init__()
        self.content = nn.Embedding(config.num_queries, config.hidden_dim)
        self.verb_content = nn.Embedding(config.num_queries, config.hidden_dim)
        self.anchors = nn.Embedding(config.num_queries, 4)
        self.relation_builder = RelationQueryBuilder(config, anchored=True)

    def entities(self, batch: int) -> EntityQueries:
        """Return the queries of the entity decoder, repeated for each image of the batch."""
        content = self.content.weight
        anchors = self.anchors.weight.sigmoid()
        return EntityQueries(content.expand(batch, -1, -1), None, anchors.expand(batch, -1, -1))

    def relations(self, entities: Tensor, padding: Tensor | None) -> RelationQueries:
        """Return the queries of the relation decoder; see `RelationQueryBuilder.build`."""
        return self.relation_builder.build(entities, self.verb_content.weight, padding)


class ProposalQueries(nn.Module):
    """The queries of a ParSeDA with proposals: pairs of the boxes that its dense head is most
    confident of.

    As in two-stage detectors (Deformable DETR, section 4.2), anchors are detected boxes instead of
    learned ones.
    """

    def __init__(self, config: RLIPConfig) -> None:
        super().__init__()
        self.num_pairs = config.num_pairs
        self.proposals = config.proposals
        self.roles = nn.Embedding(2, config.hidden_dim)
        self.features = nn.Linear(config.hidden_dim, 2 * config.hidden_dim)
        self.verb_content = nn.Embedding(1, config.hidden_dim)
        self.relation_builder = RelationQueryBuilder(config, anchored=True)
        nn.init.normal_(self.roles.weight, std=0.1)
        nn.init.zeros_(self.verb_content.weight)
        nn.init.xavier_uniform_(self.features.weight)

    def entities(self, proposals: Proposals) -> EntityQueries:
        """Queries for the `num_pairs` ordered pairs of different boxes whose scores have the
        largest product.
        """
        pairs = (~torch.eye(self.proposals, dtype=torch.bool)).nonzero().T.contiguous()
        first, second = send(pairs, proposals.boxes.device).unbind()
        products = proposals.scores[:, first] * proposals.scores[:, second]
        best = products.topk(self.num_pairs, dim=1).indices
        subjects = first[best]
        objects = second[best]
        images = torch.arange(len(best), device=best.device).unsqueeze(1)
        as_subject, as_object = self.features(proposals.features).chunk(2, dim=-1)
        content = (
            self.roles.weight[0] + as_subject[images, subjects],
            self.roles.weight[1] + as_object[images, objects],
        )
        anchors = torch.cat(
            (proposals.boxes[images, subjects], proposals.boxes[images, objects]), dim=1
        )
        return EntityQueries(torch.cat(content, dim=1), None, anchors)

    def relations(self, entities: Tensor, padding: Tensor | None) -> RelationQueries:
        """Return the queries of the relation decoder; see `RelationQueryBuilder.build`."""
        return self.relation_builder.build(
            entities, self.verb_content.weight.expand(2 * self.num_pairs, -1), padding
        )


class PairQueries(nn.Module):
    """The queries of the R-Tagger: position from a given box, content from its label; with noise in
    training.
    """

    def __init__(self, config: RTaggerConfig) -> None:
        super().__init__()
        self.slots = config.num_pairs
        self.heads = config.num_heads
        self.box_noise = config.box_noise
        self.label_noise = config.label_noise
        self.noise_range = config.label_noise_range
        self.coord_proj = nn.Linear(4, config.hidden_dim)
        self.verb_content = nn.Embedding(config.num_queries, config.hidden_dim)
        self.reference_points = ReferencePoints(config.hidden_dim)
        self.relation_builder = RelationQueryBuilder(config)
        nn.init.xavier_uniform_(self.coord_proj.weight)
        nn.init.xavier_uniform_(self.verb_content.weight)

    def entities(
        self,
        pairs: Sequence[GivenPairs],
        labels: Tensor,
        slots: int | None = None,
        noise: Noise | None = None,
    ) -> EntityQueries:
        """Queries for the given pairs, padded to `slots` pairs per image.

        Args:
            pairs: one per image or group; on the device of the labels, or on the CPU, from where
                all is copied at once.
            labels: `[batch or 1, objects, dim]`, resized features of the object texts, "no objects"
                last.
            slots: pairs per image; default: all slots of the network. Fewer give the same results.
            noise: random numbers for the training noise, which also turns on the attention mask;
                None for no noise.

        Raises:
            ValueError: there are more pairs than slots.
        """
        slots = self.slots if slots is None else slots
        counts = [len(group) for group in pairs]
        if max(counts) > slots:
            raise ValueError(f"{max(counts)} pairs given, but there are {slots} slots")
        boxes, classes = self._noised(pairs, labels.shape[0], labels.shape[1], noise)
        labels = labels.detach().expand(len(pairs), -1, -1)
        image, slot = _places(counts, slots)
        padding = torch.ones(len(pairs), 2 * slots, dtype=torch.bool)
        padding[image, slot] = False
        padding[torch.tensor(counts) == 0, 0] = False  # attention over no keys is NaN
        boxes = send(boxes, labels.device)
        classes = send(classes, labels.device)
        image = send(image, labels.device)
        slot = send(slot, labels.device)
        padding = send(padding, labels.device)
        position = self.coord_proj(inverse_sigmoid(boxes))
        content = labels[image, classes]
        positions = position.new_zeros(len(pairs), 2 * slots, position.shape[-1])
        positions = positions.index_put((image, slot), position)
        contents = content.new_zeros(positions.shape).index_put((image, slot), content)
        mask = None
        if noise is not None and min(counts) == slots:
            mask = send(self._attention_mask(pairs), labels.device)
        return EntityQueries(contents, positions, self.reference_points(positions), padding, mask)

    def relations(self, entities: Tensor, padding: Tensor | None) -> RelationQueries:
        """Return the queries of the relation decoder; see `RelationQueryBuilder.build`."""
        return self.relation_builder.build(entities, self.verb_content.weight, padding)

    def _noised(
        self, pairs: Sequence[GivenPairs], batch: int, objects: int, noise: Noise | None
    ) -> tuple[Tensor, Tensor]:
        """Boxes and labels of all images, subjects first, with noise if given."""
        subject_boxes = torch.cat([group.subject_boxes for group in pairs])
        object_boxes = torch.cat([group.object_boxes for group in pairs])
        subject_labels = torch.cat([group.subject_labels for group in pairs])
        object_labels = torch.cat([group.object_labels for group in pairs])
        if noise is not None:
            highest = batch if self.noise_range == "batch" else max(objects - 1, 1)
            subject_boxes = perturb_boxes(subject_boxes, self.box_noise, noise)
            object_boxes = perturb_boxes(object_boxes, self.box_noise, noise)
            subject_labels = perturb_labels(subject_labels, self.label_noise, highest, noise)
            object_labels = perturb_labels(object_labels, self.label_noise, highest, noise)
        return torch.cat((subject_boxes, object_boxes)), torch.cat((subject_labels, object_labels))

    def _attention_mask(self, pairs: Sequence[GivenPairs]) -> Tensor:
        """Mask attention between slots of full images with the same box and label, which would leak
        them.
        """
        boxes = torch.stack(
            [torch.cat((group.subject_boxes, group.object_boxes)) for group in pairs]
        )
        labels = torch.stack(
            [torch.cat((group.subject_labels, group.object_labels)) for group in pairs]
        )
        is_equal = labels.unsqueeze(1) == labels.unsqueeze(2)
        is_equal &= (boxes.unsqueeze(1) == boxes.unsqueeze(2)).all(-1)
        is_equal &= ~torch.eye(is_equal.shape[-1], dtype=torch.bool, device=is_equal.device)
        return is_equal.repeat_interleave(self.heads, dim=0)


def numbered(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the image of each of all pairs, which come image by image, and its number in it."""
    images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return images, torch.cat([torch.arange(count) for count in counts])


def _places(counts: Sequence[int], slots: int) -> tuple[Tensor, Tensor]:
    """Return the image and slot of every subject, then of every object."""
    image, slot = numbered(counts)
    return image.repeat(2), torch.cat((slot, slots + slot))
