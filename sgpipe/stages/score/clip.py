"""Scores by a CLIP model, of open_clip or transformers (CLIP, SigLIP and the like): images and
texts in one space.
"""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sgpipe.errors import ComputationError, UserError, import_extra
from sgpipe.records import Box, Relation
from sgpipe.stages.checkpoint import load_part, load_weights, loading
from sgpipe.stages.score.scorer import NO_AREA, Score, contrast_texts, marked_crop, relation_text
from sgpipe.utils.devices import pick_device

_KEPT_TEXTS = 100_000
_GPU_GROUP = 32
_DEFAULT_SIDE = 224

Item = TypeVar("Item")
Opened: TypeAlias = tuple[Any, int, Callable[..., Any], Callable[..., Any]]


class ClipScorer:
    """The probability of a relation's text against the mean of its contrast texts; see
    `contrast_texts`.

    It is a softmax over cosines, scaled as the checkpoint was trained; by chance 0.5, however many
    contrast texts there are. As several relations of a pair may hold, it does not depend on what
    else is asked.
    """

    def __init__(self, model: str, device: str = "auto", gpus: float = 0) -> None:
        """`model`: see `ClipModel`; "NAME:WEIGHTS" for a named model of open_clip. `gpus`: how many
        to use.
        """
        self.model = model
        self._device_name = device
        self._gpus = gpus

    def load(self) -> None:
        self.clip = ClipModel(*split_name(self.model), pick_device(self._device_name, self._gpus))

    def scores(
        self, image: Image.Image, objects: Sequence[Box], relations: Sequence[Relation]
    ) -> list[Score]:
        """See `VlmScorer.scores`."""
        if not relations:
            return []
        embedded = self._embed_pairs(image, objects, relations)
        texts = []
        for relation in relations:
            subject = objects[relation.subject]
            text = relation_text(subject, relation.predicate, objects[relation.object])
            texts.append([text, *contrast_texts(objects, relation)])
        self.clip.embed_texts(list(chain.from_iterable(texts)))  # together; they are kept
        scores: list[Score] = []
        for relation, of_relation in zip(relations, texts, strict=True):
            pair = embedded.get((relation.subject, relation.object))
            scores.append(NO_AREA if pair is None else self._probability(pair, of_relation))
        return scores

    def _embed_pairs(
        self, image: Image.Image, objects: Sequence[Box], relations: Sequence[Relation]
    ) -> dict[tuple[int, int], Tensor]:
        """Return the embeddings of the crops of all pairs whose boxes have an area."""
        crops: dict[tuple[int, int], Image.Image] = {}
        relation_of = {(relation.subject, relation.object): relation for relation in relations}
        for pair, relation in relation_of.items():
            crop = marked_crop(image, objects, relation, self.clip.side)
            if crop is not None:
                crops[pair] = crop
        embedded = self.clip.in_groups(self.clip.embed_images, list(crops.values()))
        return dict(zip(crops, embedded, strict=True))

    def _probability(self, crop: Tensor, texts: Sequence[str]) -> float:
        """Return how probable the first text is; `crop`: its embedding.

        Raises:
            ComputationError: it is NaN.
        """
        logits = self.clip.scale * (self.clip.embed_texts(texts) @ crop).double()
        share = float((logits[0] - logits[1:].logsumexp(0) + math.log(len(texts) - 1)).sigmoid())
        if share != share:
            raise ComputationError(f"CLIP model {self.model} returns NaN: its weights are damaged")
        return share


def split_name(model: str) -> tuple[str, str | None]:
    """Return the name and the weights of "NAME:WEIGHTS"; a folder or a hub id has no weights."""
    name, _, weights = model.partition(":")
    names_weights = ":" in model and name != "hf-hub" and "/" not in name
    return (name, weights) if names_weights else (model, None)


