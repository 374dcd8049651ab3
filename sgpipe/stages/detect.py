"""Boxes for images without annotations, from a detector of transformers, a ParSeDA or a ParSeD."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import batched_nms
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from rlip_model.boxes import to_corners
from rlip_model.image import to_pixel_values
from rlip_model.model import ParSeD, ParSeDA, TripletDetector
from rlip_model.text import NO_OBJECTS
from sgpipe.errors import UserError, existing_folder
from sgpipe.files.locations import Location
from sgpipe.files.model_cache import local_model
from sgpipe.recipe import (
    DEFAULT_SIDES,
    DetectConfig,
    known_settings,
    named_model,
    network_folder,
    trained_sides,
)
from sgpipe.records import Box, Record
from sgpipe.sources.annotated import clip_objects
from sgpipe.sources.vocabulary import category_names
from sgpipe.stages.base import ImageStage
from sgpipe.stages.checkpoint import load_weights, loading

_KINDS: dict[str, type[TripletDetector]] = {"rlip_parseda": ParSeDA, "rlip_parsed": ParSeD}

# Zero-shot detectors that return the index of a class, and those that return a phrase of the
# prompt.
_RETURN_INDEX = ("owlvit", "owlv2")
_RETURN_PHRASE = ("grounding-dino", "mm-grounding-dino")
_OMDET = "omdet-turbo"  # returns the index, too, and reads all classes together
# reads one class at a time; the published checkpoint is of the video model
_SAM = ("sam3", "sam3_video")
_ZERO_SHOT = (*_RETURN_INDEX, _OMDET, *_RETURN_PHRASE, *_SAM)
_QUERIES = 1000  # class names that an OWL-ViT reads at once, to bound memory
_DETECTION_PREDICATE = ("next to",)  # the network needs a predicate; boxes hardly depend on which
_UNUSED_COCO_CLASS = "N/A"

# stages of a process share what is loaded
_MODELS: WeakValueDictionary[tuple[str, str], Any] = WeakValueDictionary()


def load_detector(model: Location) -> TripletDetector:
    """Load a ParSeDA or ParSeD: from a folder, its best checkpoint if it is that of a training, a
    store or the hub.

    Raises:
        UserError: there is no such network.
        EngineError: the store or the hub cannot be reached.
    """
    name = named_model(str(model), "parseda")
    folder = existing_folder(network_folder(Path(local_model(name))))
    kind = str(known_settings(str(folder)).get("model_type"))
    if kind == "rlip_tagger":
        raise UserError(
            f"{model} is an R-Tagger, which needs boxes: use it as tag.tagger (--tagger)"
        )
    with loading("detector"):
        return _KINDS.get(kind, ParSeDA).from_pretrained(folder).eval()


class DetectedBoxes(NamedTuple):
    """Boxes `[boxes, 4]` in pixel xyxy, scores `[boxes]`, and labels `[boxes]`: indices into the
    detector's classes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Prepared(NamedTuple):
    """What a network reads of an image, with its `pixel_values`; `size`: (height, width) of the
    image.
    """

    inputs: Any
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return int(self.inputs["pixel_values"].nbytes)


def detector_classes(config: DetectConfig) -> tuple[str, ...]:
    """Return the classes a detector can detect, without its weights.

    Raises:
        UserError: it is not a detector.
    """
    name = local_model(str(config.detector), config_only=True)
    if _reads_text(name):
        return config.classes or tuple(category_names("coco").values())
    if config.classes is not None:
        raise UserError(
            f"detect.classes: {config.detector} has a fixed set of classes; remove this setting"
        )
    with loading(f"detector {name}"):
        names = transformers.AutoConfig.from_pretrained(name).id2label or {}
    return tuple(name for _, name in sorted(names.items()))


def load(config: DetectConfig, device: torch.device) -> Detector:
    """Load the detector of a recipe.

    Raises:
        UserError: no such model, or not a detector.
    """
    name = local_model(str(config.detector))
    if _reads_text(name):
        return load_prompted(name, detector_classes(config), device)
    return Detector(
        *_open(name, device, "AutoModelForObjectDetection", "AutoImageProcessor"), device
    )


