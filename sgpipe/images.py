"""Open images safely: inside their root, within Pillow's limits, as RGB in the annotated
orientation.
"""

import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sgpipe.errors import ImageError as ImageError
from sgpipe.files.image_roots import ImageFile, ImagePlace, image_root
from sgpipe.files.roots import HEADER, HEIF_SUFFIXES, image_error
from sgpipe.records import FOLDER_DATASET, HUB_DATASET, LABEL_STUDIO_DATASET, Record
from sgpipe.utils.prefetch import start_early

Prepared = TypeVar("Prepared")

# What decoders raise for broken files besides OSError, as fuzzing shows and as Pillow's plug-ins
# are written.
_UNDECODABLE = (
    ValueError, RuntimeError, SyntaxError, TypeError, AttributeError, LookupError, ArithmeticError, MemoryError,
    EOFError, struct.error, zlib.error,
)  # fmt: skip

# `decode` refuses such images itself, with a message that names them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Formats of images. Pillow supports others that start other programs (EPS) or are not images (PDF).
_ALLOWED_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000", "PPM", "AVIF", "HEIF")
Image.init()
# the extra sgpipe[heif]; here, so that every worker process has it that opens images
with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
_FORMATS = [name for name in _ALLOWED_FORMATS if name in Image.OPEN]
_PER_THREAD = 2  # images that are opened before they are needed
# of decoded or prepared images that wait; more only while the largest images are read
_MOST_BYTES = 128 << 20
_PIXEL_BYTES = 4  # of Pillow


def reads_heif() -> bool:
    return "HEIF" in _FORMATS


def image_exists(root: ImagePlace, file_name: str) -> bool:
    """Return whether `root` contains the file.

    Raises:
        StoreError: it cannot be reached.
    """
    return image_root(root).contains(file_name)


def open_row_image(
    roots: Mapping[str, ImagePlace],
    row: Record,
    embedded: bytes | None = None,
    images: ImagePlace | None = None,
) -> Image.Image:
    """Return the image of a shard's row as RGB, of the annotated size.

    Raises ImageError: see `decode`; StoreError.

    Args:
        roots: where the images of each split are, as recorded by the run.
        embedded: the image file stored in the row.
        images: where they are instead, which takes precedence over both.
    """
    file, name = image_file(roots, row.split, row.file_name, embedded, images)
    return decode(file, (row.width, row.height), name, upright=is_upright(row.dataset))


def image_file(
    roots: Mapping[str, ImagePlace],
    split: str,
    file_name: str,
    embedded: bytes | None = None,
    images: ImagePlace | None = None,
) -> tuple[ImageFile, str]:
    """Return the file of a shard's row, which need not exist, and what messages call it, as
    `open_row_image`.
    """
    if embedded is not None and images is None:
        return BytesIO(embedded), file_name
    location = images or roots.get(split)
    if location is None:
        raise ImageError(f"the image is neither in the shard nor in a known folder: {file_name}")
    root = image_root(location)
    return root.open(file_name), root.where(file_name)


def is_upright(dataset: str) -> bool:
    """Return whether the boxes of this dataset refer to the image as displayed (turned as EXIF
    says), not as stored.
    """
    return dataset in (FOLDER_DATASET, HUB_DATASET, LABEL_STUDIO_DATASET)


