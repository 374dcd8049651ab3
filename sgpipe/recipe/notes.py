"""What users should know of a recipe's models before a run begins."""

import json
from collections.abc import Iterable

from sgpipe.recipe.models import (
    DEFAULT_SIDES,
    PACKAGED_LAYOUT,
    image_sides,
    is_miniworld,
    known_settings,
    named_model,
)
from sgpipe.recipe.recipe import Recipe
from sgpipe.recipe.source import SourceConfig
from sgpipe.recipe.stages import UNSCORED


def miniworld_notes(models: Iterable[str | None], source: SourceConfig | None = None) -> list[str]:
    """Return what users should know if some of the models are the packaged ones; source: of the
    images, if known.
    """
    if not any(map(is_miniworld, models)):
        return []
    if source is None or source.synthetic is None:
        return [
            "the packaged miniworld models know only synthetic images: for photographs, pass other"
            " models"
        ]
    if source.miniworld.split == "train":
        return [
            "the miniworld models were trained on this split: label quality on it is too optimistic"
        ]
    return []


def size_notes(detector: str | None) -> list[str]:
    """Return a note on a detector that does not state at which size it reads images."""
    settings = known_settings(detector and named_model(detector, "parseda"))
    if image_sides(settings) or not str(settings.get("model_type")).startswith("rlip"):
        return []
    short, long = DEFAULT_SIDES
    return [
        f"{detector}: its config.json has no image_sides, so images are resized to {short} and at"
        f' most {long} pixels; if it was trained on other sizes, add them, such as "image_sides":'
        " [480, 800]"
    ]


def _layout_note(recipe: Recipe) -> str:
    """Return what the layout model looks at and, of the packaged one, how good its relations
    are.
    """
    if recipe.tag.tagger is not None:
        return (
            f"relations are scored by the layout model {recipe.tag.tagger}: it sees boxes and"
            " captions, no pixels"
        )
    measured = json.loads((PACKAGED_LAYOUT / "evidence.json").read_text("utf-8"))["figures"]
    figures = measured.get(recipe.pair.candidates, measured["captions"])
    return (
        "no tagger: the packaged layout model scores relations by boxes and captions. Given the"
        f" persons and used things of V-COCO's photographs it finds {figures['pairs found']:.0%} of"
        f" the annotated pairs, at a precision of {figures['precision in scope']:.0%} (confidence"
        f" {measured['confidence']:g}); with more boxes it is lower. An R-Tagger (--tagger) looks"
        " at the image"
    )


def recipe_notes(recipe: Recipe, *, detects: bool, source: SourceConfig | None = None) -> list[str]:
    """Return what users should know of a recipe's models; `detects`: its detector runs; `source`:
    if known.
    """
    tag = recipe.tag
    detector = recipe.detect.detector if detects else None
    models = [
        detector,
        recipe.ground.detector,
        recipe.caption.captioner,
        tag.tagger if tag.scores else None,
    ]
    notes = miniworld_notes(models, source)
    if not tag.scores:
        relations = UNSCORED[tag.method]
        notes.append(
            f"{relations}: nothing looks at the image, and confidence 1 means only that nothing scored"
            " them"
        )
    if tag.method == "layout":
        notes.append(_layout_note(recipe))
    rtagger = tag.loaded_model if tag.method == "rtagger" else None
    tagger = named_model(rtagger, "tagger") if rtagger else None
    sides = image_sides(known_settings(tagger))
    if sides and sides != (tag.short_side, tag.long_side):
        notes.append(
            f"{tag.tagger} was trained on images of {sides[0]} and at most {sides[1]} pixels: set"
            f" tag.short_side ({tag.short_side} now) and tag.long_side ({tag.long_side})"
        )
    return list(dict.fromkeys([*notes, *size_notes(detector), *size_notes(recipe.ground.detector)]))