def load_prompted(
    model: str, classes: Sequence[str], device: torch.device
) -> ZeroShotDetector | RLIPDetector:
    """Load a detector that reads the names of what it looks for.

    Raises:
        UserError: no such model, or another kind.
    """
    name = local_model(model)
    kind = _kind(name)
    if kind in _KINDS:
        network = _shared(name, device, lambda: load_detector(Path(name)))
        return RLIPDetector(network, classes, trained_sides(name) or DEFAULT_SIDES, device)
    kinds = (
        ("Sam3Model", "Sam3Processor")
        if kind in _SAM
        else ("AutoModelForZeroShotObjectDetection", "AutoProcessor")
    )
    return ZeroShotDetector(*_open(name, device, *kinds), classes, device)


def check_prompted(model: str, setting: str) -> None:
    """Without loading its weights, raise UserError if a model is not a detector that reads the
    names of things.
    """
    name = local_model(model, config_only=True)
    if not _reads_text(name):
        raise UserError(
            f"{setting}: {model} cannot be asked for words; use a detector that reads text, such as"
            " Grounding DINO, OWLv2, OmDet-Turbo, SAM 3 or a ParSeDA"
        )


def _kind(name: str) -> str:
    """Return the model_type of a detector.

    Raises:
        UserError: there is no such model, or it is not a detector.
    """
    kind = str(known_settings(name).get("model_type"))
    if kind not in (*_KINDS, *_ZERO_SHOT, *MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES):
        raise UserError(
            f"{name} is not an object detector: model_type in its config.json is {kind}"
        )
    return kind


def _reads_text(name: str) -> bool:
    return _kind(name) in (*_KINDS, *_ZERO_SHOT)


def _open(name: str, device: torch.device, kind: str, processor: str) -> tuple[Any, Any]:
    """Return a model of transformers and its processor.

    Raises:
        UserError: one of them cannot be loaded.
    """
    with loading(f"detector {name} cannot be loaded"):  # not every version has all classes
        load = partial(
            load_weights, getattr(transformers, kind), name, "detector", dtype=torch.float32
        )
        return _shared(name, device, load), getattr(transformers, processor).from_pretrained(name)


def _shared(name: str, device: torch.device, load: Callable[[], Any]) -> Any:
    """Return the model, loaded once.

    Raises:
        UserError: a weight is NaN; a threshold would silently drop the scores.
    """
    model = _MODELS[name, str(device)] = _MODELS.get((name, str(device))) or load()
    damaged = next(
        (part for part, weight in model.state_dict().items() if weight.isnan().any()), None
    )
    if damaged:
        raise UserError(
            f"detector {name} returns NaN scores: its weights are damaged, such as {damaged}"
        )
    return model


class Detector:
    """Detects the boxes of a fixed set of classes, as DETR does, with a score above a threshold."""

    def __init__(self, model: PreTrainedModel, processor: Any, device: torch.device) -> None:
        self._model = nn.Module.to(model.eval(), device)
        self._processor = processor
        self._device = device

    def prepare(self, image: Image.Image) -> Prepared:
        """Resize and normalise an image; also called in other threads than `detect`."""
        # tokenizers are not safe for threads
        process = getattr(self._processor, "image_processor", self._processor)
        return Prepared(process(images=image, return_tensors="pt"), (image.height, image.width))

    @torch.no_grad()
    def detect(self, image: Prepared, threshold: float) -> DetectedBoxes:
        output = self._model(**image.inputs.to(self._device))
        process = self._processor.post_process_object_detection
        [boxes] = process(output, threshold=threshold, target_sizes=[image.size])
        return _on_cpu(boxes)