def decode(
    file: ImageFile, size: tuple[int, int], name: str, *, upright: bool = False
) -> Image.Image:
    """Return the image in a file, which messages call `name`, as RGB.

    Args:
        size: annotated width and height in pixels.
        upright: turn the image as EXIF says; otherwise turn it only if the annotated size requires
            it, because boxes refer to the annotated frame.

    Raises:
        ImageError: missing, broken, too large, or not of the annotated size.
    """
    with open_header(file, name) as image:
        image.load()
        if image.size != size or upright:
            turned = ImageOps.exif_transpose(image)
            if turned.size == size:
                return _to_rgb(turned)
        if image.size == size:  # annotations may refer to the image as stored
            return _to_rgb(image)
        raise ValueError(
            f"it is {image.width}x{image.height}, the annotation says {size[0]}x{size[1]}"
        )


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return an image in memory as RGB, turned as EXIF says.

    Raises:
        ImageError: broken, empty or too large.
    """
    with _as_image_errors("in memory"):
        _check_pixels(image)
        if not image.width * image.height:
            raise ValueError("it has no pixels")
        return _to_rgb(ImageOps.exif_transpose(image))


def from_array(values: Any) -> Image.Image:
    """Return a NumPy array as an image: uint8 `[height, width]` (grey), `[height, width, 3]` (RGB)
    or 4 (RGBA).

    Raises:
        ImageError: another shape or type of numbers.
    """
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    has_channels = values.ndim == 3 and values.shape[-1] in (3, 4)
    if values.dtype != np.uint8 or not values.size or not (values.ndim == 2 or has_channels):
        shape = "x".join(map(str, values.shape)) or "no"
        raise ImageError(
            f"an array of {values.dtype} and of shape {shape} is not an image: expected uint8 (0 to"
            " 255) and height x width, with 3 (RGB) or 4 channels last"
        )
    return Image.fromarray(np.ascontiguousarray(values))


@contextmanager
def open_header(file: ImageFile, name: str) -> Iterator[Image.Image]:
    """Yield an image whose header is valid, not decoded yet; messages call it `name`.

    Raises:
        ImageError: missing, broken, or too large; also for errors of decoding in the body of the
            `with` statement.
    """
    with _as_image_errors(name):
        if isinstance(file, Path):
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is not a regular file")
            if not status.st_size:
                raise ValueError("the file is empty")
        with Image.open(file, formats=_FORMATS) as image:
            _check_pixels(image)
            yield image


@contextmanager
def _as_image_errors(name: str) -> Iterator[None]:
    """Turn errors of the body into ImageErrors that name the image.

    Raises:
        EngineError: no room, or too many files.
    """
    try:
        yield
    except Image.DecompressionBombError:
        raise ImageError(f"image is larger than Pillow's safety limit of pixels: {name}") from None
    except UnidentifiedImageError:
        is_heif = name.lower().endswith(HEIF_SUFFIXES) and not reads_heif()
        advice = "; pip install 'sgpipe[heif]' reads HEIC" * is_heif
        raise ImageError(f"image cannot be read: {name} (unknown format{advice})") from None
    except OSError as reason:
        raise image_error(reason, name) from None
    except _UNDECODABLE as reason:
        raise ImageError(
            f"image cannot be read: {name} ({str(reason) or type(reason).__name__})"
        ) from None


def _check_pixels(image: Image.Image) -> None:
    """Enforce Pillow's limit: up to twice the limit Pillow only warns, and warning filters are not
    per thread.
    """
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I;16") or image.mode == "I":
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def read_size(root: ImagePlace, file_name: str, *, upright: bool = False) -> tuple[int, int]:
    """Return width and height as stored, to which annotated boxes refer; or `upright`: as
    displayed, turned by EXIF.

    Raises:
        ImageError: the image is not usable.
    """
    root = image_root(root)
    name = root.where(file_name)
    file = root.open(file_name, HEADER)
    if not isinstance(file, Path):
        with suppress(ImageError), open_header(file, name) as image:
            return upright_size(image) if upright else image.size
        file = root.open(file_name)  # its beginning does not say it
    with open_header(file, name) as image:
        return upright_size(image) if upright else image.size


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an image that is not decoded yet, as displayed."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    swaps_sides = orientation in (5, 6, 7, 8)
    return image.size[::-1] if swaps_sides else image.size


def read_image(root: ImagePlace, record: Record) -> bytes:
    """Return the bytes of the record's image file.

    Raises:
        ImageError: as `read_size`, or of another size.
    """
    root = image_root(root)
    file = root.open(record.file_name)
    name = root.where(record.file_name)
    with open_header(file, name) as image:
        stored = image.size
        displayed = upright_size(image)
        data = read_bytes(file)
    if (record.width, record.height) not in (stored, displayed):
        width, height = stored
        raise ImageError(
            f"image is {width}x{height}, the annotation says {record.width}x{record.height}: {name}"
        )
    return data


def read_bytes(file: ImageFile, number: int = -1) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(number)
    file.seek(0)
    return file.read(number)


def open_ahead(
    roots: Mapping[str, ImagePlace],
    records: Iterable[Record],
    prepare: Callable[[Image.Image, ImageFile], Prepared],
    threads: int = 0,
    batch: int = 1,
) -> Generator[tuple[Record, Prepared | ImageError]]:
    """Yield each record that is ok with its image, opened in threads before it is needed, or why it
    cannot be opened.

    Args:
        prepare: makes what the model takes of an image, as by `open_row_image`, and its file: the
            image itself, or something of limited size. Called in several threads.
        threads: read, decode and prepare images; more where opening a file waits, as in a store. 0,
            and nothing waits: images are opened when they are requested.
        batch: number of images that the model takes at once.
    """

    def opened(record: Record) -> Prepared | ImageError:
        try:
            file, name = image_file(roots, record.split, record.file_name)
            size = (record.width, record.height)
            return prepare(decode(file, size, name, upright=is_upright(record.dataset)), file)
        except ImageError as reason:
            return reason

    def is_full(pending: Collection[tuple[Record, Future[Any]]]) -> bool:
        size = 0
        for record, future in pending:
            prepared = future.result() if future.done() and future.exception() is None else None
            size += getattr(prepared, "nbytes", _PIXEL_BYTES * record.width * record.height)
        return size >= _MOST_BYTES

    usable = [record for record in records if record.ok]
    splits = {record.split for record in usable} & roots.keys()
    number = max([threads, *(image_root(roots[split]).threads for split in splits)])
    if not number:
        yield from ((record, opened(record)) for record in usable)
        return
    pool = ThreadPoolExecutor(number, "images")
    try:
        ahead = _PER_THREAD * number + batch
        for record, future in start_early(
            lambda record: (record, pool.submit(opened, record)), usable, ahead, is_full
        ):
            yield record, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
