"""Drawn scenes: each object is a rectangle in a colour channel of its own, with relations between them."""

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from rlip_model.training import annotations
from rlip_model.training.annotations import MISSING_OBJECT, SceneObject, SceneRelation, SceneTargets

CHANNELS = ("red", "green", "blue")
RELATIONS = tuple(
    SceneRelation(*relation)
    for relation in ((0, 1, "left of"), (1, 2, "near"), (2, 0, "on"), (0, 1, "near"), (1, 3, "looking at"))
)


@st.composite
def boxes(draw: st.DrawFn, width: int, height: int, least: int = 8) -> tuple[int, int, int, int]:
    """x, y, width, height of a box within the image."""
    left, top = draw(st.integers(0, width - least)), draw(st.integers(0, height - least))
    return left, top, draw(st.integers(least, width - left)), draw(st.integers(least, height - top))


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Image.Image, SceneTargets]:
    """An image of red, green and blue rectangles, and its targets, with a missing object last."""
    width, height = draw(st.integers(30, 200)), draw(st.integers(30, 200))
    places = [draw(boxes(width, height)) for _ in CHANNELS]
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for channel, (x, y, wide, high) in enumerate(places):
        pixels[y : y + high, x : x + wide, channel] = 255
    names = (*CHANNELS, MISSING_OBJECT)
    objects = [SceneObject(*item) for item in zip(range(4), names, (*places, (0, 0, 0, 0)), strict=True)]
    graph = annotations.SceneAnnotation("drawn", tuple(objects), RELATIONS)
    return Image.fromarray(pixels), annotations.label_scene(graph, width, height, 100)


def said(targets: SceneTargets) -> set[tuple[str, str, str]]:
    """The relations in words."""
    names = [targets.object_texts[label] for label in targets.labels.tolist()]
    rows = targets.relations.tolist()
    return {(names[subject], targets.relation_texts[word], names[object_]) for subject, object_, word in rows}
