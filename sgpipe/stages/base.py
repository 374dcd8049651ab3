"""The `Stage` protocol: records in, records out; no Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from copy import copy
from typing import TYPE_CHECKING, Any, Self

from PIL import Image

from sgpipe.errors import ImageError
from sgpipe.files.image_roots import ImageFile, ImagePlace
from sgpipe.images import open_ahead
from sgpipe.recipe import Resources, StageConfig
from sgpipe.records import Record
from sgpipe.stages.context import StageContext
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.utils.devices import configure_torch, pick_device

if TYPE_CHECKING:
    import torch


class Stage:
    """One step of the pipeline: fills columns of every record that is ok, and returns all in their
    original order.

    An unreadable image becomes an error row (`Record.fail`); so does one on which a stage fails, by
    an exception, when it gets no other (see `stages.runner`).

    `cache_folder`: where the answers of a served model are kept; None: nowhere. `device`: of its
    model, if it has one; "meta" if that is behind an endpoint. `streams`: it waits for a server, and
    may be called by several threads at once, each with records of its own.
    """

    name: str
    resources: Resources
    cache_folder: CacheFolder | None = None
    device: torch.device | None = None
    streams: bool = False

    def __init__(self, config: StageConfig) -> None:
        """`config`: the section of the stage; one of the user's own gets that of the stage before
        it.
        """
        self.config: Any = config
        self.resources = config.resources

    @classmethod
    def of(cls, context: StageContext) -> Self:
        """Return the stage for a run. A class whose stages have other arguments overrides this."""
        return cls(context.config, **context.options)

    def among(self, actors: int) -> Self:
        """Return the stage of one of so many actors, before it is set up."""
        if not self.streams:
            return self
        stage = copy(self)
        stage.config = self.config.among(actors)
        return stage

    def check(self) -> None:
        """Before workers start, raise UserError if its configuration tells that there is no such
        model.
        """

    def setup(self) -> None:
        """Load models. Called once, in the process that runs the stage.

        Raises:
            UserError: they cannot be loaded.
        """

    def with_classes(self, classes: Mapping[str, int]) -> Stage:
        """Return this stage, set up and with the same loaded models, for boxes of other classes
        (ids by name).
        """
        return self

    def gpu_use(self) -> dict[str, Any]:
        """Return what `utils.gpu.gpu_use` does, with "compilation", the seconds since the start
        that it took.
        """
        if self.device is None:
            return {}
        from sgpipe.utils.gpu import gpu_use

        return gpu_use(self.device)

    def take_tokens(self) -> Counter[str]:
        """Return the tokens that were paid for since the last call."""
        return self.cache_folder.take_tokens() if self.cache_folder else Counter()

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            if record.ok:
                self.fill(record)
        return records

    def fill(self, record: Record) -> None:
        """Fill columns of one record that is ok, where no others are needed for it."""
        raise NotImplementedError


def image_threads(resources: Resources, *, elsewhere: bool) -> int:
    """Return `io_threads`, or one per CPU, at least two, if the model computes `elsewhere`, else at
    most one.
    """
    if resources.io_threads is not None:
        return resources.io_threads
    cpus = int(resources.cpus)
    return min(max(cpus, 2), 16) if elsewhere else min(cpus // 2, 1)


class ImageStage(Stage):
    """A stage that reads images; `roots` says where those of each split are."""

    device: torch.device
    threads = 0  # that open images

    def __init__(self, config: Any, roots: Mapping[str, ImagePlace]) -> None:
        """`config`: has the `resources` of the stage and, if it has a model, its `device`."""
        self.config = config
        self.roots = roots
        self.resources: Resources = config.resources

    @classmethod
    def of(cls, context: StageContext) -> Self:
        return cls(context.config, context.roots, **context.options)

    def set_up_device(self, *, here: bool = True) -> None:
        """Choose the device and the threads.

        Raises:
            UserError: the device is missing.
        """
        import torch
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.device = torch.device("meta")
        if here:
            self.device = pick_device(self.config.device, self.resources.gpus)
        configure_torch(self.device, self.resources.cpus)
        self.threads = image_threads(self.resources, elsewhere=self.device.type != "cpu")

    def opened(
        self,
        records: Iterable[Record],
        prepare: Callable[[Image.Image, ImageFile], Any] = lambda image, file: image,
        batch: int = 1,
    ) -> Iterator[tuple[Record, Any]]:
        """Yield each record that is ok with what `prepare` makes of its image; unreadable ones
        become error rows.
        """
        with closing(open_ahead(self.roots, records, prepare, self.threads, batch)) as images:
            for record, image in images:
                if isinstance(image, ImageError):
                    record.fail(self.name, str(image))
                else:
                    yield record, image


class LoadStage(ImageStage):
    """Opens each image once, so that unreadable images become error rows even in a run without a
    captioner.

    With `source.open_images: false` it opens none.
    """

    name = "load"

    def __init__(
        self, roots: Mapping[str, ImagePlace], resources: Resources, *, opens: bool = True
    ) -> None:
        self.roots = roots
        self.resources = resources
        self.opens = opens
        self.threads = image_threads(resources, elsewhere=False)

    @classmethod
    def of(cls, context: StageContext) -> Self:
        plan = context.plan
        return cls(context.roots, plan.parse.resources, opens=plan.opens_images)

    def __call__(self, records: list[Record]) -> list[Record]:
        for _ in self.opened(records if self.opens else (), lambda image, file: None):
            pass
        return records
