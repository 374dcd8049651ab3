"""Reading the pictures of a training; those that cannot be read are skipped and counted."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from threading import Lock

from PIL import Image

from sgpipe.errors import UserError
from sgpipe.images import ImageError, decode, is_upright, resolve
from sgpipe.trainset.contents import Folder, TrainSet
from sgpipe.trainset.stream import Item

_REASONS = 5
_ENOUGH = 32


class Pictures:
    """The pictures of a set, to be read by several threads.

    Args:
        world: workers that share the pictures.

    Attributes:
        read, skipped: how many could be read, and how many could not.
        reasons: why the first few could not.
    """

    def __init__(self, trainset: TrainSet, world: int = 1) -> None:
        self.read = self.skipped = 0
        self.reasons: list[str] = []
        self._folders = trainset.folders
        self._enough = max(1, min(_ENOUGH, trainset.rows // world))
        self._lock = Lock()

    def open(self, item: Item) -> Image.Image | None:
        """The picture as RGB, of the annotated size; None if it cannot be read.

        Raises UserError: none of the first pictures could be read.
        """
        folder = self._folders[item.folder]
        try:
            image = _open(folder, item)
        except ImageError as error:
            with self._lock:
                self._skip(folder, item, str(error))
            return None
        with self._lock:
            self.read += 1
        return image

    def _skip(self, folder: Folder, item: Item, reason: str) -> None:
        self.skipped += 1
        if len(self.reasons) < _REASONS and reason not in self.reasons:
            self.reasons.append(reason)
        if not self.read and self.skipped >= self._enough:
            place = folder.images.get(item.split, folder.root)
            raise UserError(
                f"none of the first {self.skipped} pictures could be read from {place} ({self.reasons[0]}); "
                "give the right image folder by --images"
            )


def _open(folder: Folder, item: Item) -> Image.Image:
    upright = is_upright(item.dataset)
    if item.embedded is not None:
        return decode(BytesIO(item.embedded), item.size, f"{item.file_name} of {folder.root}", upright=upright)
    root = folder.images.get(item.split)
    if root is None:
        raise ImageError(f"the shards of {folder.root} hold no picture of image {item.image_id}")
    path = resolve(Path(root), item.file_name)
    return decode(path, item.size, str(path), upright=upright)
