"""The `Stage` protocol (records in, records out; no Ray), and running stages here or in a child
that may crash.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from PIL import Image

from rlip_model.training.gpu_utilization import GpuUtilization
from sgpipe.errors import ImageError
from sgpipe.files.image_roots import ImageFile, ImagePlace
from sgpipe.images import open_ahead
from sgpipe.recipe import Resources, StageConfig
from sgpipe.records import Record
from sgpipe.stages.endpoint import CacheFolder
from sgpipe.utils.devices import pick_device

if TYPE_CHECKING:
    import torch

COMPILATION = "compilation"  # beside the names of stages


@dataclass
class Usage:
    """What stages took for some records: seconds (of "compilation" apart) and `gpu_use`, by
    stage.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    gpus: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, other: Usage) -> None:
        for name, seconds in other.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.gpus |= other.gpus


StageOutput = tuple[list[Record], Usage]


class Stage:
    """One step of the pipeline: fills columns of every record that is ok, and returns all in their
    original order.

    An unreadable image becomes an error row (`Record.fail`); an exception means that the stage
    itself cannot run. `cache_folder`: where the answers of a served model are kept; None: nowhere.
    `device`: of its model, if it has one; "meta" if that is behind an endpoint.
    """

    name: str
    resources: Resources
    cache_folder: CacheFolder | None = None
    device: torch.device | None = None

    def __init__(self, config: StageConfig) -> None:
        """`config`: the section of the stage; one of the user's own gets that of the stage before
        it.
        """
        self.config: Any = config
        self.resources = config.resources

    @property
    def section(self) -> str:
        """The section of the recipe that has its settings and decides whether it runs."""
        return self.name

    def check(self) -> None:
        """Before workers start, raise UserError if its configuration tells that there is no such
        model.
        """

    def setup(self) -> None:
        """Load models. Called once, in the process that runs the stage. Raises UserError: they
        cannot be loaded.
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

    def set_up_device(self, *, here: bool = True) -> None:
        """Choose the device and the threads. Raises UserError: the device is missing."""
        import torch
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        torch.set_num_threads(max(1, int(self.resources.cpus)))
        self.device = (
            pick_device(self.config.device, self.resources.gpus) if here else torch.device("meta")
        )
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
    section = "caption"  # it stands where a captioner would

    def __init__(
        self, roots: Mapping[str, ImagePlace], resources: Resources, *, opens: bool = True
    ) -> None:
        self.roots = roots
        self.resources = resources
        self.opens = opens
        self.threads = image_threads(resources, elsewhere=False)

    def __call__(self, records: list[Record]) -> list[Record]:
        for _ in self.opened(records if self.opens else (), lambda image, file: None):
            pass
        return records


class StageRunner:
    """Sets up its stages on the first call."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self._ready = False
        self._compiled: dict[str, float] = {}

    def set_up(self) -> None:
        """Raises UserError: a stage cannot be set up."""
        if not self._ready:
            for stage in self.stages:
                stage.setup()
            self._ready = True

    def __call__(self, records: list[Record]) -> StageOutput:
        self.set_up()
        usage = Usage()
        for stage in self.stages:
            began = time.perf_counter()
            with GpuUtilization(stage.device) as gpu:
                records = stage(records)
            seconds = time.perf_counter() - began
            use = stage.gpu_use()
            share = gpu.read()
            if share is not None:
                use["utilization"] = round(share, 3)
            total = use.pop("compilation", 0.0)
            compiled = total - self._compiled.get(stage.name, 0.0)
            self._compiled[stage.name] = total
            apart = {COMPILATION: compiled} if compiled else {}
            gpus = {stage.name: use} if use else {}
            usage.add(Usage({stage.name: max(seconds - compiled, 0.0), **apart}, gpus))
        return records, usage


class IsolatedRunner:
    """A `StageRunner` in a child process: an image that crashes it twice, alone at last, becomes an
    error row.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self._pipe: Connection | None = None

    def __call__(self, records: list[Record]) -> StageOutput:
        output = self._run(records)
        if output is not None:
            return output
        if len(records) == 1:
            output = self._run(records)
            if output is not None:
                return output
            records[0].fail("worker", "the worker crashed twice on this image")
            return records, Usage()
        middle = len(records) // 2
        (first, usage), (second, more) = self(records[:middle]), self(records[middle:])
        usage.add(more)
        return first + second, usage

    def _run(self, records: list[Record]) -> StageOutput | None:
        """Return the output of the child process, or None if it crashed. Raises whatever a stage
        raises.
        """
        pipe = self._pipe or self._start()
        try:
            pipe.send(records)
            reply = pipe.recv()
        except (EOFError, OSError):
            self._pipe = None
            return None
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _start(self) -> Connection:
        """Raises UserError: a stage cannot be set up; RuntimeError: the process crashed during
        setup.
        """
        context = multiprocessing.get_context("spawn")
        pipe, child_end = context.Pipe()
        process = context.Process(target=_serve, args=(self.stages, child_end), daemon=True)
        process.start()
        child_end.close()
        try:
            failed = pipe.recv()
        except EOFError:
            process.join()
            names = ", ".join(stage.name for stage in self.stages)
            raise RuntimeError(
                f"a worker crashed while setting up {names} (exit code {process.exitcode})"
            ) from None
        if failed is not None:
            raise failed
        self._pipe = pipe
        return pipe


def _serve(stages: Sequence[Stage], pipe: Connection) -> None:
    """Set up, then answer record lists until the parent closes the pipe."""
    runner = StageRunner(stages)
    work: Callable[[], Any] = runner.set_up
    while True:
        try:
            outcome = work()
        # The parent raises it again: a process that ended with it would be taken for one that
        # crashed on an image.
        except Exception as reason:  # noqa: BLE001
            outcome = reason
        pipe.send(outcome)
        try:
            work = partial(runner, pipe.recv())
        except EOFError:
            return
