"""CLIP models, which embed images and texts in one space: of open_clip, or of transformers (CLIP, SigLIP and the like).

Texts are padded to the model's own length.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sgpipe.errors import UserError, existing_model
from sgpipe.stages.checkpoint import UNREADABLE, first_line, options, quiet

_DEFAULT_SIDE = 224
_KEPT_TEXTS = 100_000


class ClipModel(Protocol):
    """Embeddings of unit length, `[count, width]`, float32 on the CPU.

    Attributes:
        side: pixels per side of the images that the model sees.
        scale: what cosines are multiplied by before a softmax; `logit_scale` of the checkpoint.
    """

    side: int
    scale: float

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor: ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor: ...


class TextEmbeddings:
    """Embeddings of texts, `[width]`, the latest of which are kept.

    Each text is encoded alone, so that its embedding never depends on what was encoded before or beside it.
    """

    def __init__(self, clip: ClipModel) -> None:
        self._clip = clip
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Iterable[str]) -> Tensor:
        """`[texts, width]`."""
        return torch.stack([self._embed(text) for text in texts])

    def _embed(self, text: str) -> Tensor:
        if text not in self._known:
            if len(self._known) >= _KEPT_TEXTS:
                self._known.clear()
            self._known[text] = self._clip.embed_texts([text])[0]
        return self._known[text]


def load_clip(model: str, weights: str | None, device: torch.device) -> ClipModel:
    """A CLIP model.

    Args:
        model: a folder with config.json (transformers) or open_clip_config.json (open_clip) and weights; a hub id,
            which is transformers' unless it begins with hf-hub:; or, with `weights`, a name that open_clip knows.
        weights: of a named model of open_clip: a file, or a tag that open_clip knows.

    Raises UserError: open_clip is needed and not installed, or the model cannot be loaded.
    """
    return OpenClip(model, weights, device) if _is_open_clip(model, weights) else TransformersClip(model, device)


def check_clip(model: str, weights: str | None) -> None:
    """Raises UserError: there is no such folder, or it has a model of another kind."""
    if weights is not None or model.startswith("hf-hub:"):
        return
    existing_model(model)
    file = Path(model) / "config.json"
    if Path(model).is_dir() and not _is_open_clip(model, weights):
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _unusable(model, error) from None
        if not (isinstance(config, dict) and {"text_config", "vision_config"} <= config.keys()):
            raise UserError(f"{model} is no CLIP model: its config.json has no text_config and vision_config")


def _is_open_clip(model: str, weights: str | None) -> bool:
    folder = Path(model)
    if weights is not None or model.startswith("hf-hub:") or (folder / "open_clip_config.json").is_file():
        return True
    return folder.is_dir() and not (folder / "config.json").is_file()


class OpenClip:
    """A model of open_clip."""

    def __init__(self, model: str, weights: str | None, device: torch.device) -> None:
        """Raises UserError: as `load_clip`."""
        self._network, self._preprocess, self._tokenize = _load_open_clip(model, weights, device)
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


class TransformersClip:
    """A dual encoder of transformers."""

    def __init__(self, model: str, device: torch.device) -> None:
        """Raises UserError: as `load_clip`."""
        from transformers import AutoModel, AutoProcessor

        try:
            with quiet():
                network, loaded = AutoModel.from_pretrained(model, output_loading_info=True, **options(model))
                self._processor: Any = AutoProcessor.from_pretrained(model, **options(model))
        except (ImportError, *UNREADABLE) as error:
            raise _unusable(model, error) from None
        if not (hasattr(network, "get_image_features") and hasattr(network, "logit_scale")):
            raise UserError(f"{model} is no CLIP model: it does not compare images with texts")
        if loaded["missing_keys"]:  # they would be random
            raise UserError(f"{model} is no whole CLIP model: it has no weights for {min(loaded['missing_keys'])}")
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


def _load_open_clip(model: str, weights: str | None, device: torch.device) -> tuple[Any, Callable[..., Tensor], Any]:
    try:
        import open_clip
    except ImportError:
        raise UserError("this model needs open_clip: pip install 'sgpipe[clip]'") from None
    if Path(model).is_dir():
        model = f"local-dir:{model}"
    try:
        network, _, preprocess = open_clip.create_model_and_transforms(model, pretrained=weights, device=device)
        return network.eval(), preprocess, open_clip.get_tokenizer(model)
    except UNREADABLE as error:
        raise _unusable(model, error) from None


def _unusable(model: str, error: Exception) -> UserError:
    return UserError(f"CLIP model {model} cannot be loaded ({first_line(error) or type(error).__name__})")
