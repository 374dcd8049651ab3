"""The images of records one after another, opened and prepared in threads before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from typing import Any, Generic, TypeVar

from PIL import Image

from sgpipe.image_roots import ImageFile, Location, image_root
from sgpipe.images import decode, image_file, is_upright
from sgpipe.records import Record

Prepared = TypeVar("Prepared")

_PER_THREAD = 2  # images that are opened before they are needed
_MOST_BYTES = 128 << 20  # of waiting files or decoded images; more only while the largest images are read
_PIXEL_BYTES = 4  # of Pillow


class ImageFeed(Generic[Prepared]):
    """Opens the images of records in their order, so that a model does not wait for them; a context manager.

    Args:
        prepare: makes of an image, as by `open_image`, and its file what the model takes; of limited size, unless it is
            the image itself. Called in several threads.
        threads: read, decode and prepare images. 0: images are decoded when they are requested, and only where opening
            a file waits, as in a store, do threads read files.
        batch: number of images that the model takes at once.
    """

    def __init__(
        self,
        roots: Mapping[str, Location],
        records: Iterable[Record],
        prepare: Callable[[Image.Image, ImageFile], Prepared],
        threads: int = 0,
        batch: int = 1,
    ) -> None:
        self._roots = roots
        self._prepare = prepare
        self._left = deque(record for record in records if record.ok)
        self._waiting: deque[tuple[Record, Future[Any]]] = deque()
        splits = {record.split for record in self._left} & roots.keys()
        number = max((image_root(roots[split]).threads for split in splits), default=0)
        self._decodes = threads > 0
        self._most = _PER_THREAD * max(number, threads) + (batch if threads else 0)
        self._pool = ThreadPoolExecutor(max(number, threads), "images") if number or threads else None

    def __enter__(self) -> ImageFeed[Prepared]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def open(self, record: Record) -> Prepared:
        """What `prepare` makes of the image of a record. Raises as `open_row_image`."""
        self._submit()
        while self._waiting:
            there, future = self._waiting.popleft()
            if there is record:
                return future.result() if self._decodes else self._prepared(record, *future.result())
        return self._opened(record)

    def _opened(self, record: Record) -> Prepared:
        return self._prepared(record, *image_file(self._roots, record))

    def _prepared(self, record: Record, file: ImageFile, name: str) -> Prepared:
        size = (record.width, record.height)
        return self._prepare(decode(file, size, name, upright=is_upright(record.dataset)), file)

    def _submit(self) -> None:
        if self._pool is None:
            return
        while self._left and len(self._waiting) < self._most and self._bytes() < _MOST_BYTES:
            record = self._left.popleft()
            if self._decodes:
                future: Future[Any] = self._pool.submit(self._opened, record)
            else:
                future = self._pool.submit(image_file, self._roots, record)
            self._waiting.append((record, future))

    def _bytes(self) -> int:
        """Of the decoded images that wait or are being read; without threads that decode, of the files that wait."""
        if self._decodes:
            return sum(_PIXEL_BYTES * record.width * record.height for record, _ in self._waiting)
        done = (future for _, future in self._waiting if future.done() and future.exception() is None)
        files = (future.result()[0] for future in done)
        return sum(len(file.getbuffer()) for file in files if isinstance(file, BytesIO))
