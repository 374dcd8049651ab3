"""What all commands have in common: help, headings, --json, --quiet, a fast start, Ctrl-C; and
`sgpipe doctor`.
"""

import json
import os
import runpy
import shlex
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sgpipe import __version__
from sgpipe.cli.main import app
from sgpipe.export.run import export_run
from tests.integration.documents import commands
from tests.sgpipe.export.runs import records
from tests.sgpipe.stats.runs import make_shards
from tests.values import values_of

COMMANDS = commands()


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_valid_examples(path):
    shown = CliRunner().invoke(app, [*path.split(), "--help"], env={"COLUMNS": "200"}).stdout
    examples = [
        line for text in shown.splitlines() if (line := text.strip()).startswith(f"sgpipe {path}")
    ]
    assert examples
    for example in examples:
        words = shlex.split(example.partition(" <")[0])[1:]
        name = next(
            known
            for known in sorted(COMMANDS, key=len, reverse=True)
            if " ".join(words).startswith(known)
        )
        options = {option for param in COMMANDS[name].params for option in param.opts}
        assert {word for word in words if word.startswith("--")} <= options


def test_python_runs_the_package_as_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sgpipe", "--version"])
    monkeypatch.setattr("sgpipe.cli.main.main", app)
    with pytest.raises(SystemExit):
        runpy.run_module("sgpipe", run_name="__main__")
    assert capsys.readouterr().out == f"{__version__}\n"


def test_quiet_prints_only_results(tmp_path):
    shards = make_shards(tmp_path / "run", records(8))
    exported = export_run(shards, "hf", tmp_path / "hub").root
    words = [
        "import",
        "hf",
        "--annotations",
        str(exported),
        "--split",
        "val",
        "--json",
        "--out",
        str(tmp_path / "in"),
    ]
    loud, quiet, second_quiet = (
        CliRunner().invoke(app, [*options, *words]) for options in ([], ["--quiet"], [])
    )
    assert quiet.stdout == loud.stdout != ""
    assert loud.stderr
    # --quiet does not outlive its command
    assert {*loud.stderr.splitlines()} <= {*second_quiet.stderr.splitlines()}
    assert not quiet.stderr
    wrong = CliRunner().invoke(app, ["--quiet", "verify", str(tmp_path)])
    assert wrong.stderr.startswith("error: ")


def test_parse_prints_one_json_line_for_each_line():
    result = CliRunner().invoke(app, ["parse"], input="a man riding a horse\n\ntwo dogs\n")
    lines = list(map(json.loads, result.stdout.splitlines()))
    assert values_of(lines, "caption") == ["a man riding a horse", "", "two dogs"]
    triplets = [values_of(line["triplets"], "subject", "predicate", "object") for line in lines]
    assert triplets == [[("man", "riding", "horse")], [], []]


@pytest.mark.parametrize(
    ("command", "code", "start"),
    [
        (
            "parse <&-",
            2,
            "error: standard input is closed; `parse` reads one caption per line from it\n",
        ),
        ("--help > /dev/full", 1, "error: No space left on device: standard output"),
    ],
)
def test_streams_that_cannot_be_used_are_named(command, code, start):
    script = f"{sys.executable} -c 'from sgpipe.cli.main import main; main()' {command}"
    result = subprocess.run(script, shell=True, capture_output=True, text=True)
    assert (result.returncode, result.stderr[: len(start)]) == (code, start), result.stderr


def test_ctrl_c_in_an_import_of_a_command_is_one_line(tmp_path):
    """A library that is imported may turn what Ctrl-C raises into another error."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    list(range(9))\n"
        "except BaseException:\n    raise ImportError('broken') from None\n"
    )
    script = "import sys; sys.argv[0] = 'sgpipe'; from sgpipe.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    (tmp_path / "image.png").touch()
    command = [sys.executable, "-c", script, "label", "image.png", "--recipe", "miniworld"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (process.returncode, process.stderr) == (
        130,
        "interrupted. Run the same command again.\n",
    )


def test_this_machine_has_what_sgpipe_needs(tmp_path):
    result = CliRunner().invoke(app, ["doctor", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.stdout
    checks = json.loads(result.stdout)
    names = ["packages", "gpu", "parser", "models", "captions", "disk", "ray", "hub"]
    assert values_of(checks, "name") == names
    assert all(item["fix"] for item in checks if item["state"] == "bad")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["label", "generate folder --images"])
def test_a_missing_hub_model_is_said_before_pytorch_is_imported(command, tmp_path):
    (tmp_path / "a.png").touch()
    models = "--detector nobody/nothing --captioner miniworld --tagger miniworld"
    words = f"{command} {tmp_path} {models} --out {tmp_path / 'out'}".split()
    script = (
        "import sys\nfrom sgpipe.cli.main import main\nsys.argv[1:] = "
        + repr(words)
        + "\ntry:\n    main()\nfinally:\n    print(*sorted({'torch', 'transformers', 'ray'} &"
        " sys.modules.keys()))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert process.returncode == 2, process.stderr
    assert "nobody/nothing" in process.stderr
    assert "(HF_HUB_OFFLINE is set)" in process.stderr
    assert process.stdout.strip() == ""
