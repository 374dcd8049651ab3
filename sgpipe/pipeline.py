"""The pipeline in one process, for a few images; `sgpipe label` uses it.

```python
from sgpipe import Pipeline

graph = Pipeline()("image.jpg")
graph.draw().save("relations.png")
```

An image is a path, a PIL image, or a NumPy array of uint8: `[height, width]`, or `[height, width,
3]` in RGB order, or `[height, width, 4]` (RGBA).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from sgpipe.errors import (
    ImageError,
    UserError,
    check_share,
    existing_file,
    existing_model,
    import_extra,
)
from sgpipe.files.roots import FolderRoot
from sgpipe.images import from_array, open_row_image, read_size, upright_rgb
from sgpipe.recipe import (
    Recipe,
    StagePlan,
    check_options,
    load_recipe,
    models_of,
    resolved,
    with_model_folders,
)
from sgpipe.records import (
    FOLDER_DATASET,
    TRAINING_CONFIDENCE,
    Box,
    Caption,
    Record,
    Relation,
    deduplicate,
)
from sgpipe.sources.fields import escape_name, why_not_stored
from sgpipe.sources.vocabulary import category_names
from sgpipe.stages.base import Stage
from sgpipe.stages.build import build_stages
from sgpipe.stages.context import StageContext
from sgpipe.stages.detect import DetectStage, detector_classes
from sgpipe.stages.given_boxes import GivenBoxes, GivenBoxesStage, parse_boxes
from sgpipe.stages.own_stage import OwnStage, own_stages
from sgpipe.stages.pair import check_pair
from sgpipe.stages.tag.methods import check_tagger
from sgpipe.utils.atomic import temporary_folder
from sgpipe.utils.boxes import xywh_to_xyxy
from sgpipe.utils.console import count
from sgpipe.utils.devices import check_devices
from sgpipe.viz import draw_card, draw_relations, object_names, shown

if TYPE_CHECKING:
    import networkx as nx
    import supervision as sv

ImageInput: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"
ImageList: TypeAlias = "list[ImageInput] | tuple[ImageInput, ...]"
Scene = TypeVar("Scene", Image.Image, NDArray[np.uint8])

_ON_DEVICES = [name for name, config in Recipe().stages.items() if config.takes_device]
_SPLIT = "all"
_GIVEN = "coco"  # dataset of images with given boxes, which refer to the stored image as COCO's do
_ROOTS = {_SPLIT: FolderRoot(Path("/"))}
_WIDEST = 16_384


class RelationTriplet(NamedTuple):
    """A relation in words; if an image has several objects of a class, they are numbered ("dog
    2").
    """

    subject: str
    predicate: str
    object: str
    confidence: float | None


@dataclass(frozen=True)
class SceneGraph:
    """The objects, captions and relations of an image, and its size.

    `record` is the row as in shards; its parts are also attributes of the graph.
    """

    record: Record
    image: Image.Image | None = field(default=None, repr=False)  # None: read it from its file

    def __repr__(self) -> str:
        name = Path(self.record.file_name).name
        record = self.record
        if record.error is not None:
            return f"<SceneGraph of {name!r}: {record.error}>"
        objects = count(len(record.objects), "object")
        captions = count(len(record.captions), "caption")
        relations = count(len(record.relations), "relation")
        return f"<SceneGraph of {name!r}: {objects}, {captions}, {relations}>"

    @property
    def objects(self) -> list[Box]:
        """The objects, each with its class and its box (xywh in pixels)."""
        return self.record.objects

    @property
    def captions(self) -> list[Caption]:
        """The captions of the image, its boxes and its pairs of boxes."""
        return self.record.captions

    @property
    def relations(self) -> list[Relation]:
        """All relations, of any confidence; their ends are indices of `objects`. In words:
        `triplets`.
        """
        return self.record.relations

    @property
    def width(self) -> int:
        """The width of the image in pixels; 0: it cannot be read."""
        return self.record.width

    @property
    def height(self) -> int:
        """The height of the image in pixels; 0: it cannot be read."""
        return self.record.height

    @property
    def error(self) -> str | None:
        """Why the image has no objects and relations, or None."""
        return self.record.error

    def triplets(self, threshold: float = TRAINING_CONFIDENCE) -> list[RelationTriplet]:
        """Return the relations with at least this confidence, the most confident first.

        Raises UserError, as the other methods: the threshold is not a number from 0 to 1.
        """
        names = object_names(self.record.objects)
        relations = self._relations(threshold)
        return [
            RelationTriplet(names[r.subject], r.predicate, names[r.object], r.confidence)
            for r in relations
        ]

    def _relations(self, threshold: float) -> list[Relation]:
        check_share("threshold", threshold)
        return shown(self.record.relations, threshold, len(self.record.relations))

    @property
    def _xyxy(self) -> NDArray[np.float64]:
        """The boxes of the objects: `[objects, 4]`, in pixels."""
        return xywh_to_xyxy(np.array([box.bbox for box in self.objects], float).reshape(-1, 4))

    def draw(
        self, threshold: float = TRAINING_CONFIDENCE, width: int = 960, limit: int = 30
    ) -> Image.Image:
        """Return the image with at most `limit` relations drawn on it and listed below, the most
        confident first.

        The image is grey if its file can no longer be read.

        Raises:
            UserError: `width` is not 1 to 16,384 pixels, or `limit` is negative.
        """
        if not 1 <= width <= _WIDEST:
            raise UserError(f"width={width}: expected 1 to {_WIDEST:,} pixels")
        if limit < 0:
            raise UserError(f"limit={limit}: expected a number of relations, 0 or more")
        image = self.image
        record = self.record
        if image is None:
            with suppress(ImageError):
                image = open_row_image(
                    _ROOTS, replace(record, split=_SPLIT, file_name=record.file_name.lstrip("/"))
                )
        return draw_card(image, record, self._relations(threshold)[:limit], width)

    def as_json(self) -> dict[str, object]:
        """Return the record as in shards; `file_name` is the full path of the image."""
        record = asdict(self.record)
        del record["mentions"]  # shards do not have them
        return record

    def to_networkx(self, threshold: float = TRAINING_CONFIDENCE) -> nx.MultiDiGraph:
        """Return the graph, with an edge for each relation of at least this confidence, whose key
        is the predicate.

        Nodes are the indices of `objects`, with `category`, `bbox` (xyxy in pixels) and, if a
        detector found the boxes, `score`. Edges have `confidence`, None for ground truth. The graph
        has `file_name`, `width` and `height`.
        """
        record = self.record
        size = {"width": record.width, "height": record.height}
        graph = import_extra("networkx").MultiDiGraph(file_name=record.file_name, **size)
        for index, (box, xyxy) in enumerate(zip(self.objects, self._xyxy.tolist(), strict=True)):
            graph.add_node(index, category=box.category, bbox=tuple(xyxy))
            if box.score is not None:
                graph.nodes[index]["score"] = box.score
        for relation in deduplicate(self._relations(threshold)):
            graph.add_edge(
                relation.subject,
                relation.object,
                relation.predicate,
                confidence=relation.confidence,
            )
        return graph

    def to_supervision(self, threshold: float = TRAINING_CONFIDENCE) -> sv.Detections:
        """Return the objects as detections of supervision; `metadata["relations"]` are those of
        this confidence.

        `data` has the `class_name` of each detection and its `object_index` in `objects`. The ends
        of relations are such indices, so that they stay valid when detections are filtered.
        `confidence` is None if no detector found the boxes. The missing objects of V-COCO are left
        out.
        """
        things = [index for index, box in enumerate(self.objects) if not box.is_nothing]
        indices = np.array(things, int)
        scores = [box.score for box in self.objects]
        has_scores = bool(scores) and None not in scores
        names = np.array([box.category for box in self.objects], str)
        return import_extra("supervision").Detections(
            xyxy=self._xyxy[indices],
            confidence=np.array(scores, np.float32)[indices] if has_scores else None,
            class_id=np.array([box.category_id for box in self.objects], int)[indices],
            data={"class_name": names[indices], "object_index": indices},
            metadata={"relations": self._relations(threshold)},
        )


class RelationAnnotator:
    """Draws detections and the relations between them, as the annotators of supervision do."""

    def annotate(
        self, scene: Scene, detections: sv.Detections, relations: Sequence[Relation] | None = None
    ) -> Scene:
        """Return a copy of the image with boxes and arrows.

        Args:
            scene: a PIL image, or an array of uint8 `[height, width, 3]` in BGR order, as OpenCV
                reads it.
            detections: those of `SceneGraph.to_supervision`, or some of them; relations to others
                are not drawn.
            relations: None: those in the metadata of the detections. For detections of other
                origin, their ends are positions in `detections`.
        """
        if not isinstance(scene, Image.Image):
            image = Image.fromarray(np.ascontiguousarray(scene[:, :, ::-1]))
            annotated = self.annotate(image, detections, relations)
            return np.ascontiguousarray(np.asarray(annotated)[:, :, ::-1])
        total = len(detections)
        names = detections.data.get("class_name", [""] * total)
        indices = detections.data.get("object_index", range(total))
        places = {int(index): place for place, index in enumerate(indices)}
        boxes = []
        for name, (left, top, right, bottom) in zip(names, detections.xyxy.tolist(), strict=True):
            boxes.append(Box(str(name), 0, (left, top, right - left, bottom - top)))
        if relations is None:
            relations = detections.metadata.get("relations", ())
        placed = []
        for relation in relations:
            if relation.subject in places and relation.object in places:
                subject = places[relation.subject]
                placed.append(replace(relation, subject=subject, object=places[relation.object]))
        size = max(scene.width, scene.height / 1.5)  # where `draw_relations` keeps the size
        return draw_relations(scene, Record("", "", "", "", *scene.size, boxes), placed, size)


class Pipeline:
    """Detects, captions, parses, pairs and tags images one by one, with the stages of `sgpipe
    generate`.

    It can be pickled, for `multiprocessing` or Ray: the other process loads the models on its first
    image. Pass absolute paths if it has another working folder.
    """

    def __init__(
        self,
        recipe: str | Path | Recipe = "miniworld",
        *,
        detector: str | Path | None = None,
        captioner: str | Path | None = None,
        tagger: str | Path | None = None,
        boxes: str | Path | None = None,
        device: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            recipe: a packaged recipe ("miniworld", "folder", "coco"), a YAML file, or a loaded
                recipe. Its source is ignored.
            detector, captioner, tagger: folder or hub id of models that replace those of the
            recipe.
            boxes: a COCO instances file with boxes that replace the detector; images are matched by
                file name. Boxes can also be given with each image.
            device: where the models compute: auto, cpu, cuda or cuda:N; None: as the recipe says.
            settings: other settings of the recipe, such as {"tag.threshold": 0.1}.
        """
        if not isinstance(boxes, str | os.PathLike | None):
            raise UserError(
                "boxes=: expected a COCO instances file; pass the boxes of an image with the image"
            )
        models = {"detect.detector": detector, "caption.captioner": captioner, "tag.tagger": tagger}
        changes = _changes(models, device, settings or {})
        if not isinstance(recipe, Recipe):
            recipe = load_recipe(recipe, changes)
        elif changes:
            raise UserError(
                "models and settings cannot be given with a loaded recipe: change the recipe"
                " instead"
            )
        self.recipe = with_model_folders(resolved(recipe))
        _check_recipe(self.recipe)
        self._boxes = existing_file(Path(boxes)) if boxes else None
        self._others: tuple[dict[str, int], list[Stage]] = {}, []

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs to load the models again."""
        return {"recipe": self.recipe, "boxes": self._boxes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.recipe = state["recipe"]
        self._boxes = state["boxes"]
        self._others = {}, []

    @overload
    def __call__(
        self,
        image: ImageInput,
        *,
        boxes: ArrayLike | None = None,
        classes: Sequence[str] | None = None,
    ) -> SceneGraph: ...

    @overload
    def __call__(
        self,
        image: ImageList,
        *,
        boxes: Sequence[ArrayLike | None] | None = None,
        classes: Sequence[Sequence[str] | None] | None = None,
    ) -> list[SceneGraph]: ...

    def __call__(
        self, image: Any, *, boxes: Any = None, classes: Any = None
    ) -> SceneGraph | list[SceneGraph]:
        """Return the scene graph of an image, or those of a list of images, in order; each depends
        only on its image.

        Args:
            boxes: `[boxes, 4]` as x1, y1, x2, y2 in pixels of the image as displayed (turned as
                EXIF says); no detector runs. For a list of images, a list with the boxes of each;
                None: those of the detector.
            classes: the class name of each box; for a list of images, a list for each.

        Raises:
            ImageError: the image cannot be used. In a list, it gets a graph whose `error` says why
                instead.
            UserError: a model cannot be used, or boxes: of another shape or number, not finite,
                outside the image.
        """
        if isinstance(image, list | tuple):
            boxes = [None] * len(image) if boxes is None else list(boxes)
            classes = [None] * len(image) if classes is None else list(classes)
            if not len(boxes) == len(classes) == len(image):
                expected = f"a list with an entry for each of {count(len(image), 'image')}"
                raise UserError(f"boxes=, classes=: expected {expected}")
            where = [f" of image {number}" for number in range(len(image))]
            return list(self._label(image, list(map(parse_boxes, boxes, classes, where))))
        [graph] = self._label([image], [parse_boxes(boxes, classes)])
        if graph.error is not None:
            raise ImageError(graph.error.partition(": ")[2])
        return graph

    def label(self, images: Iterable[ImageInput]) -> Iterator[SceneGraph]:
        """Return the scene graphs of images, one by one and in order; of one that cannot be used,
        `error` says why.

        Raises:
            UserError: a model cannot be used, or this is a single image.
        """
        is_array = isinstance(images, np.ndarray) and images.ndim < 4
        if is_array or isinstance(images, str | os.PathLike | Image.Image):
            raise UserError(
                f"label: expected several images, got {type(images).__name__}; pipeline(image)"
                " labels one"
            )
        return self._label(images, repeat(None))

    def _label(
        self, images: Iterable[ImageInput], boxes_of_images: Iterable[GivenBoxes | None]
    ) -> Iterator[SceneGraph]:
        for image, boxes in zip(images, boxes_of_images, strict=False):
            try:
                source = _to_file(image)
                if isinstance(source, Path):
                    yield SceneGraph(self._label_file(source, boxes))
                else:
                    yield SceneGraph(self._label_pixels(source, boxes), source)
            except ImageError as error:
                record = Record("", FOLDER_DATASET, _SPLIT, "", 0, 0)
                record.fail("source", str(error))
                yield SceneGraph(record)

    def _label_pixels(self, image: Image.Image, boxes: GivenBoxes | None) -> Record:
        """Label an image in memory, by way of a file, which stages read."""
        if self._boxes and boxes is None:
            raise ImageError(
                f"an image in memory has no name to find in {self._boxes}: pass its boxes with it"
            )
        with temporary_folder() as folder:
            file = folder / f"{hashlib.sha256(image.tobytes()).hexdigest()[:16]}.png"
            image.save(file)
            record = self._label_file(file, boxes)
        record.file_name = file.name
        return record

    def _label_file(self, file: Path, boxes: GivenBoxes | None) -> Record:
        """Label a file as `sgpipe generate` does: as one of a folder, or as annotated if a file has
        its boxes.
        """
        root = _ROOTS[_SPLIT]
        name = str(file.relative_to("/"))
        annotated = self._boxes is not None and boxes is None
        dataset = _GIVEN if annotated else FOLDER_DATASET
        record = Record(escape_name(file.name), dataset, _SPLIT, name, 0, 0)
        try:
            reason = why_not_stored(str(file))
            if reason:
                raise ImageError(reason)
            record.width, record.height = read_size(root, name, upright=not annotated)
            for stage in self._stages(record, boxes):
                [record] = stage([record])
        except ImageError as error:
            record.fail("source", str(error))
        record.file_name = escape_name(str(file))
        return record

    def _stages(self, record: Record, boxes: GivenBoxes | None) -> list[Stage]:
        """Return what is left to do for a record, which gets its boxes if they are given. Models
        are loaded once.
        """
        if boxes is None:
            return [*filter(None, [self._finder]), *self._after_finder, *self._labellers]
        record.objects = boxes.objects(record.width, record.height)
        new = sorted(set(boxes.classes) - set(self._classes))
        classes = self._classes | {
            name: number for number, name in enumerate(new, len(self._classes) + 1)
        }
        if new and classes != self._others[0]:
            self._others = classes, [stage.with_classes(classes) for stage in self._labellers]
        return self._others[1] if new else self._labellers

    @cached_property
    def _finder(self) -> DetectStage | GivenBoxesStage | None:
        """Finds boxes; None: only words get some.

        Raises:
            UserError: nothing finds any, or it cannot be loaded.
        """
        if self._boxes is None and self.recipe.detect.detector is None:
            if self.recipe.ground.detector is not None:
                return None
            raise UserError(
                "detect.detector is not set (--detector), and no boxes are given (--boxes)"
            )
        stage = (
            GivenBoxesStage(self._boxes) if self._boxes else DetectStage(self.recipe.detect, _ROOTS)
        )
        stage.setup()
        return stage

    @cached_property
    def _after_finder(self) -> list[OwnStage]:
        """The stages of the user's own that run after the detector."""
        finder = self._finder
        if not isinstance(finder, DetectStage):
            return []
        plan = StagePlan.of_recipe(self.recipe)
        stages = own_stages(finder, StageContext(plan.detect, plan, _ROOTS, self._classes))
        for stage in stages:
            stage.setup()
        return stages

    @cached_property
    def _classes(self) -> dict[str, int]:
        """The ids of the classes of boxes without other ones: of the file, the detector, or else
        the recipe's data.
        """
        if self._boxes and isinstance(self._finder, GivenBoxesStage):
            return self._finder.classes
        if self.recipe.detect.detector is not None:
            return {
                name: number for number, name in enumerate(detector_classes(self.recipe.detect), 1)
            }
        return {name: number for number, name in category_names(self.recipe.source.format).items()}

    @cached_property
    def _labellers(self) -> list[Stage]:
        """What is done for images with boxes of `_classes`."""
        plan = StagePlan.of_recipe(self.recipe, skipped={"detect"})
        stages = build_stages(plan, _ROOTS, self._classes)
        for stage in stages:
            stage.setup()
        return stages


def _changes(
    models: Mapping[str, str | Path | None], device: str | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of a recipe that arguments change, by name.

    Args:
        models: by the setting that names each.
        device: of all models.
        settings: the user's, which win.
    """
    changes: dict[str, Any] = {}
    if device is not None:
        changes |= {f"{stage}.device": device for stage in _ON_DEVICES}
    if models["detect.detector"] is not None:  # the classes in the recipe are of its own detector
        changes["detect.classes"] = None
    changes |= {setting: str(model) for setting, model in models.items() if model is not None}
    return changes | dict(settings)


def _check_recipe(recipe: Recipe) -> None:
    """Check that a recipe can label images here.

    Raises:
        UserError: a device or a model is missing, or settings do not fit together.
    """
    for name in _ON_DEVICES:
        stage = recipe.stages[name]
        settings = (f"{name}.device", f"{name}.resources.gpus")
        check_devices(stage.device, stage.resources.gpus or 0, 1, settings)
    if recipe.needs_captions:
        raise UserError("caption.captioner is not set (--captioner)")
    check_pair(recipe.pair)
    check_tagger(recipe.tag, recipe.pair)
    for name, stage in recipe.stages.items():
        check_options(stage)
        if stage.has_engine:
            raise UserError(
                f"{name}.engine is for `sgpipe generate`, plan and score: start a server, and set"
                f" {name}.endpoint instead"
            )
    for model in models_of(recipe).values():
        existing_model(model)


def _to_file(image: ImageInput) -> Path | Image.Image:
    """Return an input as the absolute path of a file, or as an upright RGB image.

    The path has no "..", which file names of records must not contain; a symbolic link keeps its
    name.

    Raises:
        ImageError: it is neither.
    """
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    if isinstance(image, np.ndarray):
        return upright_rgb(from_array(image))
    if not isinstance(image, str | os.PathLike):
        raise ImageError(
            f"{type(image).__name__} is not an image: expected a path, a PIL image or a NumPy array"
        )
    name = os.fsdecode(image)
    if "://" in name or "\0" in name:
        raise ImageError(
            f"image file not found: {name!r} is not a path; download images from the web first"
        )
    return Path(os.path.realpath(Path(name).parent)) / Path(name).name
