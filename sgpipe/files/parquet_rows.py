"""Images in the rows of Parquet files, by the names that `row_name` makes, in any root that has such files."""

from __future__ import annotations

from io import BytesIO

from sgpipe.errors import ImageError, StoreError
from sgpipe.files.base import checked_size, image_error, safe_name
from sgpipe.files.parquet_images import ParquetImages, parse_row_name


def open_row(images: ParquetImages, name: str, where: str) -> BytesIO | None:
    """The image in a row of a Parquet file; None: the name is not that of a row.

    Args:
        where: what messages call the image.

    Raises ImageError: it is missing, or its file cannot be read or is outside the root; StoreError: see `ImageRoot`;
    EngineError: this machine has no room for the file.
    """
    parts = parse_row_name(name)
    if parts is None:
        return None
    file, column, row = parts
    try:
        data = images.read(safe_name(file), column, row)
    except StoreError:
        raise
    except FileNotFoundError:
        raise ImageError(f"image file not found: {where}") from None
    except OSError as error:
        raise image_error(error, where) from None
    checked_size(len(data), where)
    return BytesIO(data)
