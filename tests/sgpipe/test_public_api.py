"""The names that `import sgpipe` offers, and what commands do not import."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sgpipe
from sgpipe.cli.main import app
from tests.sgpipe.generation.in_process import without_ray

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
COMMANDS = """
import json, sys
from sgpipe.cli.main import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["sgpipe", *command]
    try:
        main()
    except SystemExit:
        pass
print("IMPORTED", *sys.modules)
"""

# Of 0.2.0: none goes without the notice that CHANGELOG.md promises.
RELEASED = """EngineError ImageError Pipeline RelationAnnotator Run SceneGraph UserError __version__ generate
iter_records load_recipe load_train_recipe train"""


def imported(*commands: Sequence[str]) -> set[str]:
    """The modules that a process has imported when it has run these commands."""
    script = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
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
    run = str(tmp_path / "run")
    generate = ["generate", "--set", "source.miniworld.images=1", "--out", run]
    with without_ray():
        done = CliRunner().invoke(app, generate)
    assert done.exit_code == 0, done.stderr
    no_model = ["--detector", str(tmp_path / "nothing"), "--out", str(tmp_path / "refused")]
    no_rate = ["--set", "optimisation.lr=-1", "--out", str(tmp_path / "trained")]
    loaded = imported(
        generate,  # nothing is left to do
        ["generate", *no_model],
        ["train", "tagger", *no_rate],
        ["stats", run],
        ["verify", run],
    )
    assert "pyarrow" in loaded
    assert not HEAVY & loaded
