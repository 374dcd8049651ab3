"""The `Captioner` protocol: images in, captions out. `families.load_captioner` makes one from a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from sgpipe.files.image_roots import ImageFile
from sgpipe.recipe import CaptionConfig

PROMPT, MAX_TOKENS = "a picture of", 20  # of the published captioner, BLIP


@dataclass(frozen=True)
class CaptionInput:
    """An image to caption, or a region of one.

    `image` is RGB and `key` has 63 bits, from which the seed of every sample derives. `file` is the image file if
    the whole image is captioned, else None; its pixels may have to be turned or converted to be those of `image`.
    """

    image: Image.Image
    key: int
    file: ImageFile | None = None


@dataclass(frozen=True)
class Refused:
    """Why a captioner has no caption for an image: the row becomes an error row with this reason."""

    reason: str


def for_blip(config: CaptionConfig) -> CaptionConfig:
    """The settings with BLIP's own in place of those that are null."""
    own = {"prompt": PROMPT, "max_tokens": MAX_TOKENS}
    return config.model_copy(update={name: value for name, value in own.items() if getattr(config, name) is None})


class Captioner(Protocol):
    """Captions of images, in their order.

    The captions of an image depend on its pixels, its key and the recipe only: never on the other images, on their
    number, or on `batch_size`.
    """

    def check(self) -> None:
        """Cheap, before any work. Raises UserError: this captioner cannot caption, as far as can be told."""

    def setup(self) -> None:
        """Load what is needed, in the process that captions. Raises UserError: as `check`, and damaged weights."""

    def caption(self, inputs: Iterable[CaptionInput]) -> Iterator[list[str] | Refused]:
        """The captions of each input: up to `caption.samples`, or one by beam search; each is a single line.

        Reads `inputs` as it needs them: only as many images are open as are captioned together.

        Raises UserError: the captioner fails on every image, or the memory is full.
        """
        ...
