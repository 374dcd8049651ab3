"""Agreement of images with what is said about them, by CLIP: a second opinion that the tagger has no part in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sgpipe.errors import UserError
from sgpipe.records import Box, Record, Relation
from sgpipe.utils.devices import pick_device

_TEXTS = 256  # at once


@dataclass(frozen=True)
class Agreement:
    """How well a relation fits its image.

    Attributes:
        score: cosine of the image of both boxes and "a SUBJECT PREDICATE OBJECT".
        swapped: the same with subject and object exchanged; None where that says the same.
        rank: 1 plus the contrast texts that fit better: the swapped one, and those with other predicates.
        contrasts: how many contrast texts there were.
    """

    score: float
    swapped: float | None
    rank: int
    contrasts: int


class ClipAgreement:
    """An open_clip model that scores relations.

    Args:
        model: a name that open_clip knows, or a folder with open_clip_config.json and its weights.
        weights: of a named model: a file, or a tag that open_clip knows.
        predicates: from which contrast texts are made.

    Raises UserError: open_clip is not installed, or the model cannot be loaded.
    """

    def __init__(self, model: str, weights: str | None, predicates: Sequence[str], device: str = "auto") -> None:
        self._device = pick_device(device)
        self._model, self._preprocess, self._tokenize = _load(model, weights, self._device)
        self._predicates = list(predicates)
        self._texts: dict[str, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, record: Record, image: Image.Image) -> list[Agreement | None]:
        """The agreement of each relation of the record, in its order; None where a box has no area in the image."""
        crops = {(r.subject, r.object): _union(image, record.objects, r) for r in record.relations}
        there = {pair: crop for pair, crop in crops.items() if crop is not None}
        if not there:
            return [None] * len(record.relations)
        texts = [self._sayings(record, relation) for relation in record.relations]
        self._read({text for sayings in texts for text in sayings})
        images = torch.stack([self._preprocess(crop) for crop in there.values()]).to(self._device)
        seen = dict(zip(there, self._model.encode_image(images, normalize=True).float().cpu(), strict=True))
        return [
            self._judge(seen[pair], sayings, _turns(record, r)) if (pair := (r.subject, r.object)) in seen else None
            for r, sayings in zip(record.relations, texts, strict=True)
        ]

    def _sayings(self, record: Record, relation: Relation) -> list[str]:
        """What is said, the same with the roles swapped where that differs, and with other predicates."""
        subject, object_ = record.objects[relation.subject], record.objects[relation.object]
        ends = (relation.subject, relation.object)
        same_pair = {r.predicate for r in record.relations if (r.subject, r.object) == ends}
        others = [predicate for predicate in self._predicates if predicate not in same_pair]
        said = [_say(subject, relation.predicate, object_)]
        if _turns(record, relation):
            said.append(_say(object_, relation.predicate, subject))
        return said + [_say(subject, predicate, object_) for predicate in others]

    def _judge(self, seen: Tensor, sayings: list[str], turns: bool) -> Agreement:
        scores = torch.stack([self._texts[text] for text in sayings]) @ seen
        rank = 1 + int((scores[1:] > scores[0]).sum())
        return Agreement(float(scores[0]), float(scores[1]) if turns else None, rank, len(sayings) - 1)

    def _read(self, texts: set[str]) -> None:
        new = sorted(texts - self._texts.keys())
        for start in range(0, len(new), _TEXTS):
            part = new[start : start + _TEXTS]
            features = self._model.encode_text(self._tokenize(part).to(self._device), normalize=True).float().cpu()
            self._texts.update(zip(part, features, strict=True))


def _load(model: str, weights: str | None, device: torch.device) -> tuple[Any, Any, Any]:
    try:
        import open_clip
    except ImportError:
        raise UserError("scoring needs open_clip: pip install 'sgpipe[clip]'") from None
    if Path(model).is_dir():
        model = f"local-dir:{model}"
    elif weights is None and not model.startswith("hf-hub:"):
        raise UserError(f"--model {model}: give its --weights, or a folder with open_clip_config.json")
    try:
        network, _, preprocess = open_clip.create_model_and_transforms(model, pretrained=weights, device=device)
        return network.eval(), preprocess, open_clip.get_tokenizer(model)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise UserError(f"CLIP model {model} cannot be loaded ({str(error).splitlines()[0]})") from None


def _turns(record: Record, relation: Relation) -> bool:
    """Whether swapped roles say something else."""
    subject, object_ = record.objects[relation.subject], record.objects[relation.object]
    return not object_.is_nothing and subject.category != object_.category


def _say(subject: Box, predicate: str, object_: Box) -> str:
    last = "" if object_.is_nothing else f" {_article(object_.category)}"
    return f"{_article(subject.category)} {predicate}{last}"


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _union(image: Image.Image, objects: Sequence[Box], relation: Relation) -> Image.Image | None:
    """The part of the image that both boxes lie in."""
    boxes = [objects[end].bbox for end in (relation.subject, relation.object) if not objects[end].is_nothing]
    left, top = (int(min(box[axis] for box in boxes)) for axis in (0, 1))
    right, bottom = (round(max(box[axis] + box[axis + 2] for box in boxes)) for axis in (0, 1))
    corners = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    if corners[2] - corners[0] < 1 or corners[3] - corners[1] < 1:
        return None
    return image.crop(corners)
