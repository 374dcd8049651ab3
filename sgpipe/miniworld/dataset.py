"""Draw a split of the miniworld: images, COCO instances and captions, Visual Genome scene graphs,
HICO-DET labels.

A box is around the visible part of its thing. Backgrounds have distractors that belong to no class.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from sgpipe.errors import UserError, add_filename
from sgpipe.miniworld.actors import Actor
from sgpipe.miniworld.relations import PREDICATES, SPLITS
from sgpipe.miniworld.scene import (
    PlacedGroup,
    Scene,
    SceneCaption,
    random_scene,
    scene_captions,
    scene_generator,
)
from sgpipe.miniworld.shapes import RGB, pick, shade, vary
from sgpipe.utils.atomic import new_folder, write_text
from sgpipe.utils.console import single_line

# Images are painted at this multiple of their size and then reduced, which smooths the edges.
OVERSAMPLING = 3

# Backgrounds fill the whole image. Coordinates are pixels from the top left corner.
_SKIES: tuple[tuple[RGB, RGB], ...] = (
    ((118, 178, 228), (206, 230, 244)),
    ((96, 154, 214), (178, 214, 240)),
    ((160, 196, 222), (226, 236, 238)),
    ((246, 178, 130), (252, 222, 178)),
    ((126, 142, 190), (240, 196, 186)),
)
_GRASS: tuple[RGB, ...] = ((126, 176, 92), (150, 186, 104), (106, 158, 94), (172, 186, 112))
_SAND: tuple[RGB, ...] = ((232, 212, 166), (222, 198, 150), (240, 222, 182))
_STREET: tuple[RGB, ...] = ((164, 164, 170), (150, 154, 162), (180, 176, 172))
_SNOW: tuple[RGB, ...] = ((224, 232, 240), (232, 236, 242))
_HOUSES: tuple[RGB, ...] = (
    (206, 162, 132),
    (186, 182, 190),
    (222, 202, 164),
    (166, 128, 116),
    (160, 178, 190),
)
_WALLS: tuple[RGB, ...] = (
    (224, 214, 198),
    (196, 214, 216),
    (222, 204, 210),
    (206, 216, 192),
    (214, 208, 226),
)
_FLOORS: tuple[RGB, ...] = ((186, 148, 108), (166, 130, 100), (176, 176, 180), (200, 170, 132))
IMAGES = "images"
INSTANCES = "instances.json"
CAPTIONS = "captions.json"
SCENE_GRAPHS = "scene_graphs.json"
INTERACTIONS = "hico.json"
INTERACTION_CLASSES = "hico_classes.json"

_SETTINGS = ".miniworld.json"
_MAX_IMAGES = 1_000_000
_MAX_IDS_PER_IMAGE = 100
_CAPTION_PURPOSE = 1
_JPEG_QUALITY = 92
_CATEGORY_IDS = {  # COCO's
    "person": 1, "bicycle": 2, "car": 3, "bench": 15, "bird": 16, "cat": 17, "dog": 18, "horse": 19, "umbrella": 28,
    "sports ball": 37, "kite": 38, "skateboard": 41, "cup": 47, "chair": 62, "dining table": 67,
}  # fmt: skip


@dataclass(frozen=True)
class RenderedScene:
    """An image, and float64 boxes [things, 4], xywh in pixels, and areas [things] of what is
    visible of its things.

    owners: uint8 [height, width], the 1-based number of the thing visible at each pixel; 0: none.
    """

    image: Image.Image
    boxes: np.ndarray
    areas: np.ndarray
    owners: np.ndarray


def render(scene: Scene) -> RenderedScene:
    """Return the image of a scene, and what it shows of each thing."""
    size = (scene.width * OVERSAMPLING, scene.height * OVERSAMPLING)
    rng = np.random.default_rng(scene.background_seed)
    image, ground = paint_background(
        size, scene.horizon * OVERSAMPLING, indoors=scene.indoors, rng=rng
    )
    labels = Image.new("L", size, 0)
    pen = ImageDraw.Draw(image)
    label_pen = ImageDraw.Draw(labels)
    first = 1
    for placed in scene.placed:
        layers = [(depth, 0, shapes) for depth, shapes in placed.group.extras]
        for number, actor in enumerate(placed.group.actors, first):
            _draw_shadow(pen, placed, actor, shade(ground, 0.8))
            parts = enumerate(actor.drawn()[0])  # a person's near arm is in front of what it holds
            layers += [(actor.depth + 0.5 * nearer, number, shapes) for nearer, shapes in parts]
        for _, label, shapes in sorted(layers, key=lambda layer: layer[0]):  # from far to near
            for shape in shapes:
                corners = _pixels(placed, shape.points).tolist()
                pen.polygon(corners, fill=shape.colour)
                label_pen.polygon(corners, fill=label)
        first += len(placed.group.actors)
    boxes = np.zeros((len(scene.things), 4))
    for thing in range(len(boxes)):
        bounds = labels.point([value == thing + 1 for value in range(256)]).getbbox()
        if bounds:
            left, top, right, bottom = bounds
            boxes[thing] = left, top, right - left, bottom - top
    areas = np.array(labels.histogram()[1 : len(boxes) + 1])
    middle = OVERSAMPLING // 2
    owners = np.asarray(labels)[middle::OVERSAMPLING, middle::OVERSAMPLING].copy()
    return RenderedScene(
        image.reduce(OVERSAMPLING), boxes / OVERSAMPLING, areas / OVERSAMPLING**2, owners
    )


def _pixels(placed: PlacedGroup, points: np.ndarray) -> np.ndarray:
    """Return points of a group in the oversampled image, from its top left corner: `[points * 2]`,
    x and y by turns.
    """
    flipped = -points if placed.mirrored else points.conj()
    pixels: np.ndarray = (flipped * placed.scale + complex(*placed.at)) * OVERSAMPLING
    return pixels.view(float)


def _draw_shadow(pen: ImageDraw.ImageDraw, placed: PlacedGroup, actor: Actor, colour: RGB) -> None:
    box = actor.extent()
    if actor.kind == "kite" or box.bottom > 1.0 or (box.bottom > 0.4 and not actor.airborne):
        return
    half = (box.right - box.left) * (0.336 if actor.kind == "umbrella" else 0.48)
    middle = complex((box.left + box.right) / 2, 0.0 if actor.airborne else max(actor.at.imag, 0.0))
    ends = _pixels(placed, np.array([middle - half - 0.06j, middle + half + 0.06j])).reshape(2, 2)
    pen.ellipse((*ends.min(0).tolist(), *ends.max(0).tolist()), fill=colour)


def paint_background(
    size: tuple[int, int], horizon: float, *, indoors: bool, rng: Generator
) -> tuple[Image.Image, RGB]:
    """Return a background, and the colour of its ground; the horizon is in pixels from the top."""
    if indoors:
        return _room(size, horizon, rng)
    places: tuple[Callable[[Image.Image, float, Generator], RGB], ...] = (
        _park,
        _park,
        _beach,
        _street,
        _snow,
    )
    sky = _gradient(size, *_SKIES[rng.integers(len(_SKIES))])
    place = places[rng.integers(len(places))]
    draw = ImageDraw.Draw(sky)
    width = size[0]
    for _ in range(rng.integers(0, 4)):  # clouds
        x = rng.uniform(0, width)
        y = rng.uniform(0.1, 0.7) * horizon
        radius = rng.uniform(0.025, 0.05) * width
        colour = vary(rng, (246, 248, 250), 5)
        for shift, rise, grow in (
            (-1.2, 0.2, 0.8),
            (0, 0, 1.1),
            (1.1, 0.25, 0.85),
            (2.0, 0.45, 0.5),
        ):
            cx = x + shift * radius
            cy = y + rise * radius
            part = radius * grow
            draw.ellipse((cx - part, cy - part * 0.7, cx + part, cy + part * 0.7), fill=colour)
    return sky, place(sky, horizon, rng)


def _gradient(size: tuple[int, int], top: RGB, bottom: RGB) -> Image.Image:
    column = np.linspace(top, bottom, size[1]).round().astype(np.uint8)[:, None]
    return Image.fromarray(column).resize(size, Image.Resampling.NEAREST)


def _ground(image: Image.Image, horizon: float, colour: RGB) -> None:
    """Paint the ground from the horizon down, lighter in the distance."""
    size = (image.width, image.height - int(horizon))
    image.paste(_gradient(size, shade(colour, 1.15), shade(colour, 0.92)), (0, int(horizon)))


def _park(image: Image.Image, horizon: float, rng: Generator) -> RGB:
    draw = ImageDraw.Draw(image)
    width, height = image.size
    grass = vary(rng, pick(rng, _GRASS), 8)
    for _ in range(rng.integers(1, 4)):
        x = rng.uniform(0, width)
        reach = rng.uniform(0.2, 0.5) * width
        rise = rng.uniform(0.1, 0.35) * horizon
        colour = vary(rng, shade(grass, 0.86), 10)
        draw.ellipse((x - reach, horizon - rise, x + reach, horizon + rise), fill=colour)
    for _ in range(rng.integers(0, 5)):  # trees
        x = rng.uniform(0, width)
        foot = horizon + rng.uniform(0, 0.04) * height
        high = height * rng.uniform(0.16, 0.36)
        leaf = vary(rng, (84, 136, 78), 18)
        draw.rectangle(
            (x - high * 0.06, foot - high * 0.5, x + high * 0.06, foot), fill=(118, 88, 62)
        )
        for shift, rise, grow in ((-0.21, 0.62, 0.8), (0.21, 0.6, 0.8), (0.0, 0.78, 1.0)):
            cx = x + shift * high
            cy = foot - high * rise
            part = 0.3 * high * grow
            draw.ellipse(
                (cx - part, cy - part, cx + part, cy + part), fill=shade(leaf, 0.92 + 0.1 * grow)
            )
    _ground(image, horizon, grass)
    for _ in range(rng.integers(4, 18)):  # flowers and tufts
        x = rng.uniform(0, width)
        y = rng.uniform(horizon + 6, height)
        size = height * 0.012
        if rng.random() < 0.25:
            petal = vary(rng, (244, 222, 170), 30)
            draw.ellipse(
                (x - size * 0.7, y - size * 0.7, x + size * 0.7, y + size * 0.7), fill=petal
            )
            continue
        for lean in (-0.6, 0.0, 0.6):
            blade = (x, y, x + lean * size, y - size * 1.5)
            draw.line(blade, fill=shade(grass, 0.78), width=max(int(size * 0.4), 1))
    return grass


def _beach(image: Image.Image, horizon: float, rng: Generator) -> RGB:
    draw = ImageDraw.Draw(image)
    width, height = image.size
    sand = vary(rng, pick(rng, _SAND), 6)
    sea = vary(rng, (64, 142, 178), 16)
    shore = horizon + rng.uniform(0.02, 0.07) * height
    draw.rectangle((0, horizon - 0.12 * height, width, shore), fill=sea)
    for _ in range(10):
        x = rng.uniform(0, width)
        y = rng.uniform(horizon - 0.11 * height, shore - 2)
        draw.line(
            (x, y, x + rng.uniform(0.03, 0.1) * width, y),
            fill=shade(sea, 1.25),
            width=max(height // 220, 1),
        )
    _ground(image, shore, sand)
    draw.rectangle((0, shore - height * 0.008, width, shore + height * 0.006), fill=(244, 248, 246))
    for _ in range(rng.integers(5, 25)):
        x = rng.uniform(0, width)
        y = rng.uniform(shore + 8, height)
        size = rng.uniform(0.002, 0.006) * width
        draw.ellipse((x - size, y - size * 0.5, x + size, y + size * 0.5), fill=shade(sand, 0.82))
    return sand


def _street(image: Image.Image, horizon: float, rng: Generator) -> RGB:
    draw = ImageDraw.Draw(image)
    width, height = image.size
    road = vary(rng, pick(rng, _STREET), 6)
    x = -rng.uniform(0, 0.1) * width
    while x < width:
        wide = rng.uniform(0.14, 0.26) * width
        high = rng.uniform(0.35, 0.9) * horizon
        wall = vary(rng, pick(rng, _HOUSES), 10)
        draw.rectangle((x, horizon - high, x + wide, horizon), fill=wall)
        draw.rectangle((x, horizon - high, x + wide, horizon - high * 0.95), fill=shade(wall, 0.75))
        rows = max(int(high / (wide * 0.36)), 1)
        pane = vary(rng, (122, 150, 172), 12) if rng.random() < 0.7 else (240, 218, 150)
        for row, column in product(range(rows), range(3)):
            left = x + wide * (0.12 + 0.29 * column)
            top = horizon - high * 0.88 + row * high * 0.88 / rows
            draw.rectangle((left, top, left + wide * 0.17, top + high * 0.5 / rows), fill=pane)
        x += wide + rng.choice([0.0, 0.04 * width])
    _ground(image, horizon, road)
    kerb = horizon + 0.05 * height
    draw.rectangle((0, horizon, width, kerb), fill=shade(road, 1.3))
    draw.rectangle((0, kerb, width, kerb + 0.01 * height), fill=shade(road, 0.8))
    return road


def _snow(image: Image.Image, horizon: float, rng: Generator) -> RGB:
    draw = ImageDraw.Draw(image)
    width, height = image.size
    snow = vary(rng, pick(rng, _SNOW), 4)
    for _ in range(rng.integers(2, 5)):
        x = rng.uniform(0, width)
        reach = rng.uniform(0.15, 0.35) * width
        rise = rng.uniform(0.2, 0.6) * horizon
        rock = vary(rng, (136, 150, 172), 12)
        draw.polygon([(x - reach, horizon), (x, horizon - rise), (x + reach, horizon)], fill=rock)
        cap = [
            (x - reach * 0.3, horizon - rise * 0.7),
            (x, horizon - rise),
            (x + reach * 0.3, horizon - rise * 0.7),
        ]
        cap += [(x + reach * 0.1, horizon - rise * 0.62), (x - reach * 0.12, horizon - rise * 0.6)]
        draw.polygon(cap, fill=(244, 246, 250))
    foot = horizon + 0.02 * height
    for _ in range(rng.integers(0, 5)):  # firs
        x = rng.uniform(0, width)
        high = height * rng.uniform(0.14, 0.28)
        green = vary(rng, (74, 112, 96), 12)
        draw.rectangle(
            (x - high * 0.04, foot - high * 0.2, x + high * 0.04, foot), fill=(104, 80, 62)
        )
        for low, half in ((0.12, 0.3), (0.38, 0.24), (0.62, 0.17)):
            left = (x - half * high, foot - low * high)
            right = (x + half * high, foot - low * high)
            draw.polygon([left, (x, foot - (low + 0.4) * high), right], fill=green)
    _ground(image, horizon, snow)
    return shade(snow, 0.94)


def _room(size: tuple[int, int], horizon: float, rng: Generator) -> tuple[Image.Image, RGB]:
    width, height = size
    wall = vary(rng, pick(rng, _WALLS), 8)
    floor = vary(rng, pick(rng, _FLOORS), 8)
    image = Image.new("RGB", size, wall)
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.4:
        step = width / rng.integers(10, 22)
        for x in np.arange(0, width, step * 2):
            draw.rectangle((x, 0, x + step, horizon), fill=shade(wall, 0.96))
    for x in rng.permutation([0.18, 0.5, 0.82])[: rng.integers(1, 4)] * width:  # what hangs there
        half = width * rng.uniform(0.06, 0.1)
        high = horizon * rng.uniform(0.3, 0.45)
        left = x - half
        top = horizon * rng.uniform(0.1, 0.25)
        right = x + half
        edge = width * 0.01
        bottom = top + high
        frame = vary(rng, (236, 232, 224), 8) if rng.random() < 0.6 else (140, 104, 72)
        draw.rectangle((left - edge, top - edge, right + edge, bottom + edge), fill=frame)
        if rng.random() < 0.5:
            draw.rectangle((left, top, right, bottom), fill=vary(rng, (166, 206, 230), 12))
            draw.rectangle((x - edge / 2, top, x + edge / 2, bottom), fill=frame)
            draw.rectangle(
                (left, top + high / 2 - edge / 2, right, top + high / 2 + edge / 2), fill=frame
            )
        else:
            draw.rectangle((left, top, right, bottom), fill=vary(rng, (150, 180, 160), 40))
            hill = [(left, bottom), (x - half * 0.2, top + high * 0.4), (right, bottom)]
            draw.polygon(hill, fill=vary(rng, (110, 130, 120), 30))
    _ground(image, horizon, floor)
    draw.rectangle((0, horizon - 0.03 * height, width, horizon), fill=shade(wall, 0.82))
    if rng.random() < 0.6:
        for row in np.linspace(0, 1, 6)[1:] ** 1.6:
            y = horizon + row * (height - horizon)
            draw.line((0, y, width, y), fill=shade(floor, 0.86), width=max(height // 240, 1))
    return image, floor


def render_dataset(
    out: Path,
    images: int,
    seed: int,
    split: str = "val",
    *,
    progress: Callable[[], None] | None = None,
) -> bool:
    """Render the first `images` images of a split into `out`, with their annotations.

    Writes `images/*.jpg`; `instances.json` and `captions.json` (COCO); `scene_graphs.json` (Visual
    Genome: the complete ground truth); `hico.json` (HOIA: relations whose subject is a person) and
    `hico_classes.json`. An image and its annotations depend only on the seed, the split and its
    number. The folder appears complete or not at all.

    Args:
        split: "train", "val", or "test-compositional", whose (subject, predicate, object)
            combinations never occur in the other splits.

    Returns:
        Whether anything was written; a set of the same settings is left as it is.

    Raises:
        UserError: there are more than a million images, or `out` contains another set or other
            files.
    """
    if images > _MAX_IMAGES:
        raise UserError(f"cannot render {images:,} images: at most {_MAX_IMAGES:,}")
    settings = {"images": images, "seed": seed, "split": split}
    if (out / _SETTINGS).is_file():
        existing = single_line((out / _SETTINGS).read_text("utf-8", "replace"))
        if existing != json.dumps(settings):
            raise UserError(
                f"{out} contains another set of the miniworld ({existing}); delete it, or name a"
                " new folder"
            )
        return False
    info = {
        "description": "sgpipe miniworld: drawn scenes with exact truth",
        "seed": seed,
        "split": split,
    }
    common = {"info": info, "licenses": [], "images": []}
    categories = [
        {"id": number, "name": name, "supercategory": name}
        for name, number in _CATEGORY_IDS.items()
    ]
    classes = {number: name for name, number in _CATEGORY_IDS.items()}
    files: dict[str, Any] = {
        INSTANCES: {**common, "annotations": [], "categories": categories},
        CAPTIONS: {**common, "annotations": []},
        SCENE_GRAPHS: [],
        INTERACTIONS: [],
        INTERACTION_CLASSES: {"objects": classes, "relations": dict(enumerate(PREDICATES, 1))},
    }
    with new_folder(out) as folder:
        (folder / IMAGES).mkdir()
        for number in range(images):
            scene = random_scene(seed, split, number)
            rendered = render(scene)
            rng = scene_generator(seed, split, number, _CAPTION_PURPOSE)
            _add(files, scene, rendered, scene_captions(scene, rng))
            path = folder / IMAGES / file_name(split, number)
            with add_filename(path):
                rendered.image.save(path, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
            if progress:
                progress()
        for name, content in (files | {_SETTINGS: settings}).items():
            write_text(folder / name, json.dumps(content))
    return True


def image_id(split: str, number: int) -> int:
    return (SPLITS.index(split) + 1) * _MAX_IMAGES + number


def file_name(split: str, number: int) -> str:
    """Return the file name of an image: its id, as in Visual Genome."""
    return f"{image_id(split, number)}.jpg"


def _add(
    files: dict[str, Any], scene: Scene, rendered: RenderedScene, sentences: list[SceneCaption]
) -> None:
    """Add an image to the files. Ids derive from the image id, not from the order.

    Of relationships, `implied` marks those that follow from others; interactions are facts whose
    subject is a person.
    """
    number = image_id(scene.split, scene.number)
    first = number * _MAX_IDS_PER_IMAGE
    image = {"image_id": number}
    file = {
        "file_name": file_name(scene.split, scene.number),
        "width": scene.width,
        "height": scene.height,
    }
    graph: dict[str, Any] = {**image, "objects": [], "relationships": []}
    interactions: dict[str, Any] = {**file, "annotations": [], "hoi_annotation": []}
    # The same list as that of the captions.
    files[INSTANCES]["images"].append({"id": number, **file})
    files[SCENE_GRAPHS].append(graph)
    files[INTERACTIONS].append(interactions)
    things = zip(scene.things, rendered.boxes.tolist(), rendered.areas.tolist(), strict=True)
    for index, (thing, (x, y, w, h), area) in enumerate(things, first):
        category = {"category_id": _CATEGORY_IDS[thing.kind]}
        instance = {
            "id": index,
            **image,
            **category,
            "bbox": [x, y, w, h],
            "area": area,
            "iscrowd": 0,
        }
        files[INSTANCES]["annotations"].append(instance)
        box = {"x": x, "y": y, "w": w, "h": h}
        graph["objects"].append({"object_id": index, **box, "names": thing.kind, "synsets": []})
        interactions["annotations"].append({"bbox": [x, y, x + w, y + h], **category})
    for index, (subject, predicate, object_, implied) in enumerate(scene.facts, first):
        ends = {"subject_id": first + subject, "object_id": first + object_, "implied": implied}
        graph["relationships"].append(
            {"relationship_id": index, "predicate": predicate, "synsets": [], **ends}
        )
        if scene.things[subject].kind == "person":
            interaction = {
                "subject_id": subject,
                "object_id": object_,
                "category_id": 1 + PREDICATES.index(predicate),
            }
            interactions["hoi_annotation"].append(interaction)
    for index, sentence in enumerate(sentences, first):
        files[CAPTIONS]["annotations"].append({"id": index, **image, "caption": sentence.text})
