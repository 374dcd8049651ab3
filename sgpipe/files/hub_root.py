"""Images of a dataset on the Hugging Face hub: files, or rows of Parquet files, in the hub's cache on each machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sgpipe.errors import EngineError, ImageError, StoreError, UserError
from sgpipe.files.base import ImageEntry, ImageFile, image_error, safe_name
from sgpipe.files.hub import DATASETS, HubDataset, MissingFileError
from sgpipe.files.parquet_images import ParquetImages, file_of
from sgpipe.files.parquet_rows import open_row

_THREADS = 8


@dataclass(frozen=True)
class HubRoot:
    """A dataset such as `hf://datasets/USER/NAME@REVISION`; what is read of it is downloaded once per machine."""

    location: str
    threads = _THREADS

    @cached_property
    def dataset(self) -> HubDataset:
        """Raises UserError: the location is not that of a dataset."""
        found = HubDataset.parse(self.location) if self.location.startswith(DATASETS) else None
        if found is None:
            raise UserError(f"{self.location} is no dataset of the hub: expected {DATASETS}USER/NAME")
        return found

    def where(self, name: str) -> str:
        return f"{self.location}/{name}"

    def contains(self, name: str) -> bool:
        try:
            return file_of(safe_name(name)) in self._names
        except ImageError:
            return False

    def open(self, name: str) -> ImageFile:
        """Raises ImageError: see `ImageRoot`; EngineError: the hub refuses the user, or this machine has no room.

        Also raises UserError: see `dataset`.
        """
        name, where, dataset = safe_name(name), self.where(name), self.dataset
        try:
            row = open_row(self._parquet, name, where)
            return dataset.fetch(name) if row is None else row
        except (ImageError, StoreError):
            raise
        except MissingFileError as error:
            raise ImageError(str(error)) from None
        except UserError as error:
            raise EngineError(str(error)) from None
        except OSError as error:  # of a download
            raise image_error(error, where) from None

    def peek(self, name: str) -> ImageFile:
        return self.open(name)

    def entries(self) -> Iterator[ImageEntry]:
        """The files of the dataset, whose sizes are not known before they are read; a commit does not change."""
        return (ImageEntry(name, 0, self.dataset.revision or "") for name in self._names)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.dataset.list()[1])

    @cached_property
    def _parquet(self) -> ParquetImages:
        return ParquetImages(self._fetch)

    def _fetch(self, file: str) -> Path:
        return self.dataset.fetch(file)

    def __reduce__(self) -> tuple[type[HubRoot], tuple[str]]:
        return HubRoot, (self.location,)
