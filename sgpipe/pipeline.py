"""The pipeline in one process, for a few images; `sgpipe label` uses it.

```python
from sgpipe import Pipeline

graph = Pipeline()("image.jpg")
graph.draw().save("relations.png")
```
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from PIL import Image

from sgpipe.errors import UserError
from sgpipe.images import ImageError, decode, is_upright, read_size, read_upright_size, upright_rgb
from sgpipe.recipe import MINIWORLD, Recipe, load_recipe, with_packaged_models
from sgpipe.records import FOLDER_DATASET, TRAINING_CONFIDENCE, Box, Caption, Record
from sgpipe.sources.annotated import replace_surrogates
from sgpipe.stages.base import Stage
from sgpipe.stages.build import build_stages
from sgpipe.stages.detect.detectors import detector_classes
from sgpipe.stages.detect.stage import DetectStage, GivenBoxesStage
from sgpipe.viz.draw_relations import draw_card, object_names, shown

ImageInput: TypeAlias = "str | Path | Image.Image"

_SPLIT = "all"
_GIVEN = "coco"  # dataset of images with given boxes, which refer to the stored image as COCO's do
_ROOTS = {_SPLIT: Path("/")}  # images may be anywhere
_WIDTH, _MAX_RELATIONS = 960, 30


class RelationTriplet(NamedTuple):
    """A relation in words; if an image has several objects of a class, they are numbered ("dog 2")."""

    subject: str
    predicate: str
    object: str
    confidence: float | None


@dataclass(frozen=True)
class SceneGraph:
    """The objects, captions and relations of an image. `error` says why there are none, or is None."""

    record: Record
    image: Image.Image | None = None  # None: read it from its file

    @property
    def objects(self) -> list[Box]:
        return self.record.objects

    @property
    def captions(self) -> list[Caption]:
        return self.record.captions

    @property
    def error(self) -> str | None:
        return self.record.error

    def triplets(self, threshold: float = TRAINING_CONFIDENCE) -> list[RelationTriplet]:
        """The relations with at least this confidence, the most confident first."""
        names = object_names(self.record.objects)
        relations = shown(self.record.relations, threshold, len(self.record.relations))
        return [RelationTriplet(names[r.subject], r.predicate, names[r.object], r.confidence) for r in relations]

    def draw(
        self, threshold: float = TRAINING_CONFIDENCE, width: int = _WIDTH, most: int = _MAX_RELATIONS
    ) -> Image.Image:
        """The image with at most `most` relations drawn on it and listed below, the most confident first.

        The image is grey if its file can no longer be read.
        """
        relations = shown(self.record.relations, threshold, most)
        return draw_card(self.image or self._open(), self.record, relations, width)

    def _open(self) -> Image.Image | None:
        name, size = self.record.file_name, (self.record.width, self.record.height)
        try:
            return decode(Path(name), size, name, upright=is_upright(self.record.dataset))
        except ImageError:
            return None

    def as_json(self) -> dict[str, Any]:
        """The record as in shards; `file_name` is the full path of the image."""
        return asdict(self.record) | {"file_name": replace_surrogates(self.record.file_name)}


class Pipeline:
    """Detects, captions, parses, pairs and tags images one by one, with the stages of `sgpipe generate`."""

    def __init__(
        self,
        recipe: str | Recipe = "miniworld",
        *,
        detector: str | Path | None = None,
        captioner: str | Path | None = None,
        tagger: str | Path | None = None,
        boxes: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            recipe: a packaged recipe ("miniworld", "folder", "coco"), a YAML file, or a loaded recipe. Its source is
                ignored.
            detector, captioner, tagger: folder or hub id of models that replace those of the recipe.
            boxes: a COCO instances file with boxes that replace the detector; images are matched by file name.
            settings: other settings of the recipe, such as {"tag.threshold": 0.1}.

        Raises:
            UserError: the recipe or a file is invalid, or a model is missing.
        """
        given = {"detect.detector": detector, "caption.captioner": captioner, "tag.tagger": tagger}
        changes = {key: str(value) for key, value in given.items() if value is not None} | dict(settings or {})
        if detector is not None:
            changes.setdefault("detect.classes", None)  # the classes in the recipe are those of its detector
        if isinstance(recipe, str):
            recipe = load_recipe(recipe, changes)
        elif changes:
            raise UserError("models and settings cannot be given with a loaded recipe: change the recipe instead")
        self.uses_miniworld_models = MINIWORLD in (recipe.caption.captioner, recipe.tag.tagger)
        self.recipe = with_packaged_models(recipe)
        for value, what in ((self.recipe.caption.captioner, "captioner"), (self.recipe.tag.tagger, "tagger")):
            if value is None:
                raise UserError(f"no {what}: give --{what} FOLDER_OR_ID")
        self._boxes = Path(boxes) if boxes else None
        if self._boxes is None and self.recipe.detect.detector is None:
            raise UserError("no boxes: give --detector FOLDER_OR_ID or --boxes FILE")

    def __call__(self, image: ImageInput) -> SceneGraph:
        """The scene graph of an image file, or of an image in memory. Raises UserError: a model cannot be used."""
        [graph] = self.label([image])
        return graph

    def label(self, images: Iterable[ImageInput]) -> Iterator[SceneGraph]:
        """The scene graphs, in order; each depends only on its own image. Raises UserError: a model cannot be used."""
        for image in images:
            if isinstance(image, Image.Image):
                yield self._label_image(image)
            else:
                yield SceneGraph(self._label_file(_absolute_path(Path(image))))

    def _label_image(self, given: Image.Image) -> SceneGraph:
        """Label an image in memory, from a temporary file: stages read files."""
        try:
            image = upright_rgb(given)
        except ImageError as error:
            return SceneGraph(_failed(Record("", FOLDER_DATASET, _SPLIT, "", 0, 0), error))
        with tempfile.TemporaryDirectory(prefix="sgpipe-") as folder:
            file = Path(folder) / f"{hashlib.sha256(image.tobytes()).hexdigest()[:16]}.png"
            image.save(file)
            record = self._label_file(file)
        record.file_name = file.name
        return SceneGraph(record, image)

    def _label_file(self, file: Path) -> Record:
        """Label a file as `sgpipe generate` does: as one of a folder, or as an annotated image if boxes are given."""
        root, name = _ROOTS[_SPLIT], str(file.relative_to("/"))
        dataset, measure = (_GIVEN, read_size) if self._boxes else (FOLDER_DATASET, read_upright_size)
        record = Record(replace_surrogates(file.name), dataset, _SPLIT, name, 0, 0)
        try:
            record.width, record.height = measure(root, name)
        except ImageError as error:
            _failed(record, error)
        record = self._run(record)
        record.file_name = str(file)
        return record

    @cached_property
    def _stages(self) -> list[Stage]:
        first: DetectStage | GivenBoxesStage
        if self._boxes:
            first = GivenBoxesStage(self._boxes)
            names = first.classes
        else:
            first, names = DetectStage(self.recipe.detect, _ROOTS), detector_classes(self.recipe.detect)
        stages = [first, *build_stages(self.recipe, _ROOTS, names)]
        for stage in stages:
            stage.setup()
        return stages

    def _run(self, record: Record) -> Record:
        records = [record]
        for stage in self._stages:
            records = stage(records)
        return records[0]


def _absolute_path(file: Path) -> Path:
    """The absolute path without "..", which file names of records must not contain; a symbolic link keeps its name."""
    return Path(os.path.realpath(file.parent)) / file.name


def _failed(record: Record, error: ImageError) -> Record:
    record.fail("source", str(error))
    return record
