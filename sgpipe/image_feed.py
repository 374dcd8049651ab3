"""The images of records one after another, opened and prepared in threads before they are needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import Any, Generic, TypeVar

from PIL import Image

from sgpipe.files.image_roots import ImageFile, ImagePlace, image_root
from sgpipe.images import decode, image_file, is_upright
from sgpipe.records import Record
from sgpipe.utils.prefetch import start_early

Prepared = TypeVar("Prepared")
_Started = tuple[Record, Future[Any]]

_PER_THREAD = 2  # images that are opened before they are needed
_MOST_BYTES = 128 << 20  # of waiting files or decoded images; more only while the largest images are read
_PIXEL_BYTES = 4  # of Pillow


class ImageFeed(Generic[Prepared]):
    """Opens the images of records in their order, so that a model does not wait for them; a context manager.

    Args:
        prepare: makes what the model takes of an image, as by `open_row_image`, and its file: the image itself, or
            something of limited size. Called in several threads.
        threads: read, decode and prepare images. 0: images are decoded when they are requested, and only where opening
            a file waits, as in a store, do threads read files.
        batch: number of images that the model takes at once.
    """

    def __init__(
        self,
        roots: Mapping[str, ImagePlace],
        records: Iterable[Record],
        prepare: Callable[[Image.Image, ImageFile], Prepared],
        threads: int = 0,
        batch: int = 1,
    ) -> None:
        self._roots = roots
        self._prepare = prepare
        given = [record for record in records if record.ok]
        splits = {record.split for record in given} & roots.keys()
        number = max((image_root(roots[split]).threads for split in splits), default=0)
        self._decodes = threads > 0
        self._left = {id(record) for record in given} if number or threads else set()  # that threads will open
        self._pool = ThreadPoolExecutor(max(number, threads, 1), "images")
        most = _PER_THREAD * max(number, threads) + (batch if threads else 0)
        self._started = start_early(self._start, given, most, self._is_full)

    def __enter__(self) -> ImageFeed[Prepared]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def open(self, record: Record) -> Prepared:
        """Return what `prepare` makes of the image of a record; those of the records before it are dropped.

        Any record may be opened, but threads open only those that were given, in their order. Raises as
        `open_row_image`.
        """
        while id(record) in self._left:
            there, future = next(self._started)
            self._left.discard(id(there))
            if there is record:
                return future.result() if self._decodes else self._prepared(record, *future.result())
            future.cancel()
        return self._opened(record)

    def _opened(self, record: Record) -> Prepared:
        return self._prepared(record, *image_file(self._roots, record))

    def _prepared(self, record: Record, file: ImageFile, name: str) -> Prepared:
        size = (record.width, record.height)
        return self._prepare(decode(file, size, name, upright=is_upright(record.dataset)), file)

    def _start(self, record: Record) -> _Started:
        return record, self._pool.submit(self._opened if self._decodes else partial(image_file, self._roots), record)

    def _is_full(self, pending: Collection[_Started]) -> bool:
        return sum(map(self._bytes, pending)) >= _MOST_BYTES

    def _bytes(self, started: _Started) -> int:
        """Return what an image was prepared to, or its pixels until then; without threads that decode, a file that
        waits.
        """
        record, future = started
        found = future.result() if future.done() and future.exception() is None else None
        if self._decodes:  # a prepared tensor may be much smaller than the image, or larger
            return int(getattr(found, "nbytes", _PIXEL_BYTES * record.width * record.height))
        file = found[0] if found else None
        return len(file.getbuffer()) if isinstance(file, BytesIO) else 0
