"""Object detectors, an image in and boxes out: those of transformers, and trained ParSeDAs and ParSeDs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
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
from rlip_model.model import ParSeD, ParSeDA, TripletDetector
from rlip_model.pretrained import CheckpointError
from rlip_model.text import NO_OBJECTS, TokenizerError
from sgpipe.errors import UserError
from sgpipe.files.locations import Location, text_of
from sgpipe.files.model_cache import local_model
from sgpipe.recipe import DetectConfig, network_folder
from sgpipe.sources.vocabulary import category_names

_KINDS: dict[str, type[TripletDetector]] = {"rlip_parseda": ParSeDA, "rlip_parsed": ParSeD}
_DEFAULT_SIDES = (800, 1333)


def load_detector(model: Location) -> TripletDetector:
    """Load a ParSeDA or ParSeD from its folder or store, or the best checkpoint from the folder of a training.

    Raises UserError: there is no such network. Raises EngineError: the store cannot be reached.
    """
    folder = network_folder(_local(model))
    if not folder.exists():  # otherwise the name would be looked up on the hub
        raise UserError(f"no such folder: {model}; expected the folder of a trained network")
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind == "rlip_tagger":
        raise UserError(f"{model} is an R-Tagger, which needs boxes: use it as tag.tagger (--tagger)")
    try:
        return _KINDS.get(str(kind), ParSeDA).from_pretrained(folder).eval()
    except (CheckpointError, TokenizerError) as reason:
        raise UserError(str(reason)) from None


def trained_sides(model: Location) -> tuple[int, int]:
    """Short and long side in pixels of the images in validation; 800 and 1333 if the recipe is missing."""
    checkpoint = network_folder(local := _local(model)).resolve()
    for folder in (checkpoint, *checkpoint.parents[:2], local):
        try:
            data = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["data"]
            return int(data["short_side"]), int(data["long_side"])
        except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
            continue
    return _DEFAULT_SIDES


def _local(model: Location) -> Path:
    return Path(local_model(text_of(model)))


_RLIP_MODEL_TYPES = ("rlip_parseda", "rlip_parsed")
# Zero-shot detectors that return the index of a class, and those that return a phrase of the prompt.
_RETURN_INDEX, _RETURN_PHRASE = ("owlvit", "owlv2"), ("grounding-dino", "mm-grounding-dino")
_DETECTION_PREDICATE = ("next to",)  # the network needs a predicate; boxes hardly depend on which
_UNUSED_COCO_CLASS = "N/A"


@dataclass(frozen=True)
class DetectedBoxes:
    """Boxes `[boxes, 4]` in pixel xyxy, scores `[boxes]`, and labels `[boxes]`: indices into the detector's classes."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Detector(Protocol):
    """A loaded detector."""

    def __call__(self, image: Image.Image, threshold: float) -> DetectedBoxes:
        """Boxes with a score above the threshold."""
        ...


def detector_classes(config: DetectConfig) -> tuple[str, ...]:
    """The classes a detector can detect, without loading its weights. Raises UserError: not a detector."""
    requested = config.classes or tuple(category_names("coco").values())
    name = local_model(str(config.detector))
    if _is_rlip_model(name):
        return requested
    settings = _settings(name)
    if type(settings) in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING:
        return requested
    if config.classes is not None:
        raise UserError(f"detect.classes: {config.detector} has a fixed set of classes; remove this setting")
    return _class_names(settings)


def load(config: DetectConfig, device: torch.device) -> Detector:
    """Load the detector of a recipe. Raises UserError: no such model, or not a detector."""
    classes = detector_classes(config)
    name = local_model(str(config.detector))
    if _is_rlip_model(name):
        return RLIPDetector(load_detector(Path(name)), classes, trained_sides(Path(name)), device)
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
    """A detector with a fixed set of classes, such as DETR."""

    def __init__(self, model: PreTrainedModel, processor: Any, device: torch.device) -> None:
        self._model, self._processor, self._device = model.eval(), processor, device
        nn.Module.to(model, device)
        self._is_class = torch.tensor([name != _UNUSED_COCO_CLASS for name in _class_names(model.config)])

    @torch.no_grad()
    def __call__(self, image: Image.Image, threshold: float) -> DetectedBoxes:
        inputs = self._processor(images=image, return_tensors="pt").to(self._device)
        output = self._model(**inputs)
        size = [(image.height, image.width)]
        [boxes] = self._processor.post_process_object_detection(output, threshold=threshold, target_sizes=size)
        return _select(boxes, labels := boxes["labels"].cpu(), self._is_class[labels])


