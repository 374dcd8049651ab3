"""Render a scene: its image, and the boxes around the visible part of each thing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from sgpipe.miniworld.backgrounds import paint_background
from sgpipe.miniworld.scene import PlacedGroup, Scene
from sgpipe.miniworld.shapes import RGB, Shapes, shade

# Images are painted at this multiple of their size and then reduced, which smooths the edges.
OVERSAMPLING = 3


@dataclass(frozen=True)
class RenderedScene:
    """A rendered scene.

    Attributes:
        boxes: float64 [things, 4], xywh in pixels, around the visible part of each thing.
        areas: float64 [things], the area of this part in square pixels.
        owners: uint8 [height, width], the 1-based number of the thing visible at each pixel; 0: none.
    """

    image: Image.Image
    boxes: np.ndarray
    areas: np.ndarray
    owners: np.ndarray


def render(scene: Scene, hidden: Collection[int] = ()) -> RenderedScene:
    """Render a scene without the things in `hidden`, whose shadows remain."""
    size = (scene.width * OVERSAMPLING, scene.height * OVERSAMPLING)
    rng = np.random.default_rng(scene.background_seed)
    image, ground = paint_background(size, scene.horizon * OVERSAMPLING, indoors=scene.indoors, rng=rng)
    labels = Image.new("L", size, 0)
    pens = ImageDraw.Draw(image), ImageDraw.Draw(labels)
    first = 0
    for placed in scene.placed:
        _shadows(pens[0], placed, shade(ground, 0.8))
        for label, shapes in _layers(placed, first):
            if label - 1 not in hidden:
                _draw(pens, placed, shapes, label)
        first += len(placed.group.actors)
    marks = np.asarray(labels)
    boxes, areas = _visible(marks, len(scene.things))
    middle = OVERSAMPLING // 2
    owners = marks[middle::OVERSAMPLING, middle::OVERSAMPLING].copy()
    return RenderedScene(image.reduce(OVERSAMPLING), boxes / OVERSAMPLING, areas / OVERSAMPLING**2, owners)


def _layers(placed: PlacedGroup, first: int) -> list[tuple[int, Shapes]]:
    """The shapes of a group from far to near, each with the label of its thing (0: none)."""
    layers = [(depth, 0, shapes) for depth, shapes in placed.group.extras]
    for number, actor in enumerate(placed.group.actors, first + 1):
        layers += [(depth, number, shapes) for depth, shapes in actor.layers()]
    layers.sort(key=lambda layer: layer[0])
    return [(label, shapes) for _, label, shapes in layers]


def _draw(
    pens: tuple[ImageDraw.ImageDraw, ImageDraw.ImageDraw], placed: PlacedGroup, shapes: Shapes, label: int
) -> None:
    paint, mark = pens
    scale = _scale(placed)
    for shape in shapes:
        corners = (shape.points * scale + np.multiply(placed.at, OVERSAMPLING)).ravel().tolist()
        paint.polygon(corners, fill=shape.colour)
        mark.polygon(corners, fill=label)


def _scale(placed: PlacedGroup) -> np.ndarray:
    unit = placed.scale * OVERSAMPLING
    return np.array([-unit if placed.mirrored else unit, -unit])


def _shadows(pen: ImageDraw.ImageDraw, placed: PlacedGroup, colour: RGB) -> None:
    """Darken the ground below the actors that stand on it."""
    scale, at = _scale(placed), np.multiply(placed.at, OVERSAMPLING)
    for actor in placed.group.actors:
        box = actor.extent()
        if actor.kind == "kite" or box.bottom > 1.0 or (box.bottom > 0.4 and not actor.airborne):
            continue
        middle, half = (box.left + box.right) / 2, (box.right - box.left) * 0.48
        if actor.kind == "umbrella":
            half *= 0.7
        base = actor.at[1] if not actor.airborne and actor.at[1] > 0 else 0.0
        ends = np.array([[middle - half, base - 0.06], [middle + half, base + 0.06]]) * scale + at
        low, high = ends.min(0).tolist(), ends.max(0).tolist()
        pen.ellipse((*low, *high), fill=colour)


def _visible(labels: np.ndarray, things: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes xywh [things, 4] and areas [things] of the labels 1 to `things`, in pixels of `labels`."""
    boxes, areas = np.zeros((things, 4)), np.zeros(things)
    for thing in range(things):
        mask = labels == thing + 1
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        if len(columns):
            left, top = columns[0], rows[0]
            boxes[thing] = left, top, columns[-1] + 1 - left, rows[-1] + 1 - top
            areas[thing] = np.count_nonzero(mask)
    return boxes, areas
