"""Read the images of shards, including images without relations, which training leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.remote import opened_ahead
from sgpipe.images import open_row_image
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import IMAGE_COLUMN, open_shard, read_row_group

_NAMES = ("image_id", "dataset", "split", "file_name", "width", "height")
_COLUMNS = (*_NAMES, "status", "error")


@dataclass(frozen=True)
class RowGroup:
    """A row group of a shard.

    Args:
        group: its index in the shard.
        images: where its images are; None if the shard contains them.
        rows: how many images it has.
    """

    file: Path
    group: int
    images: ImagePlace | None
    rows: int


@dataclass(frozen=True)
class ImageRow:
    """The image of a shard's row, without its annotations.

    Args:
        error: why the row has no usable image, such as the message of an error row.
        images: where the images are; None if the shard contains the image.
        embedded: the image file stored in the shard, if any.
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
        """The image as RGB, of the annotated size. Raises ImageError."""
        roots = {} if self.images is None else {self.split: self.images}
        return open_row_image(roots, self, self.embedded)


def coco_image_id(row: ImageRow) -> int:
    """The image id as COCO's integer. Raises UserError: it is not an integer."""
    try:
        return int(row.image_id)
    except ValueError:
        raise UserError(f"image id {row.image_id!r} is not an integer; V-COCO needs COCO's image ids") from None


def list_row_groups(root: Path, split: str | None = None, images: ImagePlace | None = None) -> list[RowGroup]:
    """The row groups of a folder of shards, ordered by split and position.

    Args:
        images: where the images are, if they moved since the shards were written.

    Raises:
        UserError: the folder is not a run, has no shards or no such split, a shard is damaged, or there is no image
            folder.
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
        values = table.slice(index, 1).to_pylist()[0]
        embedded = (values.get(IMAGE_COLUMN) or {}).get("bytes")
        failed = values["status"] != "ok"
        error = (values["error"] or "unknown error") if failed else None
        if error is None and embedded is None and row_group.images is None:
            error = "the shard does not contain its image"
        named = {name: values[name] for name in _NAMES}
        yield ImageRow(**named, error=error, images=row_group.images, embedded=embedded)
