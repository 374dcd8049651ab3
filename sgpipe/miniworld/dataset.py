"""Write a split of the miniworld: images, COCO instances and captions, Visual Genome scene graphs, HICO-DET labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError, add_filename
from sgpipe.miniworld.captions import SceneCaption, scene_captions
from sgpipe.miniworld.relations import PREDICATES, SPLITS
from sgpipe.miniworld.render import RenderedScene, render
from sgpipe.miniworld.scene import Scene, random_scene, scene_generator
from sgpipe.utils import LARGEST_SEED
from sgpipe.utils.atomic import write_text
from sgpipe.utils.locking import new_folder

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


def render_dataset(
    out: Path,
    images: int,
    seed: int,
    split: str = "val",
    *,
    captions: int = 5,
    progress: Callable[[], None] | None = None,
) -> bool:
    """Render the first `images` images of a split into `out`, with their annotations.

    Writes `images/*.jpg`; `instances.json` and `captions.json` (COCO); `scene_graphs.json` (Visual Genome: the complete
    ground truth); `hico.json` (HOIA: relations whose subject is a person) and `hico_classes.json`. An image and its
    annotations depend only on the seed, the split and its number. The folder appears complete or not at all.

    Args:
        split: "train", "val", or "test-compositional", whose (subject, predicate, object) combinations never occur in
            the other splits.
        captions: maximum number of captions per image. progress: called after each image.

    Returns whether anything was written; a set of the same settings is left as it is.

    Raises UserError: a number is out of range, the split is unknown, or `out` contains another set or other files.
    """
    if split not in SPLITS:
        raise UserError(f"the miniworld has no split {split!r}: expected one of {', '.join(SPLITS)}")
    if not 1 <= images <= _MAX_IMAGES:
        raise UserError(f"cannot render {images} images: expected 1 to {_MAX_IMAGES:,}")
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed {seed}: expected a number from 0 to {LARGEST_SEED}")
    settings = {"images": images, "seed": seed, "split": split, "captions": captions}
    if (out / _SETTINGS).is_file():
        try:
            there = dict(json.loads((out / _SETTINGS).read_text("utf-8")))
        except (ValueError, TypeError):
            raise UserError(f"{out / _SETTINGS} is damaged: delete {out}, or name a new folder") from None
        if there != settings:
            named = ", ".join(f"{name} {value}" for name, value in there.items())
            raise UserError(f"{out} contains another set of the miniworld ({named}); delete it, or name a new folder")
        if not all((out / IMAGES / file_name(split, number)).is_file() for number in range(images)):
            raise UserError(f"{out} lacks some of its images: delete it, and run the same command again")
        return False
    with new_folder(out) as folder:
        (folder / IMAGES).mkdir()
        annotations = Annotations(seed, split)
        for number in range(images):
            scene = random_scene(seed, split, number)
            rendered = render(scene)
            sentences = scene_captions(scene, scene_generator(seed, split, number, _CAPTION_PURPOSE), captions)
            annotations.add(scene, rendered, sentences)
            path = folder / IMAGES / file_name(split, number)
            with add_filename(path):
                rendered.image.save(path, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
            if progress:
                progress()
        for name, content in (annotations.files() | {_SETTINGS: settings}).items():
            write_text(folder / name, json.dumps(content))
    return True


def image_id(split: str, number: int) -> int:
    """Return the id of an image, unique across splits."""
    return (SPLITS.index(split) + 1) * _MAX_IMAGES + number


def file_name(split: str, number: int) -> str:
    """Return the file name of an image: its id, as in Visual Genome."""
    return f"{image_id(split, number)}.jpg"


Item = dict[str, Any]


class Annotations:
    """Collects the annotations of images. Ids derive from the image id, not from the order."""

    def __init__(self, seed: int, split: str) -> None:
        self._info = {"description": "sgpipe miniworld: drawn scenes with exact truth", "seed": seed, "split": split}
        self.images, self.instances, self.captions = list[Item](), list[Item](), list[Item]()
        self.graphs, self.interactions = list[Item](), list[Item]()

    def add(self, scene: Scene, rendered: RenderedScene, sentences: list[SceneCaption]) -> None:
        number = image_id(scene.split, scene.number)
        first = number * _MAX_IDS_PER_IMAGE
        self.images.append({"id": number, **_file(scene)})
        boxes = zip(scene.things, rendered.boxes.tolist(), rendered.areas.tolist(), strict=True)
        for index, (thing, box, area) in enumerate(boxes, first):
            category = {"image_id": number, "category_id": _CATEGORY_IDS[thing.kind]}
            self.instances.append({"id": index, **category, "bbox": box, "area": area, "iscrowd": 0})
        for index, sentence in enumerate(sentences, first):
            self.captions.append({"id": index, "image_id": number, "caption": sentence.text})
        self.graphs.append(_scene_graph(scene, rendered, number, first))
        self.interactions.append(_interactions(scene, rendered))

    def files(self) -> dict[str, Any]:
        """Contents by file name."""
        categories = [{"id": number, "name": name, "supercategory": name} for name, number in _CATEGORY_IDS.items()]
        common = {"info": self._info, "licenses": [], "images": self.images}
        return {
            INSTANCES: {**common, "annotations": self.instances, "categories": categories},
            CAPTIONS: {**common, "annotations": self.captions},
            SCENE_GRAPHS: self.graphs,
            INTERACTIONS: self.interactions,
            INTERACTION_CLASSES: {
                "objects": {number: name for name, number in _CATEGORY_IDS.items()},
                "relations": dict(enumerate(PREDICATES, 1)),
            },
        }


def _file(scene: Scene) -> dict[str, Any]:
    return {"file_name": file_name(scene.split, scene.number), "width": scene.width, "height": scene.height}


def _scene_graph(scene: Scene, rendered: RenderedScene, number: int, first: int) -> dict[str, Any]:
    """Return the scene graph of an image; `implied` marks relationships that follow from others."""
    objects = [
        {"object_id": first + index, "x": x, "y": y, "w": w, "h": h, "names": thing.kind, "synsets": []}
        for index, (thing, (x, y, w, h)) in enumerate(zip(scene.things, rendered.boxes.tolist(), strict=True))
    ]
    relationships = [
        {
            **{"relationship_id": first + index, "predicate": fact.predicate, "synsets": []},
            **{"subject_id": first + fact.subject, "object_id": first + fact.object, "implied": fact.implied},
        }
        for index, fact in enumerate(scene.facts)
    ]
    return {"image_id": number, "objects": objects, "relationships": relationships}


def _interactions(scene: Scene, rendered: RenderedScene) -> dict[str, Any]:
    """Return the facts of an image whose subject is a person, in HOIA form, with all boxes in pixel xyxy."""
    return {
        **_file(scene),
        "annotations": [
            {"bbox": [x, y, x + w, y + h], "category_id": _CATEGORY_IDS[thing.kind]}
            for thing, (x, y, w, h) in zip(scene.things, rendered.boxes.tolist(), strict=True)
        ],
        "hoi_annotation": [
            {"subject_id": fact.subject, "object_id": fact.object, "category_id": 1 + PREDICATES.index(fact.predicate)}
            for fact in scene.facts
            if scene.things[fact.subject].kind == "person"
        ],
    }