class ZeroShotDetector(Detector):
    """A detector that takes any number of class names as text, such as OWLv2, Grounding DINO or SAM
    3.

    Grounding DINO reads as many names at a time as fit in its text length, in their order. Its
    boxes depend on the names read together, so this split follows from the classes alone.
    """

    def __init__(
        self, model: PreTrainedModel, processor: Any, classes: Sequence[str], device: torch.device
    ) -> None:
        """Prepare the names of the classes as the model reads them.

        Raises:
            UserError: the model cannot read a name that long.
        """
        super().__init__(model, processor, device)
        self._kind = model.config.model_type
        self._together = self._kind in _RETURN_PHRASE
        positions = model.config.text_config.max_position_embeddings
        self._limit: int = model.config.max_text_len if self._together else positions  # of tokens
        self.ask(classes)

    def reads(self, name: str) -> bool:
        """Return whether the model can read a name that long."""
        return self._tokens(self._spelled(name)) <= self._limit

    def _spelled(self, name: str) -> str:
        # both characters end a phrase
        return re.sub(r"[.?]", " ", name).lower() if self._together else name

    def _tokens(self, name: str) -> int:
        return len(self._processor.tokenizer(f"{name}." if self._together else name)["input_ids"])

    def ask(self, classes: Sequence[str]) -> None:
        """Look for other classes.

        Raises:
            UserError: as the constructor.
        """
        self._prompts = self._read_together(classes)
        self._texts = [self._inputs(names) for names in self._prompts]

    def _read_together(self, classes: Sequence[str]) -> list[list[str]]:
        """Return the names of classes as the model reads them, those of one call together."""
        special = self._processor.tokenizer.num_special_tokens_to_add()
        capacity = _QUERIES
        if self._together:
            capacity = self._limit - special
        elif self._kind == _OMDET:
            capacity = len(classes)
        elif self._kind in _SAM:
            capacity = 1
        prompts: list[list[str]] = []
        room = 0
        for class_name in classes:
            name = self._spelled(class_name)
            tokens = self._tokens(name)
            if tokens > self._limit:
                raise UserError(
                    f"detect.classes: {class_name!r} would be {tokens} tokens, and this {self._kind}"
                    f" reads {self._limit}; name it in fewer words"
                )
            cost = tokens - special if self._together else 1
            if cost > room:
                prompts.append([])
                room = capacity
            prompts[-1].append(name)
            room -= cost
        return prompts

    def _inputs(self, names: list[str]) -> dict[str, Tensor]:
        """Return the tensors of names that are read together, without those of an image."""
        text = names if self._kind in _SAM else [names]
        # OmDet's processor needs an image, too.
        example = {"images": Image.new("RGB", (64, 64))} if self._kind == _OMDET else {}
        inputs = self._processor(text=text, return_tensors="pt", **example).to(self._device)
        of_image = self._processor.image_processor.model_input_names
        return {name: inputs[name] for name in inputs if name not in of_image}

    @torch.no_grad()
    def detect(self, image: Prepared, threshold: float) -> DetectedBoxes:
        shown = image.inputs.to(self._device)
        size = [image.size]
        if self._kind in _SAM:  # sees the image once and then looks for one class after the other
            shown = {"vision_embeds": self._model.get_vision_features(shown["pixel_values"])}
        kind = "object_detection" if self._kind in _SAM else "grounded_object_detection"
        process = getattr(self._processor, f"post_process_{kind}")
        outputs = []
        detected = []
        first = 0
        for names, texts in zip(self._prompts, self._texts, strict=True):
            output = self._model(**texts, **shown)
            if self._kind in _RETURN_INDEX:
                outputs.append(output)
                continue
            if self._kind in _SAM:
                [boxes] = process(output, threshold, size)
                labels = torch.zeros(boxes["scores"].shape).long()
            elif self._kind == _OMDET:
                [boxes] = process(output, threshold=threshold, nms_threshold=1.0, target_sizes=size)
                labels = boxes["labels"].cpu()
            else:
                ids = texts["input_ids"]
                [boxes] = process(
                    output, ids, threshold=threshold, text_threshold=threshold, target_sizes=size
                )
                labels = self._labels(boxes["text_labels"], names)
            is_known = labels >= 0
            detected.append(
                DetectedBoxes(
                    boxes["boxes"].cpu()[is_known],
                    boxes["scores"].cpu()[is_known],
                    first + labels[is_known],
                )
            )
            first += len(names)
        if outputs:  # the same boxes each time, of which each gets the best of all classes
            outputs[0].logits = torch.cat([output.logits for output in outputs], dim=-1)
            [boxes] = process(outputs[0], threshold=threshold, target_sizes=size)
            return _on_cpu(boxes)
        return DetectedBoxes(*map(torch.cat, zip(*detected, strict=True)))

    def _labels(self, phrases: Sequence[str], names: list[str]) -> Tensor:
        """Return the index of the name that each phrase is, or -1, by the tokenizer's spelling: it
        makes "t - shirt" of "t-shirt".
        """
        tokenizer = self._processor.tokenizer
        spelled = tokenizer.batch_decode(tokenizer(names, add_special_tokens=False)["input_ids"])
        return torch.tensor([_phrase_index(phrase, spelled) for phrase in phrases]).long()


