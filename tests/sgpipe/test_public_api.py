"""The names that `import sgpipe` offers, and what commands do not import."""

import subprocess
import sys
from pathlib import Path

import pytest

import sgpipe

HEAVY = {
    "torch",
    "torchvision",
    "transformers",
    "ray",
    "spacy",
    "scipy",
    "sympy",
    "moto",
    "pycocotools",
}
COMMAND = """
import atexit, sys
atexit.register(lambda: print("IMPORTED", *sys.modules))
from sgpipe.cli.main import main
sys.argv[0] = "sgpipe"
main()
"""


# Of 0.2.0: none goes without the notice that CHANGELOG.md promises.
RELEASED = """EngineError ImageError Pipeline RelationAnnotator Run SceneGraph UserError __version__ generate
iter_records load_recipe load_train_recipe train"""


def imported(*arguments: str | Path) -> set[str]:
    """The modules that a command has imported when it ends."""
    script = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    done = subprocess.run(script, capture_output=True, text=True)
    return set(done.stdout.rsplit("IMPORTED ", 1)[1].split())


def test_every_public_name_can_be_imported() -> None:
    assert set(RELEASED.split()) <= set(sgpipe.__all__)
    for name in sgpipe.__all__:
        assert getattr(sgpipe, name) is not None
    assert set(sgpipe.__all__) <= set(dir(sgpipe))


@pytest.mark.parametrize("name", ["sgpipe", "sgpipe.cli.main"])
def test_neither_the_package_nor_the_command_line_loads_anything_heavy(name: str) -> None:
    command = [sys.executable, "-c", f"import sys, {name}; print(*sys.modules)"]
    loaded = set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert name in loaded
    assert (
        not {"torch", "ray", "numpy", "pyarrow", "PIL", "pydantic", "transformers", "rich"} & loaded
    )


def test_commands_without_work_for_models_import_no_model_libraries(tmp_path: Path) -> None:
    run = tmp_path / "run"
    generate = ("generate", "--limit", "1", "--out", run)
    imported(*generate)
    assert (run / "manifest.jsonl").is_file()
    for arguments in (
        generate, ("generate", "--detector", tmp_path / "nothing", "--out", tmp_path / "refused"),
        ("train", "tagger", "--set", "optimisation.lr=-1", "--out", tmp_path / "trained"), ("stats", run),
        ("verify", run),
    ):  # fmt: skip
        assert not HEAVY & imported(*arguments), arguments
