"""What a network predicts, and for which images: those of shards, also without relations, which training leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from rlip_model.evaluation.inputs import PredictedPairs
from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.locations import Location, opened_ahead
from sgpipe.images import open_row_image
from sgpipe.sources.annotated import DatasetClasses
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import IMAGE_COLUMN, open_shard, read_row_group

PERSON = "person"
Task = Literal["hoi", "zero-shot hoi", "scene graph"]
_NAMES = ("image_id", "dataset", "split", "file_name", "width", "height")
_COLUMNS = (*_NAMES, "status", "error")


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How a network runs.

    Args:
        batch: images per batch; `threads` read them.
        sides: shorter and longer side of the resized images, in pixels; None: as in the network's training.
        device: auto, cpu (whatever `gpus` says), cuda, or cuda:N for a single process.
        workers: processes that predict; more than one run on Ray.
        gpus: GPUs per process, at most 1; 0: a single process takes a GPU if there is one, several do not.
    """

    batch: int = 4
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    sides: tuple[int, int] | None = None
    threads: int = 2
    workers: int = 1
    gpus: float = 0


@dataclass(frozen=True)
class PredictConfig(InferenceConfig):
    """What to predict, and how: with queries for these `classes`.

    `task` "hoi": subjects are persons; "zero-shot hoi": pairs whose subject is classified as something else are left
    out; "scene graph": subjects of any class.
    """

    model: Location
    classes: DatasetClasses
    task: Task


@dataclass(frozen=True)
class RowGroup:
    """The row group number `group` of a shard, with `rows` images; where these are, if not in the shard."""

    file: Path
    group: int
    images: ImagePlace | None
    rows: int


@dataclass(frozen=True)
class ImageRow:
    """The image of a shard's row, without its annotations: embedded in the shard or in `images`.

    `error`: why it has no usable image, such as the message of an error row.
    """

    image_id: str
    dataset: str
    split: str
    file_name: str
    width: int
    height: int
    error: str | None
    images: ImagePlace | None
    embedded: bytes | None

    def open(self) -> Image.Image:
        """Return the image as RGB, of the annotated size. Raises ImageError."""
        roots = {} if self.images is None else {self.split: self.images}
        return open_row_image(roots, self, self.embedded)


@dataclass(frozen=True)
class ImagePrediction:
    """The prediction for one image: boxes in pixels, labels and predicates as indices into the classes; or an error."""

    row: ImageRow
    pairs: PredictedPairs | None = None
    error: str | None = None


def coco_image_id(row: ImageRow) -> int:
    """Return the image id as COCO's integer. Raises UserError: it is not an integer."""
    try:
        return int(row.image_id)
    except ValueError:
        raise UserError(f"image id {row.image_id!r} is not an integer; V-COCO needs COCO's image ids") from None


def list_row_groups(root: Path, split: str | None = None, images: ImagePlace | None = None) -> list[RowGroup]:
    """Return the row groups of a folder of shards, by split and position; `images`: where they are, if they moved.

    Raises UserError: the folder is not a run or has no such split, a shard is damaged, or there is no image folder.
    """
    manifest = Manifest.load(root)
    splits = sorted({shard.split for shard in manifest.shards})
    if split is not None and split not in splits:
        raise UserError(f"{root} has no split {split!r}; it has {', '.join(splits) or 'none'}")
    row_groups = []
    shards = [shard for shard in manifest.shards if split in (None, shard.split)]
    with closing(opened_ahead([root / shard.file for shard in shards])) as contents:
        for shard, content in zip(shards, contents, strict=True):
            with open_shard(root / shard.file, _COLUMNS, content) as file:
                embedded = IMAGE_COLUMN in file.schema_arrow.names
                rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            folder = None if embedded else manifest.image_root(shard.split, images)
            row_groups += [RowGroup(root / shard.file, group, folder, number) for group, number in enumerate(rows)]
    if not row_groups:
        raise UserError(f"{root} contains no images; is the run finished?")
    return row_groups


def iter_rows(row_group: RowGroup) -> Iterator[ImageRow]:
    """Read a row group. Raises UserError: the shard is missing or damaged."""
    table = read_row_group(row_group.file, row_group.group, _COLUMNS, (IMAGE_COLUMN,))
    for index in range(table.num_rows):
        [values] = table.slice(index, 1).to_pylist()
        embedded = (values.get(IMAGE_COLUMN) or {}).get("bytes")
        error = (values["error"] or "unknown error") if values["status"] != "ok" else None
        if error is None and embedded is None and row_group.images is None:
            error = "the shard does not contain its image"
        named = {name: values[name] for name in _NAMES}
        yield ImageRow(**named, error=error, images=row_group.images, embedded=embedded)