def _on_cpu(boxes: Mapping[str, Tensor]) -> DetectedBoxes:
    """Return what transformers detected in an image."""
    return DetectedBoxes(boxes["boxes"].cpu(), boxes["scores"].cpu(), boxes["labels"].cpu())


def _phrase_index(phrase: str, names: list[str]) -> int:
    """Return the index of the name that is a phrase, or the only one that contains it ("dining");
    else -1.
    """
    if phrase in names:
        return names.index(phrase)
    containing = [
        index for index, name in enumerate(names) if phrase and f" {phrase} " in f" {name} "
    ]
    return containing[0] if len(containing) == 1 else -1


class RLIPDetector(Detector):
    """Detects the boxes of the dense head of a ParSeDA or ParSeD, or else their subjects and
    objects.
    """

    def __init__(
        self,
        model: TripletDetector,
        classes: Sequence[str],
        sides: tuple[int, int],
        device: torch.device,
    ) -> None:
        self._model = model
        self._sides = sides
        self._device = device
        nn.Module.to(model, device)
        self.ask(classes)

    def reads(self, name: str) -> bool:
        """Return True: it reads the beginning of any name."""
        return True

    @torch.no_grad()
    def ask(self, classes: Sequence[str]) -> None:
        self._labels = self._model.encode_labels([*classes, NO_OBJECTS], _DETECTION_PREDICATE)

    def prepare(self, image: Image.Image) -> Prepared:
        return Prepared(
            {"pixel_values": to_pixel_values(image, *self._sides)}, (image.height, image.width)
        )

    @torch.no_grad()
    def detect(self, image: Prepared, threshold: float) -> DetectedBoxes:
        pixels = image.inputs["pixel_values"].unsqueeze(0).to(self._device)
        sides = torch.tensor(image.size[::-1] * 2)
        if self._model.dense_head is not None:
            dense = self._model.detect_boxes(self._model.encode_image(pixels), self._labels)
            boxes, scores, labels = (part.cpu() for part in dense.detections(0, threshold))
            return DetectedBoxes(boxes * sides, scores, labels)
        no_padding = torch.zeros(1, *pixels.shape[2:], dtype=torch.bool, device=self._device)
        output = self._model(pixels, no_padding, self._labels).final
        entities = [(output.object_boxes, output.object_logits)]
        if output.subject_logits is not None:
            entities.append((output.subject_boxes, output.subject_logits))
        boxes = torch.cat([boxes[0] for boxes, _ in entities]).float().cpu()
        logits = torch.cat([logits[0] for _, logits in entities]).float().cpu()
        best = logits.softmax(-1)[:, :-1].max(-1)  # "no objects" is the last class
        is_above = best.values > threshold
        return DetectedBoxes(
            (to_corners(boxes) * sides)[is_above], best.values[is_above], best.indices[is_above]
        )


class DetectStage(ImageStage):
    """Fills `objects` with detected boxes, highest score first, one image at a time.

    `category_id` is the 1-based index of the detector's class.
    """

    name = "detect"

    def setup(self) -> None:
        self.set_up_device()
        self.classes = detector_classes(self.config)
        self.detector = load(self.config, self.device)

    def __call__(self, records: list[Record]) -> list[Record]:
        for record, prepared in self.opened(
            records, lambda image, file: self.detector.prepare(image)
        ):
            boxes, scores, labels = self.detector.detect(prepared, self.config.threshold)
            # It moves the boxes of each label far apart, too far for float32 with many labels.
            remaining = batched_nms(boxes.double(), scores.double(), labels, self.config.overlap)
            chosen = remaining[: self.config.max_boxes]
            record.left_out["boxes"] = len(remaining) - len(chosen)
            record.objects = []
            for index in chosen.tolist():
                label = int(labels[index])
                left, top, right, bottom = boxes[index].double().tolist()
                bbox = (left, top, right - left, bottom - top)
                score = float(scores[index].float())
                box = Box(self.classes[label], label + 1, bbox, origin="detector", score=score)
                if box.category != _UNUSED_COCO_CLASS:
                    record.objects.append(box)
            clip_objects(record, Counter())
        return records
