"""`sgpipe reproduce`: packaged lists, what runs in which order, and what is skipped. An integration
test runs one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from sgpipe.cli.main import app
from sgpipe.cli.reproduction import (
    REPORT,
    STATE,
    Reproduction,
    load_reproduction,
    make_tasks,
    reproduce,
)
from sgpipe.errors import EngineError, UserError
from sgpipe.recipe import load_recipe
from sgpipe.training.metrics import METRICS
from sgpipe.training.recipe import load_train_recipe, train_recipe_folder
from sgpipe.utils.config_file import changed
from sgpipe.utils.console import Progress
from tests.values import values_of

QUIET = Progress(Console(quiet=True))
SCALES = ("published", "one-gpu", "miniature")


def parse_words(command: Any, words: Sequence[str]) -> None:
    """Raise what typer does if the words are not a command with its options."""
    rest = list(words)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    command.make_parser(typer.Context(command)).parse_args(rest)


@pytest.mark.parametrize("scale", SCALES)
def test_every_command_of_the_paper_parses_and_names_recipes_that_there_are(scale: str) -> None:
    paper = load_reproduction("rlipv2", scale, [])
    root = typer.main.get_command(app)
    tasks = make_tasks(paper, Path("DATA"), Path("OUT"))
    assert values_of(tasks, "step") == list(paper.steps)  # each is needed for a figure
    trained = set()
    outputs = set[Path]()
    for task in tasks:
        assert task.reads <= outputs
        outputs.add(task.out)
        assert "{" not in task.command
        parse_words(root, task.words)
        if task.words[0] == "generate":
            assert load_recipe(task.words[1])
        if task.words[0] == "train":
            trained.add(
                load_train_recipe(task.words[1])
                .name.removeprefix("miniworld-")
                .replace("parseda", "pretrain")
            )
    assert len(outputs) == len(tasks)
    assert trained - {"detector"} == set(values_of(train_recipe_folder().glob("*.yaml"), "stem"))
    assert {task.step.published for task in tasks} - {None} == set(paper.published)
    assert all(task.missing for task in tasks if task.words[0] in ("import", "convert")) == (
        scale != "miniature"
    )


@pytest.mark.parametrize(
    "path", sorted((train_recipe_folder() / "one-gpu").iterdir()), ids=lambda path: path.stem
)
def test_one_gpu_makes_the_published_steps_in_parts(path: Path) -> None:
    published = load_train_recipe(path.stem)
    recipe = load_train_recipe(f"one-gpu/{path.stem}")
    parts = {
        "accumulate": recipe.optimisation.batch // 4,
        "activation_checkpointing": True,
    }
    assert recipe == changed(published, optimisation=changed(published.optimisation, **parts))


def test_weights_of_the_authors_replace_the_steps_before_them(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "RLIPv2_ParSeDA.pth").touch()
    tasks = make_tasks(
        load_reproduction("rlipv2", "published", []), tmp_path, Path("OUT"), "zero-shot"
    )
    assert [task.words[0] for task in tasks] == ["convert", "import", "eval"]
    assert tasks[-1].reads == {Path("OUT/pretrained"), Path("OUT/hico-test")}


def paper(**changes: object) -> Reproduction:
    steps = [
        {"name": "a", "run": "import hico --annotations {data}/a.json --out {out}/a", "gives": "a"},
        {
            "name": "b",
            "run": "train hico --data {out}/a@0.5 --steps {n} --out {out}/b",
            "gives": "b",
        },
        {
            "name": "c",
            "run": "eval hico --model {out}/b --json-file {out}/c.json",
            "gives": "c",
            "figure": "mAP",
        },
    ]
    return Reproduction.model_validate(
        {"title": "t", "values": {"n": 3}, "steps": steps, **changes}
    )


class Runner:
    """Stands for sgpipe: writes what a command would; ends like a killed process before the command
    `kill`.
    """

    def __init__(self, kill: int | None = None, code: int = 0, figure: float | None = 0.25) -> None:
        self.kill = kill
        self.code = code
        self.figure = figure
        self.ran = list[str]()

    def __call__(self, words: Sequence[str]) -> int:
        if len(self.ran) == self.kill:
            raise KeyboardInterrupt
        self.ran.append(words[0])
        place = Path(words[-1])
        (
            place.write_text(json.dumps({"summary": {"mAP": self.figure}}))
            if place.suffix
            else place.mkdir(exist_ok=True)
        )
        return self.code


def run(root: Path, runner: Runner, chosen: Reproduction | None = None) -> dict[str, Any]:
    chosen = chosen or paper()
    return reproduce(
        chosen, make_tasks(chosen, root / "data", root / "out"), root / "out", runner, QUIET
    )


@pytest.mark.slow
@pytest.mark.parametrize("kill", [0, 1, 2])
def test_killed_at_any_step_the_rest_runs_once(tmp_path: Path, kill: int) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.json").touch()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, first := Runner(kill))
    state = run(tmp_path, second := Runner())
    assert [*first.ran, *second.ran] == ["import", "train", "eval"]
    assert state["c"].figure == 25
    assert "25.00" in (tmp_path / "out" / REPORT).read_text()
    (tmp_path / "data" / "a.json").unlink()
    runner = Runner()
    # inputs of what is done need not be there
    assert (run(tmp_path, runner), runner.ran) == (
        state,
        [],
    )
    (tmp_path / "out" / "b").rmdir()
    run(tmp_path, runner)
    assert runner.ran == ["train", "eval"]  # what reads it, too
    (tmp_path / "out" / "b" / METRICS).write_text(
        '{"event": "validation", "epoch": 1, "step": 2}\n'
    )
    run(tmp_path, Runner())  # a training without steps has no curve
    with pytest.raises(
        UserError,
        match=r"ran step b with another command: choose another --out, or revert to .*steps 3",
    ):
        run(tmp_path, Runner(), paper(values={"n": 4}))


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (1, EngineError, "step a failed with exit code 1"),
        (2, UserError, "step a failed"),
        (130, SystemExit, "^130$"),
    ],
)
def test_a_failed_step_ends_the_list_and_is_not_done(
    tmp_path: Path, code: int, kind: type[BaseException], message: str
) -> None:
    with pytest.raises(UserError, match="1 input missing"):
        run(tmp_path, Runner())
    assert list(tmp_path.iterdir()) == []
    for place in ("data", "data/a.json"):
        (tmp_path / place).mkdir()
    with pytest.raises(kind, match=message):
        run(tmp_path, Runner(code=code))
    run(tmp_path, runner := Runner())
    assert runner.ran == ["import", "train", "eval"]


def test_a_figure_that_is_not_a_number_has_a_dash(tmp_path: Path) -> None:
    for place in ("data", "data/a.json"):
        (tmp_path / place).mkdir()
    assert run(tmp_path, Runner(figure=None))["c"].figure is None
    assert "–" in (tmp_path / "out" / REPORT).read_text()


def test_what_is_done_does_not_depend_on_how_the_folders_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("data", "data/a.json"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path)
    run(Path(), Runner())
    run(tmp_path, runner := Runner())
    assert runner.ran == []
    for damaged in ('{"a": 1}', '{"a": {"command": "x"}}', "[", "[]"):
        (tmp_path / "out" / STATE).write_text(damaged)
        with pytest.raises(UserError, match=r"^\S+/out/reproduce.json is damaged: delete it"):
            run(tmp_path, Runner())


def test_all_missing_inputs_are_one_message_before_the_first_step(tmp_path: Path) -> None:
    def invoke(*words: str) -> Result:
        return CliRunner().invoke(
            app, ["reproduce", *words, "--data", str(tmp_path), "--out", str(tmp_path / "out")]
        )

    result = invoke("rlipv2", "--until", "tagger")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: 4 inputs missing: ")
    for name in (
        "vg/scene_graphs.json",
        "vg/image_data.json",
        "vg/images",
        "weights/deformable_detr.pth",
    ):
        assert f"{tmp_path}/{name}" in result.stderr
    shown = invoke("rlipv2", "--until", "tagger", "--dry-run").stdout
    assert (shown.count("\n  sgpipe "), shown.count("\n  missing: ")) == (3, 4)
    plan = json.loads(invoke("rlipv2", "--until", "tagger", "--dry-run", "--json").stdout)["steps"]
    assert [len(step["missing"]) for step in plan] == [3, 1, 0]
    assert "--until x: the steps are vg, " in invoke("rlipv2", "--until", "x").stderr
    assert (
        "'x' is not one of 'published', 'one-gpu', 'miniature'"
        in invoke("rlipv2", "--scale", "x").stderr
    )
    mistyped = invoke("rlipv2", "--scale", "miniature", "--set", "values.tager_steps=3")
    assert mistyped.stderr.startswith("error: --set values.tager_steps: the values are ")
