import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from transformers import RobertaModel
from typer.testing import CliRunner

from rlip_model.text import build_tokenizer
from sgpipe.cli.main import app
from tests.detections import make_coco
from tests.factories import tiny_config


def invoke(*arguments: object, stdin: str | None = None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def one_line(result) -> str:
    assert not isinstance(result.exception, Exception), result.exception
    *progress, message = result.stderr.splitlines()
    assert all(line.startswith("reading the annotations") for line in progress)
    assert message.startswith("error: ")
    return message


@pytest.fixture
def coco(tmp_path):
    return make_coco(tmp_path / "coco", images=2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--images", "{images}"], "--annotations"),
        (["--annotations", "{annotations}"], "--images"),
        (["--images", "/nowhere", "--annotations", "{annotations}"], "/nowhere"),
        (["--images", "{images}", "--annotations", "no.json"], "no.json"),
        (["--images", "{images}", "--annotations", "{images}/0000.png"], "0000.png"),
        (["--images", "{images}", "--annotations", "{captions}"], "captions"),
        (["--split", "a/b", "--images", "{images}", "--annotations", "{annotations}"], "splits"),
        (["--set", "caption.captioner=null", "--images", "{images}", "--annotations", "{annotations}"], "--captioner"),
        (["--precision", "0.9", "--images", "{images}", "--annotations", "{annotations}"], "--calibration"),
        (["--set", "x=1"], "'x'"),
        (["--set", "x"], "key=value"),
        (["--set", "tag.tagger=null", "--images", "{images}", "--annotations", "{annotations}"], "tag.tagger"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(coco, tmp_path, options, named):
    places = {"images": coco.images, "annotations": coco.annotations, "captions": coco.captions}
    options = [option.format(**places) for option in options]
    models = [] if "tag.tagger=null" in options else ["--tagger", "t"]
    result = invoke("generate", "coco", "--out", tmp_path / "a" / "out", *models, *options)
    assert result.exit_code == 2
    assert named in one_line(result)


def test_truncated_annotations_and_other_folders_are_refused(coco, tmp_path):
    coco.annotations.write_text(coco.annotations.read_text()[:-100])
    options = [*coco.options, "--tagger", "t", "--out"]
    result = invoke("generate", "coco", *options, tmp_path / "out")
    assert result.exit_code == 2
    assert "instances" in one_line(result)
    result = invoke("generate", "coco", *options, coco.images)
    assert result.exit_code == 2
    assert str(coco.images) in one_line(result)
    assert sorted(path.suffix for path in coco.images.iterdir()) == [".png", ".png"]


def test_parse_prints_one_json_line_for_each_line():
    result = invoke("parse", stdin="a man riding a horse\n\ntwo dogs\n")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["caption"] for line in lines] == ["a man riding a horse", "", "two dogs"]
    triplets = [[(t["subject"], t["predicate"], t["object"]) for t in line["triplets"]] for line in lines]
    assert triplets == [[("man", "riding", "horse")], [], []]


@pytest.mark.slow
def test_parse_into_a_closed_pipe_is_silent():
    script = "from sgpipe.cli.main import main; main()"
    command = f"yes 'a man riding a horse' | head -3000 | {sys.executable} -c '{script}' parse | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert json.loads(result.stdout)["triplets"]
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("parse <&-", 2, "error: standard input is closed; `parse` reads one caption per line from it\n"),
        (
            "--help > /dev/full",
            1,
            "error: No space left on device: standard output, or a file that the system does not",
        ),
    ],
)
def test_streams_that_cannot_be_used_are_named(command, code, said):
    script = f"{sys.executable} -c 'from sgpipe.cli.main import main; main()' {command}"
    result = subprocess.run(script, shell=True, capture_output=True, text=True)
    assert (result.returncode, result.stderr[: len(said)]) == (code, said), result.stderr


def test_a_terminal_that_is_not_utf_8_gets_escapes():
    script = """
import atexit
from sgpipe.cli.main import main
atexit.register(print, "≥")
main()
"""
    command = [sys.executable, "-c", script, "--version"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stdout.splitlines()[1:], result.stderr) == (0, ["\\u2265"], "")


def test_convert_refuses_other_files(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"not a checkpoint")
    for name in ("a.pth", "missing.pth"):
        result = invoke("convert", tmp_path / name, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert name in one_line(result)
    assert not (tmp_path / "out").exists()


def test_generate_asks_for_a_split_that_nothing_is_named_after(coco, tmp_path):
    annotations = coco.annotations.rename(coco.annotations.with_name("inst.json"))
    options = ["--tagger", "t", "--captions", coco.captions, "--out", tmp_path / "out"]
    result = invoke("generate", "coco", "--images", coco.images, "--annotations", annotations, *options)
    assert result.exit_code == 2
    assert "--split" in one_line(result)
    assert not (tmp_path / "out").exists()
    images = coco.images.rename(coco.images.with_name("images_val2017"))
    training = annotations.rename(annotations.with_name("instances_train2017.json"))
    result = invoke("generate", "coco", "--images", images, "--annotations", training, *options)
    assert result.exit_code == 2
    assert "--split val" in one_line(result)
    result = invoke("generate", "folder", "--images", coco.images, "--annotations", annotations, *options)
    assert "omit --annotations" in one_line(result)


def test_convert_names_what_does_not_fit(tmp_path):
    torch.save({"model": {"backbone.weight": torch.zeros(2)}}, tmp_path / "detector.pth")
    tokenizer = build_tokenizer(["person dog riding next to holding under above near behind on in with at"])
    tokenizer.save_pretrained(tmp_path / "roberta")
    RobertaModel(tiny_config(len(tokenizer)).text_config).save_pretrained(tmp_path / "roberta")
    common = ("convert", tmp_path / "detector.pth", "--out", tmp_path / "out", "--tokenizer", tmp_path / "roberta")
    result = invoke(*common, "--as", "parseda")
    assert result.exit_code == 2
    assert "it is not a (DAB-)Deformable-DETR: it has no transformer.level_embed" in result.stderr.splitlines()[-1]
    result = invoke(*common, "--as", "parseda", "--first-rows")
    assert result.exit_code == 2
    assert "not for --as" in result.stderr.splitlines()[-1]
    result = invoke(*common, "--as", "detr")
    assert result.exit_code == 2
    assert "unknown network 'detr', expected one of parseda, parsed, tagger, rlipv1" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


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
