"""The commands of the documents are understood, and those that need nothing that is not here are
run.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tests.integration.documents import DOCUMENTS, ROOT, Block, blocks, commands

BLOCKS = blocks()
COMMANDS = commands()
RUNS = ("coco-relations", "out", "RUN", "OTHER")


def test_every_marker_is_before_a_block() -> None:
    markers = sum(
        len(re.findall("^<!-- needs:", path.read_text(), re.MULTILINE)) for path in DOCUMENTS
    )
    assert markers == sum(block.needs is not None for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_commands_are_understood(block: Block) -> None:
    for words in block.commands():
        command = COMMANDS[words.pop(0)]
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        if "…" in words:
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known
        else:
            try:
                command.make_context(str(command.name), words)
            except typer.BadParameter as error:
                # unknown options are found before paths, which need not exist here
                if not str(error).endswith("does not exist."):
                    raise


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the documents take for granted: a run, under the names they use, and its
    ground truth.
    """
    folder = tmp_path_factory.mktemp("documents")
    shell(
        folder,
        "sgpipe miniworld --count 12 --out drawn && sgpipe generate --set"
        " source.miniworld.images=12 --out made",
    )
    shell(
        folder,
        "sgpipe import vg --annotations drawn/scene_graphs.json --images drawn/images --out"
        " IMPORTED",
    )
    for name in RUNS:
        shutil.copytree(folder / "made", folder / name)
    shutil.rmtree(folder / "drawn")
    (folder / "docs").mkdir()
    (folder / "docs" / "images").symlink_to(ROOT / "docs" / "images")
    return folder


def shell(folder: Path, text: str) -> None:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", text],
        cwd=folder,
        env={**os.environ, "PATH": programs},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_commands_work(block: Block, place: Path) -> None:
    """In the order of the documents, as a reader types them."""
    if block.needs:
        pytest.skip(f"needs {block.needs}")
    (place / "block.py").write_text(block.text, encoding="utf-8")
    shell(place, block.text if block.language == "sh" else "python block.py")


def test_links_lead_somewhere() -> None:
    """Also where no site is built; pages that only the site has are made by docs/hooks."""
    generated = {
        ROOT / "docs" / name
        for name in ("cli.md", "settings.md", "training-settings.md", "benchmarks.md")
    }
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            linked = path.parent / target
            assert linked.exists() or linked in generated, (path.relative_to(ROOT), target)
