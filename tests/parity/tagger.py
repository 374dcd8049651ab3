"""Checks of what only the R-Tagger has: the query builder with its noise, and the generated
annotations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlip_model.encoder import Memory
from rlip_model.model import RLIPModel, RTagger
from rlip_model.queries import EntityQueries, GivenPairs, PairQueries
from rlip_model.text import NO_OBJECTS, load_tokenizer
from sgpipe.records import Relation
from sgpipe.sources.vocabulary import category_names
from sgpipe.stages.tag.stage import Group, given_pairs, reference_batches
from tests.parity.forward import layer_outputs
from tests.parity.golden import Golden, Report
from tests.values import values_of

FIRST_ID = 10_000_000


class RecordedNoise:
    """The random numbers that the reference drew, in their order."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self.draws = list(draws)

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        draw = self.draws.pop(0)
        assert draw.shape == torch.Size(shape)
        return draw.to(device)

    def integers(self, high: int, count: int, device: torch.device) -> Tensor:
        draw = self.draws.pop(0)
        assert len(draw) == count
        assert count == 0 or int(draw.max()) < high
        return draw.to(device)


class NoNoise:
    """Training without any change: every draw is in the middle."""

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        return torch.full(tuple(shape), 0.5, device=device)

    def integers(self, high: int, count: int, device: torch.device) -> Tensor:
        raise AssertionError("no label is replaced")


@torch.no_grad()
def check_queries(model: RLIPModel, golden: Golden, report: Report) -> None:
    """prepare_query.safetensors: a training call with recorded noise, full images, and an
    evaluation call.
    """
    expected = golden.tensors("prepare_query.safetensors")
    if not expected or not isinstance(model, RTagger):
        return
    builder = model.queries
    labels = expected["label_embeds"]
    drawn = sorted(key for key in expected if key.startswith("draw"))
    noise = RecordedNoise([expected[key] for key in drawn])
    builder.box_noise = 0.6
    builder.label_noise = 0.3
    builder.noise_range = "batch"
    pairs = golden.pairs("targets.", expected)
    trained = builder.entities(pairs, labels, noise=noise)
    report.require("queries", "every recorded draw is used", not noise.draws)
    compare_queries(report, "training", trained, expected, "")
    compare_noised_boxes(report, builder, trained, expected)

    compare_queries(report, "evaluation", builder.entities(pairs, labels), expected, "eval.")
    full = golden.pairs("full.targets.", expected)
    builder.label_noise = 0.0
    compare_queries(
        report, "full images", builder.entities(full, labels, noise=NoNoise()), expected, "full."
    )
    builder.box_noise = model.config.box_noise
    builder.label_noise = model.config.label_noise
    builder.noise_range = model.config.label_noise_range


def compare_queries(
    report: Report, name: str, queries: EntityQueries, expected: dict[str, Tensor], prefix: str
) -> None:
    assert queries.positions is not None
    assert queries.padding is not None
    query = torch.cat((queries.positions, queries.content), dim=-1)
    report.compare("queries", f"{name} query", query, expected[f"{prefix}query"])
    report.compare(
        "queries", f"{name} padding", queries.padding, expected[f"{prefix}key_padding_mask"]
    )
    if f"{prefix}attn_mask" in expected:
        reference = expected[f"{prefix}attn_mask"]
        mask = (
            torch.zeros_like(reference)
            if queries.attention_mask is None
            else queries.attention_mask
        )
        report.compare("queries", f"{name} attention mask", mask, reference)


def compare_noised_boxes(
    report: Report, builder: PairQueries, queries: EntityQueries, expected: dict[str, Tensor]
) -> None:
    """The position vectors are projections of the noised boxes, whose logits the reference
    recorded.
    """
    assert queries.positions is not None
    assert queries.padding is not None
    subjects, objects = queries.positions.chunk(2, dim=1)
    used = ~queries.padding.chunk(2, dim=1)[0]
    for role, positions, key in (
        ("subject", subjects, "box_embed_in0"),
        ("object", objects, "box_embed_in1"),
    ):
        report.compare(
            "queries",
            f"noised {role} positions",
            positions[used],
            builder.coord_proj(expected[key]),
        )


@dataclass(frozen=True)
class TaggedImage:
    """The image that annotations were generated for."""

    content: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def names(self) -> list[str]:
        return [category_names("coco")[number] for number in self.content["gt_coco_category_ids"]]

    @property
    def labels(self) -> Tensor:
        return torch.tensor([self.content["object_texts"].index(name) for name in self.names])

    def pairs(self, indices: Sequence[tuple[int, int]]) -> GivenPairs:
        return given_pairs(self.tensors["gt_boxes"], self.labels, indices)

    def fuse(self, model: RTagger, predicates: Sequence[str]) -> Memory:
        image = model.encode_image(self.tensors["image"], self.tensors["mask"])
        return model.fuse(
            image, model.encode_labels([*self.content["object_texts"], NO_OBJECTS], predicates)
        )


