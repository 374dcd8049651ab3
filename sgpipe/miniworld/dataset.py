"""Write a split of the miniworld: images, COCO instances and captions, Visual Genome scene graphs, HICO-DET labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError, add_filename
from sgpipe.miniworld.relations import PREDICATES, SPLITS
from sgpipe.miniworld.render import RenderedScene, render
from sgpipe.miniworld.scene import Scene, SceneCaption, random_scene, scene_captions, scene_generator
from sgpipe.utils.atomic import new_folder, write_text
from sgpipe.utils.console import single_line

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
    out: Path, images: int, seed: int, split: str = "val", *, progress: Callable[[], None] | None = None
) -> bool:
    """Render the first `images` images of a split into `out`, with their annotations.

    Writes `images/*.jpg`; `instances.json` and `captions.json` (COCO); `scene_graphs.json` (Visual Genome: the complete
    ground truth); `hico.json` (HOIA: relations whose subject is a person) and `hico_classes.json`. An image and its
    annotations depend only on the seed, the split and its number. The folder appears complete or not at all.

    Args:
        split: "train", "val", or "test-compositional", whose (subject, predicate, object) combinations never occur in
            the other splits.
        progress: called after each image.

    Returns whether anything was written; a set of the same settings is left as it is.

    Raises UserError: there are more than a million images, or `out` contains another set or other files.
    """
    if images > _MAX_IMAGES:
        raise UserError(f"cannot render {images:,} images: at most {_MAX_IMAGES:,}")
    settings = {"images": images, "seed": seed, "split": split}
    if (out / _SETTINGS).is_file():
        there = single_line((out / _SETTINGS).read_text("utf-8", "replace"))
        if there != json.dumps(settings):
            raise UserError(f"{out} contains another set of the miniworld ({there}); delete it, or name a new folder")
        return False
    with new_folder(out) as folder:
        (folder / IMAGES).mkdir()
        files = _empty_files(seed, split)
        for number in range(images):
            scene = random_scene(seed, split, number)
            rendered = render(scene)
            _add(files, scene, rendered, scene_captions(scene, scene_generator(seed, split, number, _CAPTION_PURPOSE)))
            path = folder / IMAGES / file_name(split, number)
            with add_filename(path):
                rendered.image.save(path, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
            if progress:
                progress()
        for name, content in (files | {_SETTINGS: settings}).items():
            write_text(folder / name, json.dumps(content))
    return True


def image_id(split: str, number: int) -> int:
    """Return the id of an image, unique across splits."""
    return (SPLITS.index(split) + 1) * _MAX_IMAGES + number


def file_name(split: str, number: int) -> str:
    """Return the file name of an image: its id, as in Visual Genome."""
    return f"{image_id(split, number)}.jpg"


def _empty_files(seed: int, split: str) -> dict[str, Any]:
    """Return the contents of all files by name, without images."""
    info = {"description": "sgpipe miniworld: drawn scenes with exact truth", "seed": seed, "split": split}
    common = {"info": info, "licenses": [], "images": []}
    categories = [{"id": number, "name": name, "supercategory": name} for name, number in _CATEGORY_IDS.items()]
    classes = {number: name for name, number in _CATEGORY_IDS.items()}
    return {
        INSTANCES: {**common, "annotations": [], "categories": categories},
        CAPTIONS: {**common, "annotations": []},
        SCENE_GRAPHS: [],
        INTERACTIONS: [],
        INTERACTION_CLASSES: {"objects": classes, "relations": dict(enumerate(PREDICATES, 1))},
    }


def _add(files: dict[str, Any], scene: Scene, rendered: RenderedScene, sentences: list[SceneCaption]) -> None:
    """Add an image to the files. Ids derive from the image id, not from the order.

    Of relationships, `implied` marks those that follow from others; interactions are facts whose subject is a person.
    """
    number = image_id(scene.split, scene.number)
    first, own = number * _MAX_IDS_PER_IMAGE, {"image_id": number}
    file = {"file_name": file_name(scene.split, scene.number), "width": scene.width, "height": scene.height}
    graph: dict[str, Any] = {**own, "objects": [], "relationships": []}
    interactions: dict[str, Any] = {**file, "annotations": [], "hoi_annotation": []}
    files[INSTANCES]["images"].append({"id": number, **file})  # the same list as that of the captions
    files[SCENE_GRAPHS].append(graph)
    files[INTERACTIONS].append(interactions)
    things = zip(scene.things, rendered.boxes.tolist(), rendered.areas.tolist(), strict=True)
    for index, (thing, (x, y, w, h), area) in enumerate(things, first):
        category = {"category_id": _CATEGORY_IDS[thing.kind]}
        instance = {"id": index, **own, **category, "bbox": [x, y, w, h], "area": area, "iscrowd": 0}
        files[INSTANCES]["annotations"].append(instance)
        box = {"x": x, "y": y, "w": w, "h": h}
        graph["objects"].append({"object_id": index, **box, "names": thing.kind, "synsets": []})
        interactions["annotations"].append({"bbox": [x, y, x + w, y + h], **category})
    for index, (subject, predicate, object_, implied) in enumerate(scene.facts, first):
        ends = {"subject_id": first + subject, "object_id": first + object_, "implied": implied}
        graph["relationships"].append({"relationship_id": index, "predicate": predicate, "synsets": [], **ends})
        if scene.things[subject].kind == "person":
            interaction = {"subject_id": subject, "object_id": object_, "category_id": 1 + PREDICATES.index(predicate)}
            interactions["hoi_annotation"].append(interaction)
    captions = ({"id": index, **own, "caption": each.text} for index, each in enumerate(sentences, first))
    files[CAPTIONS]["annotations"] += captions
