"""A captioner of the user's own: what it raises names it, and what it yields is checked."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator

from sgpipe.errors import UserError
from sgpipe.plugins import failures_told, load_class
from sgpipe.recipe import CaptionConfig, options_of
from sgpipe.stages.caption.captioner import Captioner, CaptionInput
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.stages.served.chat import Refusal
from sgpipe.utils.console import count

_EXPECTED = "expected a list of captions (str) for each image, in their order"


class OwnCaptioner(Captioner):
    """A captioner that `package.module:Class` names.

    Args:
        config: of the recipe, which the class gets.
        reference: the name.
        cache_folder: as of `Captioner`.

    Raises:
        UserError: there is no such class, or it cannot be made.
    """

    def __init__(
        self, config: CaptionConfig, reference: str, cache_folder: CacheFolder | None
    ) -> None:
        super().__init__(config)
        self.reference = reference
        captioner_class = load_class("captioner", reference, Captioner)
        with failures_told("captioner", reference):
            self._captioner = captioner_class(config, **options_of(config, "captioner", reference))
        self._captioner.cache_folder = cache_folder

    def check(self) -> None:
        with failures_told("captioner", self.reference):
            self._captioner.check()

    def setup(self) -> None:
        with failures_told("captioner", self.reference):
            self._captioner.setup()

    def caption(self, inputs: Iterable[CaptionInput]) -> Iterator[list[str] | Refusal]:
        images = _Counted(inputs)
        answers = 0
        with failures_told("captioner", self.reference):
            outputs = self._captioner.caption(images)
            if not isinstance(outputs, Iterable):
                raise self._refused(f"returns {outputs!r}")
            for captions in outputs:
                if answers == images.number:
                    raise self._refused("yields more lists than images")
                answers += 1
                yield self.checked(captions)
            for _ in images:  # those that it did not ask for
                pass
        if answers < images.number:
            lists = count(answers, "list")
            raise self._refused(f"yields {lists} for {count(images.number, 'image')}")

    def checked(self, captions: object) -> list[str] | Refusal:
        """Return what the captioner yields for an image.

        Raises:
            UserError: it is not a list of single lines.
        """
        if isinstance(captions, Refusal):
            return captions
        if not isinstance(captions, list | tuple):
            raise self._refused(f"yields {reprlib.repr(captions)} for an image")
        for caption in captions:
            if not isinstance(caption, str):
                raise self._refused(f"yields {reprlib.repr(captions)} for an image")
            if len(caption.splitlines()) > 1:
                raise UserError(
                    f"captioner {self.reference} yields the caption {reprlib.repr(caption)}:"
                    ' expected a single line; " ".join(caption.split()) makes one of several'
                )
        return list(captions)

    def _refused(self, what: str) -> UserError:
        return UserError(f"captioner {self.reference} {what}: {_EXPECTED}")


class _Counted:
    """The images that a captioner reads, and their number so far."""

    def __init__(self, inputs: Iterable[CaptionInput]) -> None:
        self._inputs = iter(inputs)
        self.number = 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> CaptionInput:
        source = next(self._inputs)
        self.number += 1
        return source