class ZeroShotDetector:
    """A detector that takes class names as text, such as OWLv2 or Grounding DINO."""

    def __init__(self, model: PreTrainedModel, processor: Any, classes: Sequence[str], device: torch.device) -> None:
        """Raises UserError: the model type is not supported."""
        self._kind = model.config.model_type
        if self._kind not in (*_RETURN_INDEX, *_RETURN_PHRASE):
            supported = ", ".join((*_RETURN_INDEX, *_RETURN_PHRASE))
            raise UserError(f"zero-shot detectors of type {self._kind!r} are not supported; use one of {supported}")
        self._model, self._processor, self._device = model.eval(), processor, device
        nn.Module.to(model, device)
        self._classes = list(classes)

    @torch.no_grad()
    def __call__(self, image: Image.Image, threshold: float) -> DetectedBoxes:
        texts = [self._classes]
        inputs = self._processor(text=texts, images=image, return_tensors="pt").to(self._device)
        output = self._model(**inputs)
        size = [(image.height, image.width)]
        process = self._processor.post_process_grounded_object_detection
        if self._kind in _RETURN_INDEX:
            [boxes] = process(output, threshold=threshold, target_sizes=size)
            labels = boxes["labels"].cpu()
        else:
            ids = inputs["input_ids"]
            [boxes] = process(output, ids, threshold=threshold, text_threshold=threshold, target_sizes=size)
            labels = torch.tensor([self._class_index(phrase) for phrase in boxes["text_labels"]], dtype=torch.long)
        return _select(boxes, labels, labels >= 0)

    def _class_index(self, phrase: str) -> int:
        """The class named by a phrase, or the only class that contains it ("dining" in "dining table"); else -1."""
        if phrase in self._classes:
            return self._classes.index(phrase)
        containing = [index for index, name in enumerate(self._classes) if f" {phrase} " in f" {name} "]
        return containing[0] if phrase and len(containing) == 1 else -1


class RLIPDetector:
    """Detects the boxes of the dense head of a ParSeDA or ParSeD, or else their subjects and objects."""

    def __init__(
        self, model: TripletDetector, classes: Sequence[str], sides: tuple[int, int], device: torch.device
    ) -> None:
        self._model, self._sides, self._device = model, sides, device
        nn.Module.to(model, device)
        with torch.no_grad():
            self._labels = model.encode_labels([*classes, NO_OBJECTS], _DETECTION_PREDICATE)

    @torch.no_grad()
    def __call__(self, image: Image.Image, threshold: float) -> DetectedBoxes:
        pixels = to_pixel_values(image, *self._sides).unsqueeze(0).to(self._device)
        sides = torch.tensor([image.width, image.height] * 2)
        if self._model.dense_head is not None:
            dense = self._model.detect_boxes(self._model.encode_image(pixels), self._labels)
            boxes, scores, labels = (part.cpu() for part in dense.detections(0, threshold))
            return DetectedBoxes(boxes * sides, scores, labels)
        no_padding = torch.zeros(1, *pixels.shape[2:], dtype=torch.bool, device=self._device)
        output = self._model(pixels, no_padding, self._labels).final
        entities = [(output.object_boxes, output.object_logits)]
        if output.subject_logits is not None:
            entities.append((output.subject_boxes, output.subject_logits))
        boxes, logits = (torch.cat([entity[part][0] for entity in entities]).float().cpu() for part in (0, 1))
        best = logits.softmax(-1)[:, :-1].max(-1)  # "no objects" is the last class
        kept = best.values > threshold
        return DetectedBoxes((to_corners(boxes) * sides)[kept], best.values[kept], best.indices[kept])


def _class_names(settings: PretrainedConfig) -> tuple[str, ...]:
    """Class names in the order of their ids, which start at 0."""
    return tuple(name for _, name in sorted((settings.id2label or {}).items()))


def _select(boxes: Mapping[str, Tensor], labels: Tensor, kept: Tensor) -> DetectedBoxes:
    return DetectedBoxes(boxes["boxes"].cpu()[kept], boxes["scores"].cpu()[kept], labels[kept])


def _is_rlip_model(name: str | None) -> bool:
    """Whether a folder holds a ParSeDA or ParSeD."""
    try:
        settings = json.loads((Path(str(name)) / "config.json").read_text(encoding="utf-8"))
        return isinstance(settings, dict) and settings.get("model_type") in _RLIP_MODEL_TYPES
    except (OSError, ValueError):
        return False


def _settings(name: str | None) -> PretrainedConfig:
    try:
        settings = AutoConfig.from_pretrained(str(name))
    except (OSError, ValueError) as reason:
        cause = str(reason).strip().splitlines()[0].rstrip(".")
        raise UserError(f"no detector {name}: {cause}; choose another detect.detector (--detector)") from None
    mappings = (MODEL_FOR_OBJECT_DETECTION_MAPPING, MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING)
    if not any(type(settings) in mapping for mapping in mappings):
        raise UserError(f"{name} is not an object detector: its model_type is {settings.model_type!r}")
    return settings