@dataclass(frozen=True)
class Case:
    """One generation run: candidate groups, groups per chunk, threshold, and what came out."""

    name: str
    groups: list[Group]
    chunk: int
    threshold: float
    annotation: dict[str, Any]


@torch.no_grad()
def check_generation(model: RLIPModel, golden: Golden, report: Report) -> None:
    """generation.json: the annotation lists for every chunk size, and the raw predictions of every
    chunk.
    """
    path = golden.folder / "generation.json"
    if not path.is_file() or not isinstance(model, RTagger):
        return
    content = json.loads(path.read_text())
    tagged = TaggedImage(content, golden.tensors("generation.safetensors"))
    model.set_tokenizer(load_tokenizer(golden.folder.parent.parent / "roberta_small"))
    for name, raw in content["cases"].items():
        groups = [
            ([(s, o) for s, o in pairs], texts) for pairs, texts in raw["relation_candidates"]
        ]
        chunk = raw["img_inference_batch"]
        threshold = raw["relation_threshold"]
        case = Case(name, groups, chunk, threshold, raw["annotation"][0])
        check_relations(report, case, generate(model, case, tagged))
        check_objects(report, case, tagged)
        check_chunks(model, report, case, tagged)


def generate(model: RTagger, case: Case, tagged: TaggedImage) -> list[Relation]:
    """The relations of the image, in the batches of the tag stage."""
    relations: list[Relation] = []
    for batch in reference_batches(case.groups, case.chunk):
        memory = tagged.fuse(model, batch.predicates)
        scores = model.score_pairs(memory, list(map(tagged.pairs, batch.groups)))
        for group, of_group in zip(batch.groups, scores, strict=True):
            for row, column in (of_group[: len(group)] > case.threshold).nonzero().tolist():
                relations.append(
                    Relation(*group[row], batch.predicates[column], float(of_group[row, column]))
                )
    return relations


def check_relations(report: Report, case: Case, relations: list[Relation]) -> None:
    """Same relations in the same order with running ids; confidences as close as logits."""
    expected = case.annotation["relationships"]
    keys = ("relationship_id", "predicate", "subject_id", "object_id")
    ours = [
        (
            FIRST_ID + index,
            relation.predicate,
            FIRST_ID + relation.subject,
            FIRST_ID + relation.object,
        )
        for index, relation in enumerate(relations)
    ]
    reference = [tuple(item[key] for key in keys) for item in expected]
    are_equal = ours == reference
    report.require("generation", f"{case.name}: {len(reference)} relations in order", are_equal)
    if are_equal:
        confidences = torch.tensor(values_of(relations, "confidence"))
        wanted = torch.tensor(values_of(expected, "confidence"))
        report.compare("generation", f"{case.name}: confidence", confidences, wanted)


def check_objects(report: Report, case: Case, tagged: TaggedImage) -> None:
    """Boxes (xywh, pixels), names and running ids."""
    objects = case.annotation["objects"]
    height, width = tagged.content["orig_size_hw"]
    boxes = tagged.tensors["gt_boxes"] * torch.tensor([width, height, width, height])
    corners = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]), dim=1)
    wanted = torch.tensor([[item[key] for key in "xywh"] for item in objects])
    report.compare("generation", f"{case.name}: objects", corners, wanted)
    listed = values_of(objects, "object_id", "names")
    ours = [(FIRST_ID + index, name) for index, name in enumerate(tagged.names)]
    report.require("generation", f"{case.name}: object ids and names", listed == ours)


def check_chunks(model: RTagger, report: Report, case: Case, tagged: TaggedImage) -> None:
    """All predictions of every chunk, in all slots of the network."""
    for index, start in enumerate(range(0, len(case.groups), case.chunk)):
        part = case.groups[start : start + case.chunk]
        memory = tagged.fuse(
            model, list(dict.fromkeys(text for _, texts in part for text in texts))
        )
        pairs = [tagged.pairs(group) for group, _ in part]
        queries = model.queries.entities(pairs, model.object_labels(memory))
        entities, relations = model.decode(queries, memory)
        final = model.read_out(entities, relations, memory).final
        for key, value in layer_outputs(f"{case.name}.chunk{index}.", final).items():
            report.compare("generation", key, value, tagged.tensors[key])
