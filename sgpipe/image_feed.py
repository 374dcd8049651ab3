"""The images of records one after another, whose files are opened in threads ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO

from PIL import Image

from sgpipe.image_roots import ImageFile, Location, image_root
from sgpipe.images import decode, image_file, is_upright
from sgpipe.records import Record

_FILES_PER_THREAD = 2  # that are opened ahead
_MOST_BYTES = 128 << 20  # that wait; more only while the largest images are read


class ImageFeed:
    """Opens the images of records in their order, so that a model does not wait for a store; a context manager.

    Images are the same as by `open_image`. Where opening does not wait, as in a folder, there are no threads.
    """

    def __init__(self, roots: Mapping[str, Location], records: Iterable[Record]) -> None:
        self._roots = roots
        self._left = deque(record for record in records if record.ok)
        self._ahead: deque[tuple[Record, Future[tuple[ImageFile, str]]]] = deque()
        splits = {record.split for record in self._left} & roots.keys()
        self._threads = max((image_root(roots[split]).threads for split in splits), default=0)
        self._pool = ThreadPoolExecutor(self._threads, "images") if self._threads else None

    def __enter__(self) -> ImageFeed:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def open(self, record: Record) -> tuple[Image.Image, ImageFile]:
        """The image of a record as RGB, of the annotated size, and its file. Raises as `open_row_image`."""
        file, name = self._file(record)
        return decode(file, (record.width, record.height), name, upright=is_upright(record.dataset)), file

    def _file(self, record: Record) -> tuple[ImageFile, str]:
        self._submit()
        while self._ahead:
            there, future = self._ahead.popleft()
            if there is record:
                return future.result()
        return image_file(self._roots, record)

    def _submit(self) -> None:
        if self._pool is None:
            return
        while self._left and len(self._ahead) < _FILES_PER_THREAD * self._threads and self._waiting() < _MOST_BYTES:
            record = self._left.popleft()
            self._ahead.append((record, self._pool.submit(image_file, self._roots, record)))

    def _waiting(self) -> int:
        """Bytes of the files that have been opened ahead."""
        done = (future for _, future in self._ahead if future.done() and future.exception() is None)
        files = (future.result()[0] for future in done)
        return sum(len(file.getbuffer()) for file in files if isinstance(file, BytesIO))
