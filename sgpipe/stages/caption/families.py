"""Which captioner a recipe names, and what its null settings stand for."""

from __future__ import annotations

import json
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.files.model_cache import local_model
from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption.captioner import Captioner, for_blip

CHAT_PROMPT = (
    "Write one short sentence about how the things in this image relate to each other: who does what to what, or what "
    "is on, in, under, above, behind, in front of or next to what. Use plain nouns, action verbs and spatial words. "
    "State only what is visible, and answer with the sentence alone."
)
_MAX_TOKENS = 128
# Families that are not asked in words.
_PROMPTS = {"blip-2": "a photo of", "florence2": "<DETAILED_CAPTION>", "paligemma": "caption en"}


def load_captioner(config: CaptionConfig, cache_folder: Path | None = None) -> Captioner:
    """The captioner of a recipe, which is not set up yet.

    Args:
        cache_folder: where a served captioner keeps its answers; None: nowhere.

    Raises UserError: there is no such model.
    """
    if config.endpoint is not None:
        from sgpipe.stages.caption.served import ServedCaptioner

        return ServedCaptioner(settings_of(config), cache_folder)
    from sgpipe.stages.caption.blip_captioner import BlipCaptioner
    from sgpipe.stages.caption.checkpoint import read_config
    from sgpipe.stages.caption.vision_language import VisionLanguageCaptioner

    config = config.model_copy(update={"captioner": local_model(str(config.captioner))})
    own = settings_of(config)
    family = read_config(str(config.captioner)).get("model_type")
    return BlipCaptioner(own) if family == "blip" else VisionLanguageCaptioner(own)


def settings_of(config: CaptionConfig) -> CaptionConfig:
    """The settings with the captioner's own in place of those that are null.

    A captioner that cannot be read yet counts as BLIP.
    """
    family = _family(config)
    if family == "blip":
        return for_blip(config)
    own = {"prompt": _PROMPTS.get(family, CHAT_PROMPT), "max_tokens": _MAX_TOKENS}
    return config.model_copy(update={name: value for name, value in own.items() if getattr(config, name) is None})


def is_blip(config: CaptionConfig) -> bool:
    """Whether the captioner is BLIP on this machine; one that cannot be read yet counts as BLIP."""
    return _family(config) == "blip"


def _family(config: CaptionConfig) -> str:
    if config.endpoint is not None:
        return "chat"
    if config.captioner is None:
        return "blip"
    try:
        source = local_model(config.captioner)
        if (file := Path(source) / "config.json").is_file():  # without the libraries of models
            return str(json.loads(file.read_text(encoding="utf-8"))["model_type"])
        from sgpipe.stages.caption.checkpoint import read_config

        return str(read_config(source).get("model_type"))
    except (UserError, OSError, ValueError, TypeError, KeyError):
        return "blip"
