import json
import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app


def invoke(*arguments: object, stdin: str | None = None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def test_parse_prints_one_json_line_for_each_line():
    result = invoke("parse", stdin="a man riding a horse\n\ntwo dogs\n")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["caption"] for line in lines] == ["a man riding a horse", "", "two dogs"]
    triplets = [[(t["subject"], t["predicate"], t["object"]) for t in line["triplets"]] for line in lines]
    assert triplets == [[("man", "riding", "horse")], [], []]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("parse <&-", 2, "error: standard input is closed; `parse` reads one caption per line from it\n"),
        ("--help > /dev/full", 1, "error: No space left on device: standard output"),
    ],
)
def test_streams_that_cannot_be_used_are_named(command, code, said):
    script = f"{sys.executable} -c 'from sgpipe.cli.main import main; main()' {command}"
    result = subprocess.run(script, shell=True, capture_output=True, text=True)
    assert (result.returncode, result.stderr[: len(said)]) == (code, said), result.stderr


STARTED = """
import os, signal, sys
sys.argv[0] = {program!r}
import sgpipe.cli
{then}
os.kill(os.getpid(), signal.SIGINT)
"""
RUN = "from sgpipe.cli.main import app; from typer.testing import CliRunner; CliRunner().invoke(app, ['parse', '--x'])"


@pytest.mark.parametrize(
    ("program", "then", "code", "said"),
    [
        ("/usr/bin/sgpipe", "", 130, "interrupted. Run the same command again.\n"),
        ("/usr/bin/sgpipe", RUN, -signal.SIGINT, "KeyboardInterrupt\n"),  # from here on, `_Group` handles it
        ("another.py", "", -signal.SIGINT, "KeyboardInterrupt\n"),
    ],
)
def test_ctrl_c_while_the_command_is_imported_is_one_line(program, then, code, said):
    script = STARTED.format(program=program, then=then)
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == code
    assert process.stderr.endswith(said)
    assert code < 0 or process.stderr == said


def test_ctrl_c_in_an_import_of_a_command_is_one_line(tmp_path):
    """A library that is imported may turn what Ctrl-C raises into another error."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    list(range(9))\n"
        "except BaseException:\n    raise ImportError('broken') from None\n"
    )
    script = "import sys; sys.argv[0] = 'sgpipe'; from sgpipe.cli.main import main; main()"
    places = os.pathsep.join([str(tmp_path), *sys.path])
    (tmp_path / "image.png").touch()
    for command in (["label", "image.png"], ["train", "tagger", "--data", ".", "--out", "out"]):
        process = subprocess.run(
            [sys.executable, "-c", script, *command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": places},
        )
        assert (process.returncode, process.stderr) == (130, "interrupted. Run the same command again.\n")
