"""The tag stages: the R-Tagger or another scorer scores candidates; scores above a threshold are
relations.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from hashlib import blake2b
from heapq import nsmallest
from itertools import chain, groupby, islice
from operator import mul
from typing import Any, NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlip_model.attention import gpu_sampling
from rlip_model.backbone import ImageFeatures
from rlip_model.image import enlarge, normalise, resized, to_pixel_values, to_pixels
from rlip_model.model import RTagger
from rlip_model.queries import GivenPairs
from rlip_model.text import NO_OBJECTS, LabelFeatures, pad_labels
from sgpipe.calibration import threshold_of_recipe
from sgpipe.errors import ComputationError
from sgpipe.files.image_roots import ImageFile, ImagePlace
from sgpipe.files.model_cache import local_model
from sgpipe.recipe import PairConfig, TagConfig
from sgpipe.records import Pair, Record, Relation, deduplicate
from sgpipe.sources.vocabulary import packaged_synonyms
from sgpipe.stages.base import ImageStage
from sgpipe.stages.checkpoint import loading
from sgpipe.stages.context import StageContext
from sgpipe.stages.matching import HeadMatcher
from sgpipe.stages.score.scorer import NO_AREA
from sgpipe.stages.served.chat import Refusal
from sgpipe.stages.tag.layout.prior import LayoutPrior
from sgpipe.stages.tag.methods import candidates
from sgpipe.stages.tag.tagger import load_tagger
from sgpipe.utils.devices import pick_dtype
from sgpipe.utils.gpu import (
    GPU_THREADS,
    Compiled,
    GpuMemory,
    compile_forward,
    enough_memory,
    gpu_use,
)
from sgpipe.utils.prefetch import prefetch

# box pairs, and the distinct predicates of all of them
Group = tuple[list[tuple[int, int]], list[str]]
_REMEDY = "lower tag.chunk, or raise tag.resources.gpus so that fewer actors share the GPU"
GPU_IMAGES = 8  # of equal size that a GPU computes at once, unless tag.batch_size says how many


class Batch(NamedTuple):
    """Groups of box pairs of one image that are scored together against the same predicates."""

    groups: list[list[tuple[int, int]]]
    predicates: list[str]


def reference_groups(
    pairs: Sequence[Pair], size: int = 100, boxes: int | None = None
) -> list[Group]:
    """RLIPv2's groups, in which it is lost which pair had which predicate.

    An entry of a group is a pair with one of its predicates; with `boxes`, the number of non-crowd
    boxes, it is a prior
    candidate: a pair with all of its predicates. N entries form N // size + 1 groups, so the last
    group is empty if `size` divides N; N counts all ordered pairs of the boxes, whether or not they
    are candidates.
    """
    entries = list(pairs)
    if boxes is None:
        entries = []
        for pair in pairs:
            entries += [Pair(pair.subject, pair.object, [text]) for text in pair.predicates]
    number = len(entries) if boxes is None else boxes * (boxes - 1)
    groups: list[Group] = []
    for start in range(0, number + 1, size):
        group = entries[start : start + size]
        groups.append(([(pair.subject, pair.object) for pair in group], _predicates_of(group)))
    return groups


def _predicates_of(pairs: Iterable[Pair]) -> list[str]:
    """Return the distinct predicates of pairs, in order."""
    return list(dict.fromkeys(chain.from_iterable(pair.predicates for pair in pairs)))


def own_batches(pairs: Sequence[Pair], size: int, chunk: int) -> list[Batch]:
    """`restrict: pair`: groups of at most `size` pairs, each against the predicates of its own
    pairs.

    Groups with the same predicates share a batch, up to `chunk` of them.
    """
    by_predicates: dict[tuple[str, ...], list[list[tuple[int, int]]]] = {}
    with_predicates = [pair for pair in pairs if pair.predicates]
    for start in range(0, len(with_predicates), size):
        group = with_predicates[start : start + size]
        predicates = tuple(sorted(_predicates_of(group)))
        by_predicates.setdefault(predicates, []).append(
            [(pair.subject, pair.object) for pair in group]
        )
    batches = []
    for predicates, groups in by_predicates.items():
        for start in range(0, len(groups), chunk):
            batches.append(Batch(groups[start : start + chunk], list(predicates)))
    return batches


def reference_batches(groups: Sequence[Group], chunk: int) -> list[Batch]:
    """`restrict: group`: each `chunk` of groups against all of their predicates, as in RLIPv2.

    Groups without pairs count towards a chunk but are not scored.
    """
    batches = []
    for start in range(0, len(groups), chunk):
        part = groups[start : start + chunk]
        predicates = list(dict.fromkeys(chain.from_iterable(texts for _, texts in part)))
        if predicates:
            batches.append(Batch([pairs for pairs, _ in part if pairs], predicates))
    return batches


class TaggerInput(NamedTuple):
    """A record whose pairs are scored, and what the network reads: sorted class names, pixels, and
    texts of batches.
    """

    record: Record
    batches: list[Batch]
    classes: list[str]
    pixels: Tensor = torch.empty(0)  # once the image is opened
    texts: Sequence[LabelFeatures] = ()


Row = tuple[int, Batch, LabelFeatures]  # index of an image, and a batch of it with its texts


def text_to_read(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what a tagger reads for a class: its name or, if a small tokenizer lacks a word of it,
    a class of COCO or Objects365 that it is a synonym of."""
    classes = chain.from_iterable(matcher.classes(name) for matcher in _matchers())
    for text in (name, *classes):
        if tokenizer.unk_token_id not in tokenizer(text)["input_ids"]:
            return text
    return name


