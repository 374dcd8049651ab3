"""A stage of one's own runs after one of sgpipe's, and what it returns is checked."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import ray
from rich.console import Console

from sgpipe import load_recipe
from sgpipe.cli.recipe_options import own_stages as settings_of_option
from sgpipe.errors import UserError
from sgpipe.generation.checks import check_code
from sgpipe.generation.identity import identity, parent_recipe
from sgpipe.generation.plan import plan
from sgpipe.generation.run import generate
from sgpipe.plugins import code_identity
from sgpipe.recipe import STAGES, CaptionConfig, Recipe, StagePlan
from sgpipe.records import Caption, Record
from sgpipe.stages.base import LoadStage
from sgpipe.stages.context import StageContext
from sgpipe.stages.own_stage import OwnStage
from sgpipe.storage.run_records import iter_records
from sgpipe.utils.console import Progress
from tests.sgpipe.generation.in_process import without_ray

STAGE = "own_stages:Shout"
CODE = """
import sgpipe
class Shout(sgpipe.Stage):
    def fill(self, record):
        for caption in record.captions:
            caption.text = f"the {caption.text}"
class Numbers(sgpipe.Stage):
    def __init__(self, config, seed, classes, *, more: tuple[int, ...] = ()):
        super().__init__(config)
        self.numbers = [seed, *classes, *more]
    @classmethod
    def of(cls, context):
        seed = context.plan.seed
        return cls(context.config, seed, context.classes.values(), **context.options)
    def fill(self, record):
        record.captions[0].text = str(self.numbers)
class Bad(sgpipe.Stage):
    def __call__(self, records):
        BODY
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module of one's own."""
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    monkeypatch.delitem(sys.modules, "own_stages", raising=False)
    file = folder / "own_stages.py"
    file.write_text(CODE.replace("BODY", "return records"))
    return file


def recipe(*stages: str, engine: str = "local") -> Recipe:
    settings = {
        "source.miniworld.images": 4,
        "caption.samples": 2,
        "caption.then": list(stages),
        "engine.kind": engine,
    }
    return load_recipe("miniworld", settings)


def labelled(out: Path, stage: str, engine: str) -> list[Record]:
    generate(recipe(stage, engine=engine), out)
    return list(iter_records(out))


@without_ray()
def test_it_changes_what_later_stages_read_and_is_imported_only_by_whoever_names_it(
    code: Path, tmp_path: Path
) -> None:
    output = io.StringIO()
    generate(recipe(STAGE), tmp_path / "run", Progress(Console(file=output, width=1000)))
    records = list(iter_records(tmp_path / "run"))
    assert f"importing {STAGE}" in output.getvalue()
    assert (tmp_path / "run" / "recipe.yaml").read_text().count("then:") == 1
    assert all(caption.text.startswith("the ") for row in records for caption in row.captions)
    with pytest.raises(UserError, match=f"pass --then caption={STAGE}"):
        parent_recipe(str(tmp_path / "run"), {})
    repeated = parent_recipe(str(tmp_path / "run"), {"caption.then": [STAGE]})
    assert repeated.caption.then == (STAGE,)
    assert parent_recipe(str(tmp_path / "run"), {"caption.then": []}).caption.then == ()


def test_a_plan_says_what_it_imports(code: Path) -> None:
    output = io.StringIO()
    settings = {"caption.then": [STAGE], "tag.tagger": "no-such-tagger"}
    with pytest.raises(UserError, match="no-such-tagger"):
        plan(load_recipe("miniworld", settings), Progress(Console(file=output, width=1000)))
    assert f"importing {STAGE}" in output.getvalue()


@pytest.mark.slow
def test_it_labels_alike_on_ray(code: Path, tmp_path: Path) -> None:
    ray.shutdown()  # workers of a Ray that another test started do not know the folder
    on_ray = labelled(tmp_path / "ray", STAGE, "ray")
    assert on_ray == labelled(tmp_path / "local", STAGE, "local")


def test_it_is_in_the_identity_if_there_is_one(code: Path) -> None:
    without = identity(recipe()).as_json()
    assert "then" not in str(without)
    expected = dict(without["caption"], then=[code_identity("stage", STAGE)])
    assert identity(recipe(STAGE)).as_json() == without | {"caption": expected}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return records[1:]", "returns other records than it got"),
        ("return None", "returns other records than it got"),
        ("records[0].captions = ['a dog']; return records", "captions.0. is 'a dog', expected a sgpipe.Caption"),
        ("records[0].captions[0].boxes = [7]; return records", "boxes of captions point to none of the objects"),
        ("return records[0]['x']", r"failed: TypeError: .* \(own_stages.py:19\)"),
    ],
)  # fmt: skip
def test_what_it_returns_is_checked(code: Path, body: str, message: str) -> None:
    code.write_text(CODE.replace("BODY", body))
    config = CaptionConfig()
    context = StageContext(config, StagePlan.of_recipe(Recipe()), {}, {})
    stage = OwnStage("own_stages:Bad", LoadStage({}, config.resources), context)
    record = Record("7", "own", "val", "7.png", 9, 9, captions=[Caption("a dog")])
    with pytest.raises(UserError, match=f"stage own_stages:Bad.*{message}") as error:
        stage([record])
    assert "\n" not in str(error.value)


def test_one_that_knows_the_run_makes_itself_of_its_context(code: Path) -> None:
    section = {"then": ["own_stages:Numbers"], "options": {"more": ["5"]}}
    plan = StagePlan.of_recipe(Recipe(seed=7, caption=section))
    context = StageContext(plan.caption, plan, {}, {"person": 1, "dog": 18})
    stage = OwnStage("own_stages:Numbers", LoadStage({}, plan.parse.resources), context)
    [record] = stage([Record("7", "own", "val", "7.png", 9, 9, captions=[Caption("a dog")])])
    assert record.captions[0].text == "[7, 1, 18, 5]"


def test_names_are_checked_before_workers_start(code: Path) -> None:
    assert settings_of_option(["caption=a:B", "tag=c:D", "caption=e:F"]) == {
        "caption.then": ["a:B", "e:F"],
        "tag.then": ["c:D"],
    }
    with pytest.raises(UserError, match=r"expected STAGE=package\.module:Class"):
        settings_of_option(["own:Stage"])
    with pytest.raises(UserError, match="'nowhere' is not a stage"):
        check_code(recipe("nowhere"), STAGES)
    with pytest.raises(UserError, match=r"is not a subclass of sgpipe\.Stage"):
        check_code(recipe("own_stages:sgpipe"), STAGES)
    absent = load_recipe("miniworld", {"ground.then": [STAGE]})
    with pytest.raises(UserError, match="the stage ground does not run for this recipe"):
        check_code(absent, STAGES)
