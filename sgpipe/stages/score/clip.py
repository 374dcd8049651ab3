"""Scores by a CLIP model: compares the outlined crop of both boxes with the relation and with contrast texts.

CLIP models embed images and texts in one space: those of open_clip, or of transformers (CLIP, SigLIP and the like).
Texts are padded to the model's own length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sgpipe.errors import UserError
from sgpipe.records import Box, Relation
from sgpipe.stages.checkpoint import UNREADABLE, first_line, load_part, load_weights, read_config
from sgpipe.stages.score.scorer import NO_AREA, Score, contrast_texts, marked_crop, relation_text
from sgpipe.utils.devices import pick_device

_DEFAULT_SIDE = 224
_KEPT_TEXTS = 100_000
_GPU_GROUP = 32

Item = TypeVar("Item")


class ClipScorer:
    """The probability of a relation's text against the mean of its contrast texts; see `contrast_texts`.

    It is a softmax over cosines, scaled as the checkpoint was trained; by chance it is 0.5, however many contrast texts
    there are. The other relations of a pair are not among them, as several may hold, so that the probability of a
    relation does not depend on what else is asked.
    """

    def __init__(self, model: str, device: str = "auto", gpus: float = 0) -> None:
        """`model`: see `load_clip`; "NAME:WEIGHTS" for a named model of open_clip. `gpus`: how many to use."""
        self.model, self._device_name, self._gpus = model, device, gpus

    def check(self) -> None:
        """Raises UserError: there is no such folder, or it has a model of another kind."""
        name, weights = split_name(self.model)
        if not _is_open_clip(name, weights):
            parts = {"text_config", "vision_config"}
            if Path(name).is_dir() and not parts <= read_config(name, "CLIP model").keys():
                raise UserError(f"{name} is not a CLIP model: its config.json has no text_config and vision_config")

    def load(self) -> None:
        """Raises UserError: the model cannot be loaded, or the device is missing."""
        name, weights = split_name(self.model)
        self.clip: ClipModel = load_clip(name, weights, pick_device(self._device_name, self._gpus))
        self._embed = text_embeddings(self.clip)

    def scores(self, image: Image.Image, objects: Sequence[Box], relations: Sequence[Relation]) -> list[Score]:
        """See `RelationScorer`."""
        if not relations:
            return []
        of_pairs = {(each.subject, each.object): each for each in relations}
        crops = {pair: marked_crop(image, objects, each, self.clip.side) for pair, each in of_pairs.items()}
        shown = {pair: crop for pair, crop in crops.items() if crop is not None}
        seen = dict(zip(shown, self.clip.in_groups(self.clip.embed_images, [*shown.values()]), strict=True))
        texts = [self._texts(objects, relation) for relation in relations]
        self._embed([text for each in texts for text in each])  # together; they are kept
        return [
            self._probability(seen[relation.subject, relation.object], own)
            if (relation.subject, relation.object) in seen
            else NO_AREA
            for relation, own in zip(relations, texts, strict=True)
        ]

    def _texts(self, objects: Sequence[Box], relation: Relation) -> list[str]:
        subject, object_ = objects[relation.subject], objects[relation.object]
        return [relation_text(subject, relation.predicate, object_), *contrast_texts(objects, relation)]

    def _probability(self, seen: Tensor, texts: Sequence[str]) -> float:
        """Return how probable the first text is; `seen`: the embedding of a crop. Raises UserError: it is NaN."""
        logits = self.clip.scale * (self._embed(texts) @ seen).double()
        share = float((logits[0] - logits[1:].logsumexp(0) + math.log(len(texts) - 1)).sigmoid())
        if share != share:
            raise UserError(f"CLIP model {self.model} returns NaN: its weights are damaged")
        return share


def split_name(model: str) -> tuple[str, str | None]:
    """Return the name and the weights of "NAME:WEIGHTS"; a folder or a hub id has no weights."""
    name, found, weights = model.partition(":")
    return (name, weights) if found and name != "hf-hub" and "/" not in name else (model, None)


def text_embeddings(clip: ClipModel) -> Callable[[Sequence[str]], Tensor]:
    """Return a function from texts to embeddings `[texts, width]`, encoded as by `in_groups`; it keeps the latest."""
    known: dict[str, Tensor] = {}

    def embed(texts: Sequence[str]) -> Tensor:
        if len(known) >= _KEPT_TEXTS:
            known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, clip.in_groups(clip.embed_texts, new), strict=True))
        return torch.stack([known[text] for text in texts])

    return embed


def load_clip(model: str, weights: str | None, device: torch.device) -> ClipModel:
    """Return a CLIP model.

    `model`: a folder with config.json (transformers), or else open_clip_config.json (open_clip), and weights; a hub id,
    which is transformers' unless it begins with hf-hub:; or a name that open_clip knows, with its `weights`: a file or
    a tag.

    Raises UserError: open_clip is needed and not installed, or the model cannot be loaded.
    """
    return OpenClip(model, weights, device) if _is_open_clip(model, weights) else TransformersClip(model, device)


def _is_open_clip(model: str, weights: str | None) -> bool:
    is_folder = Path(model).is_dir()
    return (
        weights is not None or model.startswith("hf-hub:") or (is_folder and not Path(model, "config.json").is_file())
    )


class _Clip:
    """What both kinds of models do."""

    _device: torch.device

    def in_groups(self, embed: Callable[[Sequence[Item]], Tensor], items: Sequence[Item]) -> list[Tensor]:
        """Embed items, on a GPU in groups of a fixed size that are padded with repeats, on a CPU one by one.

        So no embedding depends on what is encoded beside it: matrix products round by their number of rows.
        """
        size = _GPU_GROUP if self._device.type == "cuda" else 1
        parts = [items[at : at + size] for at in range(0, len(items), size)]
        groups = [embed([*part, *[part[-1]] * (size - len(part))])[: len(part)] for part in parts]
        return [row for group in groups for row in group]


class OpenClip(_Clip):
    """A model of open_clip. Embeddings have unit length, `[count, width]`, float32 on the CPU.

    `side`: pixels per side of the images that it sees. `scale`: what multiplies cosines before a softmax.
    """

    def __init__(self, model: str, weights: str | None, device: torch.device) -> None:
        """Raises UserError: as `load_clip`."""
        try:
            import open_clip
        except ImportError:
            raise UserError("this model needs open_clip: pip install 'sgpipe[clip]'") from None
        name = f"local-dir:{model}" if Path(model).is_dir() else model
        try:
            network, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=weights, device=device)
            self._tokenize: Any = open_clip.get_tokenizer(name)
        except UNREADABLE as error:
            reason = first_line(error) or type(error).__name__
            raise UserError(f"CLIP model {model} cannot be loaded ({reason})") from None
        self._network: Any = network.eval()
        self._preprocess: Any = preprocess
        self._device = device
        size = getattr(getattr(self._network, "visual", None), "image_size", None)
        self.side = int(size[0] if isinstance(size, tuple | list) else size or _DEFAULT_SIDE)
        self.scale = float(self._network.logit_scale.detach().exp())

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([self._preprocess(image) for image in images]).to(self._device)
        features: Tensor = self._network.encode_image(pixels, normalize=True)
        return features.float().cpu()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        features: Tensor = self._network.encode_text(self._tokenize(list(texts)).to(self._device), normalize=True)
        return features.float().cpu()


class TransformersClip(_Clip):
    """A dual encoder of transformers; see `OpenClip`."""

    def __init__(self, model: str, device: torch.device) -> None:
        """Raises UserError: as `load_clip`."""
        from transformers import AutoModel, AutoProcessor

        network = load_weights(AutoModel, model, "CLIP model")
        if not (hasattr(network, "get_image_features") and hasattr(network, "logit_scale")):
            raise UserError(f"{model} is not a CLIP model: it does not compare images with texts")
        self._processor: Any = load_part(AutoProcessor, model, "CLIP model")
        self._network: Any = network.eval().to(device)
        self._device = device
        config = network.config
        self.side = int(getattr(config.vision_config, "image_size", _DEFAULT_SIDE))
        self._length = int(getattr(config.text_config, "max_position_embeddings", 77))
        self.scale = float(network.logit_scale.detach().exp())

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = self._processor.image_processor(list(images), return_tensors="pt")["pixel_values"].to(self._device)
        return _unit(self._network.get_image_features(pixel_values=pixels))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self._processor.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
        ).to(self._device)
        names = [name for name in ("input_ids", "attention_mask") if name in tokens]
        return _unit(self._network.get_text_features(**{name: tokens[name] for name in names}))


def _unit(features: Any) -> Tensor:
    """Features `[count, width]` of unit length; newer versions of transformers wrap them."""
    found: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return functional.normalize(found.float(), dim=-1).cpu()


ClipModel: TypeAlias = OpenClip | TransformersClip