@cache
def _matchers() -> list[HeadMatcher]:
    return [HeadMatcher(packaged_synonyms(dataset)) for dataset in ("coco", "objects365")]


def _rows(inputs: Sequence[TaggerInput]) -> list[Row]:
    """Return the batches of all images, in order."""
    rows: list[Row] = []
    for image, item in enumerate(inputs):
        batches = zip(item.batches, item.texts, strict=True)
        rows += [(image, batch, texts) for batch, texts in batches]
    return rows


def normalised_boxes(record: Record) -> Tensor:
    """Normalised cxcywh `[objects, 4]`, float32."""
    boxes = torch.tensor([box.bbox for box in record.objects], dtype=torch.float64).view(-1, 4)
    boxes[:, :2] += boxes[:, 2:] / 2
    sides = torch.tensor([record.width, record.height] * 2, dtype=torch.float64)
    return (boxes / sides).float()


class TagStage(ImageStage):
    """Scores the candidate pairs of each record.

    On a CPU one image at a time, so that results do not depend on the batch; on a GPU images of
    equal size together. The scores of a pair depend on its position among the pairs. With
    `restrict: pair` these are sorted by their boxes, and each keeps its own candidates. With
    `restrict: group` they are in the order of the file, and a pair can get any predicate of its
    chunk of groups, as in RLIPv2.
    """

    name = "tag"

    def __init__(
        self,
        config: TagConfig,
        roots: Mapping[str, ImagePlace],
        object_names: Sequence[str],
        pair: PairConfig | None = None,
        seed: int = 0,
    ) -> None:
        """`object_names`: every class name of the dataset. `pair`, `seed`: of the run."""
        super().__init__(config, roots)
        self.pair = pair or PairConfig()
        self.seed = seed
        self.classes = object_names

    @classmethod
    def of(cls, context: StageContext) -> Self:
        plan = context.plan
        return cls(plan.tag, context.roots, list(context.classes), plan.pair, plan.seed)

    def check(self) -> None:
        if self.config.tagger is not None:
            with loading("tag.tagger"):
                RTagger.check(local_model(self.config.tagger, config_only=True))
            threshold_of_recipe(self.config, self.pair)

    def setup(self) -> None:
        self.threshold = threshold_of_recipe(self.config, self.pair)
        self.set_up_device()
        self.dtype = pick_dtype(self.config.dtype, self.device)
        with loading("tag.tagger"):
            self.tagger = RTagger.from_pretrained(local_model(str(self.config.tagger))).eval()
        nn.Module.to(self.tagger, self.device)
        self.tagger.prepare_inference(self.dtype)
        self.texts = {name: text_to_read(name, self.tagger.tokenizer) for name in self.classes}
        # their order decides the last bits of scores
        self.object_names = sorted(set(self.texts.values()))
        self.group_size = min(self.config.group_size, self.tagger.config.num_pairs)
        elsewhere = self.device.type != "cpu"
        self.gpu_threads = GPU_THREADS if elsewhere else 0
        batch_size = (self.config.batch_size or GPU_IMAGES) if elsewhere else 1
        self.memory = GpuMemory(self.device, _REMEDY, max(self.gpu_threads, 1), batch_size)
        on_gpu = self.device.type == "cuda"
        self.compiled: list[Compiled] = []
        if on_gpu and self.config.compile:
            self.compiled = [
                compile_forward(self.tagger.image_encoder),
                compile_forward(*self.tagger.encoder.layers),
            ]
        with enough_memory(self.device, _REMEDY):  # for the test of an operator
            self.attention = (
                str(gpu_sampling(next(self.tagger.parameters()).device)) if on_gpu else ""
            )

    def gpu_use(self) -> dict[str, Any]:
        return gpu_use(self.device, *self.compiled, dtype=self.dtype, attention=self.attention)

    def __call__(self, records: list[Record]) -> list[Record]:
        chosen = self._choose(records)
        classes = set[str]().union(*(source.classes for source in chosen))
        pairs = chain.from_iterable(source.record.pairs for source in chosen)
        self.tagger.encode_texts([*sorted(classes), NO_OBJECTS, *_predicates_of(pairs)])
        with prefetch(
            self._compute, self._inputs(chosen), self.gpu_threads, self.gpu_threads + 1
        ) as computed:
            for source, scores in chain.from_iterable(computed):
                source.record.relations += self._relations(source, scores)
        return records

    def _choose(self, records: Sequence[Record]) -> list[TaggerInput]:
        """Return the records to score, and with what; those of equal batch key in sequence if they
        go together.
        """
        chosen = []
        for record in [record for record in records if record.ok]:
            batches = self._batches(record)
            free_nouns = {box.category for box in record.objects}.difference(self.texts)
            for noun in free_nouns:  # no class that other images read
                self.texts[noun] = text_to_read(noun, self.tagger.tokenizer)
            if batches:
                chosen.append(TaggerInput(record, batches, self._classes(record)))
        return sorted(chosen, key=self._batch_key) if self.memory.batch_size > 1 else chosen

    def _classes(self, record: Record) -> list[str]:
        """Return the class names that the network reads with this image, sorted. They depend on no
        other image.
        """
        names = {self.texts[box.category] for box in record.objects}
        if self.config.vocabulary == "dataset":
            return sorted(names.union(self.object_names))
        key = f"{self.seed}\0{record.image_id}\0"
        sample = nsmallest(
            self.config.vocabulary_others,
            set(self.object_names).difference(names),
            lambda name: blake2b((key + name).encode()).digest(),
        )
        return sorted(names.union(sample))

    def _batch_key(self, source: TaggerInput) -> tuple[tuple[int, int], int]:
        """Return the size of an image, and how many class names the network reads; equal for images
        of a batch.
        """
        return self._size(source.record), len(source.classes)

    def _size(self, record: Record) -> tuple[int, int]:
        """Return the (width, height) that the network reads."""
        return resized(record.width, record.height, self.config.short_side, self.config.long_side)

    def _inputs(self, chosen: Sequence[TaggerInput]) -> Iterator[list[TaggerInput]]:
        """At most `memory.batch_size` images of equal batch key at a time. Unreadable ones become
        error rows.
        """
        by_record = {id(source.record): source for source in chosen}
        opened = self.opened(
            [source.record for source in chosen], self._network_input, self.memory.batch_size
        )
        ready = (by_record[id(record)]._replace(pixels=pixels) for record, pixels in opened)
        for _, of_key in groupby(ready, self._batch_key):
            while batch := list(islice(of_key, self.memory.batch_size)):
                yield [self._with_texts(source) for source in batch]

    def _with_texts(self, source: TaggerInput) -> TaggerInput:
        """Return what the network reads of an image, with the texts of its batches."""
        classes = [*source.classes, NO_OBJECTS]
        predicates = [batch.predicates for batch in source.batches]
        return source._replace(
            texts=[self.tagger.encode_labels(classes, names) for names in predicates]
        )

    def _network_input(self, image: Image.Image, file: ImageFile) -> Tensor:
        """Return what is copied to the device: normalised pixels; for a GPU bytes, which it
        enlarges and normalises.
        """
        sides = (self.config.short_side, self.config.long_side)
        if self.device.type == "cpu":
            return to_pixel_values(image, *sides)
        pixels = to_pixels(image, resized(*image.size, *sides))
        return pixels.pin_memory() if self.device.type == "cuda" else pixels

    def _batches(self, record: Record) -> list[Batch]:
        if self.pair.restrict == "pair":
            ranks = [box.rank for box in record.objects]
            pairs = sorted(record.pairs, key=lambda pair: (ranks[pair.subject], ranks[pair.object]))
            return own_batches(pairs, self.group_size, self.config.chunk)
        of_classes = self.pair.candidates in ("image", "prior")
        boxes = sum(not box.iscrowd for box in record.objects) if of_classes else None
        return reference_batches(
            reference_groups(record.pairs, self.group_size, boxes), self.config.chunk
        )

    def _compute(self, inputs: list[TaggerInput]) -> list[tuple[TaggerInput, list[Tensor]]]:
        return list(zip(inputs, self.memory.compute(self._score_images, inputs), strict=True))

    @torch.no_grad()
    def _score_images(self, inputs: Sequence[TaggerInput]) -> list[list[Tensor]]:
        """For each input the scores `[groups, pairs, predicates]` of its batches, float32 on the
        CPU.
        """
        half = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype) if half else nullcontext():
            images = self.tagger.encode_image(self._stack_pixels(inputs))
            objects = [self._boxes_and_labels(item) for item in inputs]
            rows = _rows(inputs)
            # for which the memory suffices
            rows_at_once = len(inputs)
            scores: list[Tensor] = []
            for start in range(0, len(rows), rows_at_once):
                scores.append(self._score(images, objects, rows[start : start + rows_at_once]))
        # groups come in the order of the rows
        by_group = chain.from_iterable(self._on_cpu(scores))
        by_image: list[list[Tensor]] = [[] for _ in inputs]
        for image, batch, _ in rows:
            of_batch = torch.stack(list(islice(by_group, len(batch.groups))))
            by_image[image].append(of_batch[:, :, : len(batch.predicates)])
        return by_image

    def _stack_pixels(self, inputs: Sequence[TaggerInput]) -> Tensor:
        """Return the normalised pixels of images of equal size, on the device."""
        pixels = [item.pixels.to(self.device, non_blocking=True) for item in inputs]
        if pixels[0].dtype == torch.uint8:
            size = self._size(inputs[0].record)
            pixels = [enlarge(image, size) for image in pixels]
        stacked = torch.stack(pixels) if len(inputs) > 1 else pixels[0].unsqueeze(0)
        return normalise(stacked) if stacked.dtype == torch.uint8 else stacked

    def _boxes_and_labels(self, item: TaggerInput) -> tuple[Tensor, Tensor]:
        """Return the normalised boxes of an image and the indices of their class names."""
        names = [self.texts[box.category] for box in item.record.objects]
        labels = [bisect_left(item.classes, name) for name in names]
        return normalised_boxes(item.record), torch.tensor(labels)

    def _score(
        self, images: ImageFeatures, objects: Sequence[tuple[Tensor, Tensor]], rows: Sequence[Row]
    ) -> Tensor:
        """Return the scores `[groups, pairs, predicates]` of all groups of the rows, in order."""
        texts = pad_labels([texts for _, _, texts in rows])
        memory = self.tagger.fuse(images.of([image for image, _, _ in rows]), texts)
        groups: list[GivenPairs] = []
        owners: list[int] = []
        for number, (image, batch, _) in enumerate(rows):
            groups += [given_pairs(*objects[image], group) for group in batch.groups]
            owners += [number] * len(batch.groups)
        return self.tagger.score_pairs(memory, groups, owners if len(rows) > 1 else None).float()

    def _on_cpu(self, scores: list[Tensor]) -> list[Tensor]:
        """Return the scores on the CPU; from a GPU in one copy, as the host waits for it."""
        if self.device.type == "cpu":
            return scores
        flat = torch.cat([part.flatten() for part in scores]).cpu()
        copied = flat.split([part.numel() for part in scores])
        return [values.view_as(part) for values, part in zip(copied, scores, strict=True)]

    def _relations(self, source: TaggerInput, scores: Sequence[Tensor]) -> list[Relation]:
        """Return every pair and predicate with at least the score of the threshold."""
        relations: list[Relation] = []
        for batch, of_batch in zip(source.batches, scores, strict=True):
            if not bool(of_batch.isfinite().all()):  # a threshold would silently drop NaN
                raise ComputationError(
                    f"tagger {self.config.tagger} returns NaN scores in"
                    f" {source.record.file_name!r}: its training diverged, or its weights are"
                    " damaged"
                )
            for group, of_group in zip(batch.groups, of_batch, strict=True):
                relations += self._above_threshold(group, batch.predicates, of_group[: len(group)])
        if self.pair.restrict == "pair":
            relations = _of_candidates(relations, source.record.pairs)
        return deduplicate(relations)

    def _above_threshold(
        self, pairs: Sequence[tuple[int, int]], predicates: Sequence[str], scores: Tensor
    ) -> Iterator[Relation]:
        """Yield the relations of a group with at least the score `[pairs, predicates]` of the
        threshold.
        """
        is_above = (scores >= self.threshold) & (scores > 0)
        for row, column in is_above.nonzero().tolist():
            subject, object_ = pairs[row]
            confidence = float(scores[row, column])
            yield Relation(subject, object_, predicates[column], confidence, "tagger")


