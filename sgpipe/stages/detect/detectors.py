"""Object detectors: an image in, boxes with classes out. Those of transformers, and this project's own networks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_OBJECT_DETECTION_MAPPING,
    MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedModel,
)

from rlip_model.boxes import to_corners
from rlip_model.image import to_pixel_values
from rlip_model.model import TripletDetector
from rlip_model.text import NO_OBJECTS
from sgpipe.errors import UserError
from sgpipe.recipe import DetectConfig
from sgpipe.sources.vocabulary import category_names
from sgpipe.stages.detect.trained_networks import load_detector, trained_sides

_OWN = ("rlip_parseda", "rlip_parsed")
_BY_NUMBER, _BY_PHRASE = ("owlvit", "owlv2"), ("grounding-dino", "mm-grounding-dino")  # what zero-shot detectors answer
_ANY_PREDICATE = ("next to",)  # boxes hardly depend on it
_NO_CLASS = "N/A"  # numbers that COCO leaves out


@dataclass(frozen=True)
class Found:
    """Boxes `[boxes, 4]` xyxy in pixels, scores `[boxes]`, and labels `[boxes]`, which count the detector's classes."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Detector(Protocol):
    """A loaded detector."""

    def __call__(self, image: Image.Image, threshold: float) -> Found:
        """What it finds with a score above the threshold."""
        ...


def detector_classes(config: DetectConfig) -> tuple[str, ...]:
    """What a detector can find, told without loading its weights. Raises UserError: it is no detector."""
    asked = config.classes or tuple(category_names("coco").values())
    if _is_own(config.detector):
        return asked
    settings = _settings(config.detector)
    if type(settings) in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING:
        return asked
    if config.classes is not None:
        raise UserError(f"detect.classes: {config.detector} has classes of its own; leave them out")
    return _names(settings)


def load(config: DetectConfig, device: torch.device) -> Detector:
    """Raises UserError: there is none of that name, or it is no detector."""
    classes = detector_classes(config)
    name = str(config.detector)
    if _is_own(name):
        return OwnDetector(load_detector(Path(name)), classes, trained_sides(Path(name)), device)
    settings = _settings(name)
    try:
        if type(settings) in MODEL_FOR_OBJECT_DETECTION_MAPPING:
            closed = AutoModelForObjectDetection.from_pretrained(name, dtype=torch.float32)
            return ClosedDetector(closed, AutoImageProcessor.from_pretrained(name), device)
        zero_shot = AutoModelForZeroShotObjectDetection.from_pretrained(name, dtype=torch.float32)
        return ZeroShotDetector(zero_shot, AutoProcessor.from_pretrained(name), classes, device)
    except (OSError, ValueError, ImportError) as reason:
        raise UserError(f"detector {name} cannot be loaded: {str(reason).strip().splitlines()[0]}") from None


class ClosedDetector:
    """A detector with classes of its own, such as DETR."""

    def __init__(self, model: PreTrainedModel, processor: Any, device: torch.device) -> None:
        self._model, self._processor, self._device = model.eval(), processor, device
        nn.Module.to(model, device)
        self._known = torch.tensor([name != _NO_CLASS for name in _names(model.config)])

    @torch.no_grad()
    def __call__(self, image: Image.Image, threshold: float) -> Found:
        inputs = self._processor(images=image, return_tensors="pt").to(self._device)
        output = self._model(**inputs)
        size = [(image.height, image.width)]
        [found] = self._processor.post_process_object_detection(output, threshold=threshold, target_sizes=size)
        return _kept(found, labels := found["labels"].cpu(), self._known[labels])


