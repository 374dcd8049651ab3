"""The images of shards, all of them: also those that have no relations, which training leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from sgpipe.errors import UserError
from sgpipe.images import decode, is_upright, resolve
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import IMAGE_COLUMN, open_shard, read_row_group

_NAMES = ("image_id", "dataset", "split", "file_name", "width", "height")
_COLUMNS = (*_NAMES, "status", "error")


@dataclass(frozen=True)
class Unit:
    """A row group of a shard; `images`: the folder of its images, if they are not in the shard."""

    file: Path
    group: int
    images: Path | None


@dataclass(frozen=True)
class ImageRow:
    """A row of a shard, without what is known of its image; error: of an error row."""

    image_id: str
    dataset: str
    split: str
    file_name: str
    width: int
    height: int
    error: str | None
    images: Path | None
    embedded: bytes | None

    def open(self) -> Image.Image:
        """The image as RGB, of the annotated size. Raises ImageError."""
        size, upright = (self.width, self.height), is_upright(self.dataset)
        if self.embedded is not None:
            return decode(BytesIO(self.embedded), size, self.file_name, upright=upright)
        assert self.images is not None
        path = resolve(self.images, self.file_name)
        return decode(path, size, str(path), upright=upright)


def image_number(row: ImageRow) -> int:
    """COCO's id. Raises UserError: the image has no such number."""
    try:
        return int(row.image_id)
    except ValueError:
        raise UserError(f"image {row.image_id!r} has no number of COCO's; V-COCO needs them") from None


def image_units(root: Path, split: str | None = None, images: Path | None = None) -> list[Unit]:
    """The row groups of a folder of shards, by split and position.

    Args:
        images: the folder of the images, if it is not the one that was used for the shards.

    Raises:
        UserError: it is no run, has no shards or no such split, a shard is damaged, or the images are nowhere.
    """
    manifest = Manifest.load(root)
    there = sorted({shard.split for shard in manifest.shards})
    if split is not None and split not in there:
        raise UserError(f"{root} has no split {split!r}; it has {', '.join(there) or 'none'}")
    units = []
    for shard in manifest.shards:
        if split in (None, shard.split):
            with open_shard(root / shard.file, _COLUMNS) as file:
                embedded, groups = IMAGE_COLUMN in file.schema_arrow.names, file.num_row_groups
            folder = None if embedded else manifest.image_folder(shard.split, images)
            units += [Unit(root / shard.file, group, folder) for group in range(groups)]
    if not units:
        raise UserError(f"{root} holds no images; is the run finished?")
    return units


def iter_rows(unit: Unit) -> Iterator[ImageRow]:
    """Raises UserError: the shard is missing or damaged."""
    table = read_row_group(unit.file, unit.group, _COLUMNS, (IMAGE_COLUMN,))
    for place in range(table.num_rows):
        values = table.slice(place, 1).to_pylist()[0]
        embedded = (values.get(IMAGE_COLUMN) or {}).get("bytes")
        failed = values["status"] != "ok"
        error = (values["error"] or "unknown error") if failed else None
        if error is None and embedded is None and unit.images is None:
            error = "the shard does not hold its image"
        own = {name: values[name] for name in _NAMES}
        yield ImageRow(**own, error=error, images=unit.images, embedded=embedded)