def _of_candidates(relations: Iterable[Relation], pairs: list[Pair]) -> list[Relation]:
    """Return the relations whose pair has their predicate as a candidate, sorted by pair."""
    asked = {
        (candidate.subject, candidate.object, candidate.predicate)
        for candidate in candidates(pairs, None, "tagger")
    }
    chosen = []
    for relation in relations:
        if (relation.subject, relation.object, relation.predicate) in asked:
            chosen.append(relation)
    return sorted(chosen, key=lambda relation: (relation.subject, relation.object))


def given_pairs(boxes: Tensor, labels: Tensor, pairs: Sequence[tuple[int, int]]) -> GivenPairs:
    """Return the boxes `[objects, 4]` and labels `[objects]` of pairs of indices."""
    indices = torch.tensor(pairs, dtype=torch.long).view(-1, 2)
    subjects, objects = indices.unbind(1)
    return GivenPairs(boxes[subjects], boxes[objects], labels[subjects], labels[objects])


class ScoredStage(ImageStage):
    """Keeps the candidates that a `Tagger` finds more probable than the threshold; that is their
    confidence.

    A candidate with a box that has no area in the image is not a relation. With `tag.prior`, the
    scores of pairs that are unlikely to interact, by the layout model, are lower.
    """

    name = "tag"

    def __init__(
        self, config: TagConfig, roots: Mapping[str, ImagePlace], pair: PairConfig | None = None
    ) -> None:
        super().__init__(config, roots)
        self.pair = pair or PairConfig()
        self.streams = config.streams

    @classmethod
    def of(cls, context: StageContext) -> Self:
        return cls(context.plan.tag, context.roots, context.plan.pair)

    def check(self) -> None:
        threshold_of_recipe(self.config, self.pair)
        load_tagger(self.config, self.cache_folder).check()

    def setup(self) -> None:
        self.threshold = threshold_of_recipe(self.config, self.pair)
        self.tagger = load_tagger(self.config, self.cache_folder)
        self.prior = LayoutPrior(self.config.prior_power) if self.config.prior == "layout" else None
        self.set_up_device(here=self.config.endpoint is None)
        self.tagger.setup()

    def __call__(self, records: list[Record]) -> list[Record]:
        open_: deque[tuple[Record, list[Relation]]] = deque()
        for scores in self.tagger.score_images(self._to_score(records, open_)):
            self._add(*open_.popleft(), scores)
        return records

    def _to_score(
        self, records: Iterable[Record], open_: deque[tuple[Record, list[Relation]]]
    ) -> Iterator[tuple[Image.Image, Record, list[Relation]]]:
        """Yield each image with candidates, noted in `open_`; images are opened on demand."""
        asked = [record for record in records if any(pair.predicates for pair in record.pairs)]
        for record, image in self.opened(asked):
            relations = candidates(record.pairs, None, self.tagger.origin)
            open_.append((record, relations))
            yield image, record, relations

    def _add(
        self, record: Record, relations: list[Relation], scores: Sequence[float | Refusal]
    ) -> None:
        """Add the relations of enough confidence to a record."""
        refusals = [score for score in scores if isinstance(score, Refusal)]
        reasons = [refusal.reason for refusal in refusals if refusal is not NO_AREA]
        if reasons:
            record.fail(self.name, reasons[0])
        else:
            record.relations += deduplicate(self._above_threshold(record, relations, scores))

    def _above_threshold(
        self, record: Record, relations: list[Relation], scores: Iterable[float | Refusal]
    ) -> list[Relation]:
        """Return the relations of enough confidence, which is set."""
        confidences = [0.0 if isinstance(score, Refusal) else score for score in scores]
        if self.prior is not None:
            confidences = list(map(mul, confidences, self.prior.factors(record)))
        rounded = torch.tensor(confidences, dtype=torch.float32).tolist()  # as shards store it
        chosen = []
        for relation, confidence in zip(relations, rounded, strict=True):
            relation.confidence = confidence
            if confidence >= self.threshold and confidence > 0:
                chosen.append(relation)
        return chosen