class ClipModel:
    """A dual encoder. Embeddings have unit length, `[count, width]`, float32 on the CPU.

    `side`: pixels per side of the images that it sees. `scale`: what multiplies cosines before a
    softmax.
    """

    def __init__(self, model: str, weights: str | None, device: torch.device) -> None:
        """Load a model of transformers (hub id, or folder with config.json) or open_clip (name with
        its `weights`, a file or a tag; hf-hub:ID; other folders).

        Raises:
            UserError: it cannot be loaded, or open_clip is not installed.
        """
        self._device = device
        self._known = dict[str, Tensor]()
        is_folder = Path(model).is_dir() and not Path(model, "config.json").is_file()
        is_open_clip = weights is not None or model.startswith("hf-hub:") or is_folder
        opened = (
            _open_clip(model, weights, device) if is_open_clip else _transformers(model, device)
        )
        self._network, self.side, self._see, self._read = opened
        self.scale = float(self._network.logit_scale.detach().exp())

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        return _unit(self._see(images))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts as by `in_groups`, or take what is kept of the latest."""
        if len(self._known) >= _KEPT_TEXTS:
            self._known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        with torch.inference_mode():
            embedded = self.in_groups(lambda group: _unit(self._read(group)), new)
        self._known.update(zip(new, embedded, strict=True))
        return torch.stack([self._known[text] for text in texts])

    def in_groups(
        self, embed: Callable[[Sequence[Item]], Tensor], items: Sequence[Item]
    ) -> list[Tensor]:
        """Embed items, on a CPU one by one, on a GPU in groups padded with repeats: products round
        by their rows.
        """
        size = _GPU_GROUP if self._device.type == "cuda" else 1
        rows: list[Tensor] = []
        for start in range(0, len(items), size):
            group = items[start : start + size]
            padding = [group[-1]] * (size - len(group))
            rows += embed([*group, *padding])[: len(group)]
        return rows


def _open_clip(model: str, weights: str | None, device: torch.device) -> Opened:
    """Return a model of open_clip, the side of its images, and its encoders of images and of
    texts.
    """
    open_clip = import_extra("open_clip", "clip")
    name = f"local-dir:{model}" if Path(model).is_dir() else model
    with loading(f"CLIP model {model}"):
        network, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained=weights, device=device
        )
        tokenize = open_clip.get_tokenizer(name)
    size = getattr(getattr(network, "visual", None), "image_size", None) or _DEFAULT_SIDE
    return (
        network.eval(),
        int(size[0] if isinstance(size, tuple | list) else size),
        lambda images: network.encode_image(
            torch.stack([preprocess(image) for image in images]).to(device)
        ),
        lambda texts: network.encode_text(tokenize(list(texts)).to(device)),
    )


def _transformers(model: str, device: torch.device) -> Opened:
    """Return the same of a model of transformers; texts are padded to its own length."""
    from transformers import AutoModel, AutoProcessor

    network = load_weights(AutoModel, model, "CLIP model")
    if not (hasattr(network, "get_image_features") and hasattr(network, "logit_scale")):
        raise UserError(f"{model} is not a CLIP model: it does not compare images with texts")
    processor = load_part(AutoProcessor, model, "CLIP model")
    config = network.config
    length = getattr(config.text_config, "max_position_embeddings", 77)
    padding = {"padding": "max_length", "truncation": True, "max_length": length}

    def see(images: Sequence[Image.Image]) -> Any:
        seen = processor.image_processor(list(images), return_tensors="pt").to(device)
        parts = ("pixel_values", "pixel_attention_mask", "spatial_shapes")  # the latter of SigLIP 2
        return network.get_image_features(**{name: seen[name] for name in parts if name in seen})

    def read(texts: Sequence[str]) -> Any:
        tokens = processor.tokenizer(list(texts), return_tensors="pt", **padding).to(device)
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
        return network.get_text_features(**inputs)

    return (
        network.eval().to(device),
        int(getattr(config.vision_config, "image_size", _DEFAULT_SIDE)),
        see,
        read,
    )


def _unit(features: Any) -> Tensor:
    """Features `[count, width]` of unit length; newer versions of transformers wrap them."""
    plain: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return functional.normalize(plain.float(), dim=-1).cpu()
