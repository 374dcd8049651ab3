"""What each way of deciding which candidates are relations needs (`tag.method`)."""

from __future__ import annotations

from sgpipe.errors import UserError, existing_model
from sgpipe.recipe import UNSCORED, PairConfig, TagConfig

_NEEDED = {
    "rtagger": "tag.tagger is not set (--tagger; `sgpipe convert` makes one from an official checkpoint); to "
    "label without an R-Tagger, set tag.method to all, overlap, clip or vlm",
    "clip": "tag.tagger is not set (--tagger): tag.method clip needs a CLIP model of transformers or open_clip",
    "vlm": "tag.tagger is not set (--tagger): tag.method vlm needs a vision-language model",
}


def tag_notes(tag: TagConfig) -> list[str]:
    """What users should know of relations that nothing scored."""
    if tag.scores:
        return []
    return [f"{UNSCORED[tag.method]}: nothing looks at the image, and confidence 1 means only that nothing scored them"]


def check_tagger(tag: TagConfig, pair: PairConfig | None = None) -> None:
    """Raises UserError: the model that the method needs is not named or not there, or a setting is for another method.

    Args:
        pair: the configuration of the pair stage, if it is to be checked, too.
    """
    if tag.tagger is None and tag.method in _NEEDED:
        raise UserError(_NEEDED[tag.method])
    if tag.endpoint is not None and tag.method != "vlm":
        raise UserError(f"tag.method is {tag.method}: tag.endpoint is for vlm")
    if not tag.scores and (tag.calibration is not None or tag.precision is not None):
        raise UserError(
            f"tag.method is {tag.method}, which gives no scores: set tag.calibration and tag.precision to null"
        )
    if pair is not None and pair.restrict == "group" and tag.method != "rtagger":
        raise UserError(f"tag.method is {tag.method}: pair.restrict=group is for rtagger")
    if tag.tagger is not None and tag.scores and tag.endpoint is None:
        existing_model(tag.tagger)