class ZeroShotDetector:
    """A detector that is told the classes as texts, such as OWLv2 or Grounding DINO."""

    def __init__(self, model: PreTrainedModel, processor: Any, classes: Sequence[str], device: torch.device) -> None:
        """Raises UserError: it is of a kind that sgpipe cannot ask."""
        self._kind = model.config.model_type
        if self._kind not in (*_BY_NUMBER, *_BY_PHRASE):
            known = ", ".join((*_BY_NUMBER, *_BY_PHRASE))
            raise UserError(f"zero-shot detectors of type {self._kind!r} are not supported, but {known}")
        self._model, self._processor, self._device = model.eval(), processor, device
        nn.Module.to(model, device)
        self._classes = list(classes)

    @torch.no_grad()
    def __call__(self, image: Image.Image, threshold: float) -> Found:
        texts = [self._classes]
        inputs = self._processor(text=texts, images=image, return_tensors="pt").to(self._device)
        output = self._model(**inputs)
        size = [(image.height, image.width)]
        process = self._processor.post_process_grounded_object_detection
        if self._kind in _BY_NUMBER:
            [found] = process(output, threshold=threshold, target_sizes=size)
            labels = found["labels"].cpu()
        else:
            ids = inputs["input_ids"]
            [found] = process(output, ids, threshold=threshold, text_threshold=threshold, target_sizes=size)
            labels = torch.tensor([self._named(phrase) for phrase in found["text_labels"]], dtype=torch.long)
        return _kept(found, labels, labels >= 0)

    def _named(self, phrase: str) -> int:
        """The class that a phrase is, or the only one that it is a part of ("dining" of "dining table"); else -1."""
        if phrase in self._classes:
            return self._classes.index(phrase)
        parts = [place for place, name in enumerate(self._classes) if f" {phrase} " in f" {name} "]
        return parts[0] if phrase and len(parts) == 1 else -1


class OwnDetector:
    """The subjects and objects that a ParSeDA or ParSeD finds."""

    def __init__(
        self, model: TripletDetector, classes: Sequence[str], sides: tuple[int, int], device: torch.device
    ) -> None:
        self._model, self._sides, self._device = model, sides, device
        nn.Module.to(model, device)
        with torch.no_grad():
            self._labels = model.encode_labels([*classes, NO_OBJECTS], _ANY_PREDICATE)

    @torch.no_grad()
    def __call__(self, image: Image.Image, threshold: float) -> Found:
        pixels = to_pixel_values(image, *self._sides).unsqueeze(0).to(self._device)
        nowhere = torch.zeros(1, *pixels.shape[2:], dtype=torch.bool, device=self._device)
        output = self._model(pixels, nowhere, self._labels).final
        ends = [(output.object_boxes, output.object_logits)]
        if output.subject_logits is not None:
            ends.append((output.subject_boxes, output.subject_logits))
        boxes, logits = (torch.cat([end[part][0] for end in ends]).float().cpu() for part in (0, 1))
        best = logits.softmax(-1)[:, :-1].max(-1)  # "no objects" is the last class
        found = best.values > threshold
        sides = torch.tensor([image.width, image.height] * 2)
        return Found((to_corners(boxes) * sides)[found], best.values[found], best.indices[found])


def _names(settings: PretrainedConfig) -> tuple[str, ...]:
    """Classes in the order of their numbers, which count from 0."""
    return tuple(name for _, name in sorted((settings.id2label or {}).items()))


def _kept(found: Mapping[str, Tensor], labels: Tensor, kept: Tensor) -> Found:
    return Found(found["boxes"].cpu()[kept], found["scores"].cpu()[kept], labels[kept])


def _is_own(name: str | None) -> bool:
    """Whether it is a folder of a ParSeDA or ParSeD, or of its training."""
    try:
        settings = json.loads((Path(str(name)) / "config.json").read_text(encoding="utf-8"))
        return isinstance(settings, dict) and settings.get("model_type") in _OWN
    except (OSError, ValueError):
        return False


def _settings(name: str | None) -> PretrainedConfig:
    try:
        settings = AutoConfig.from_pretrained(str(name))
    except (OSError, ValueError) as reason:
        raise UserError(f"no detector at {name}: {str(reason).strip().splitlines()[0]}") from None
    mappings = (MODEL_FOR_OBJECT_DETECTION_MAPPING, MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING)
    if not any(type(settings) in mapping for mapping in mappings):
        raise UserError(f"{name} is no object detector: its model_type is {settings.model_type!r}")
    return settings
