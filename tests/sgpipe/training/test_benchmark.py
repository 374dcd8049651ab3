"""The score of a benchmark in validation is that of `sgpipe predict` and `sgpipe eval`, whoever
computes it.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import sgpipe
from rlip_model.distributed import gather
from rlip_model.evaluation import scores
from rlip_model.evaluation.scores import Tally
from rlip_model.model import ParSeDA
from rlip_model.training.objective import Objective
from rlip_model.training.state import TRAINING
from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.inference import predictor
from sgpipe.inference.predictions import RowGroup
from sgpipe.sources.annotated import DatasetClasses
from sgpipe.sources.hoi import hico_source
from sgpipe.sources.import_run import import_annotations
from sgpipe.training import job
from sgpipe.training.data.scan import scan_training, scan_validation
from sgpipe.training.job import Benchmark, check_benchmark, make_objective
from sgpipe.training.metrics import read_metrics
from sgpipe.training.recipe import TrainRecipe, load_train_recipe
from sgpipe.training.run import train
from sgpipe.utils.console import Progress
from tests.sgpipe.training.trainings import QUIET, make_run

PACKAGED = Path(sgpipe.__file__).parent / "miniworld" / "weights" / "parseda"
SHARDS = {"short_side": 96, "long_side": 144, "labels": "full", "text_group": None, "augment": None}


@pytest.fixture(scope="module")
def hico_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards in HICO-DET's form of synthetic images, one of them without relations."""
    root = tmp_path_factory.mktemp("hico")
    make_run(root)
    drawn = root / "drawn"
    items = json.loads((drawn / "hico.json").read_text())
    items[0]["hoi_annotation"] = []
    (drawn / "hico.json").write_text(json.dumps(items))
    source = hico_source(drawn / "hico.json", "test", drawn / "hico_classes.json")
    import_annotations(source, drawn / "images", root / "hico", Progress(Console(quiet=True)))
    return root / "hico"


def still(run: Path, **changes: object) -> TrainRecipe:
    """One step, without learning, of the packaged network, which finds some relations."""
    part = [{"shards": str(run)}]
    settings = {
        **{f"data.{name}": value for name, value in SHARDS.items()},
        "data.train": part,
        "data.val": part,
        "model.init": str(PACKAGED),
        "model.config": {"num_queries": 40},
        **{f"optimisation.{name}": 0 for name in ("lr", "lr_backbone", "lr_text", "weight_decay")},
        "optimisation.steps": 1,
        "optimisation.batch": 4,
        "output.best": "hico",
        "output.tensorboard": False,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return load_train_recipe("pretrain", settings)


def scanned(run: Path) -> tuple[TrainRecipe, DatasetClasses]:
    recipe = still(run)
    validation = scan_validation(recipe.data, scan_training(recipe.data))
    assert validation is not None
    assert validation.closed_labels is not None
    return recipe, validation.closed_labels


@pytest.fixture(scope="module")
def trained(hico_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmark") / "out"
    train(still(hico_run), out, QUIET)
    return out


def test_the_score_is_that_of_predict_and_eval(
    hico_run: Path, trained: Path, tmp_path: Path
) -> None:
    (row,) = [row for row in read_metrics(trained) if row["event"] == "validation"]
    assert row["hico"] > 0.01
    assert json.loads((trained / "last" / TRAINING).read_text())["best"] == row["hico"]
    drawn = hico_run.parent / "drawn"
    scored = tmp_path / "scores.json"
    for command in (
        f"predict {trained} --data {hico_run} --out {tmp_path}/found.json",
        (
            f"eval hico --predictions {tmp_path}/found.json --annotations {drawn}/hico.json"
            f" --json-file {scored}"
        ),
    ):
        result = CliRunner().invoke(
            app, [*command.split(), "--classes", f"{drawn}/hico_classes.json"]
        )
        assert result.exit_code == 0, result.output
    assert json.loads(scored.read_text())["summary"]["mAP"] == row["hico"]


def test_open_images_score_is_that_of_eval(hico_run: Path, trained: Path, tmp_path: Path) -> None:
    recipe, labels = scanned(hico_run)
    openimages = Benchmark(
        "openimages", make_objective(_packaged(), recipe), recipe.data, labels, 4
    )()["openimages"]
    command = (
        "eval",
        "openimages",
        "--model",
        trained,
        "--data",
        hico_run,
        "--json-file",
        tmp_path / "out",
    )
    result = CliRunner().invoke(app, [*map(str, command)])
    assert result.exit_code == 0, result.output
    assert openimages > 0.01
    assert json.loads((tmp_path / "out").read_text())["summary"]["score_wtd (wmAP)"] == openimages


def test_several_processes_get_the_score_of_one(
    hico_run: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process has images of its own; what they collect is merged in the order of the
    shards.
    """
    recipe, labels = scanned(hico_run)
    collected: list[Tally] = []
    annotated: list[int] = []
    read = predictor.iter_rows
    list_all = job.list_row_groups
    annotations = job.shard_annotations

    def halves(*place: object) -> list[RowGroup]:
        return [replace(group, group=half) for group in list_all(*place) for half in (0, 1)]

    def annotations_of_half(*place: object, group: RowGroup, **options: Any) -> Any:
        annotated.append(group.group)
        return annotations(*place, group=replace(group, group=0), **options)

    def read_half(group: RowGroup) -> Iterator[Any]:
        return islice(read(replace(group, group=0)), *((7, None) if group.group else (7,)))

    def gathered(value: Any) -> list[Any]:
        if isinstance(value, Tally):
            collected.append(value)
        return gather(value)

    monkeypatch.setattr(scores, "gather", gathered)
    (row,) = [row for row in read_metrics(trained) if row["event"] == "validation"]
    for name in ("hico", "openimages"):
        collected.clear()
        target = make_objective(_packaged(), recipe)
        shares = [Benchmark(name, target, recipe.data, labels, 4, (rank, 2)) for rank in (0, 1)]
        single = Benchmark(name, target, recipe.data, labels, 4)()
        parts = len(collected)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(job, "list_row_groups", halves)
            patch.setattr(job, "shard_annotations", annotations_of_half)
            patch.setattr(predictor, "iter_rows", read_half)
            for rank, share in enumerate(shares):
                annotated.clear()
                share()
                assert annotated == [rank]  # of its own row groups only
        merged = scores._merged([collected[parts], collected[2 * parts]]).class_scores()
        expected = collected[0].class_scores()
        assert merged.average_precision.tolist() == expected.average_precision.tolist()
        assert (
            0
            < len(collected[parts].target_classes[0])
            < merged.targets.sum()
            == expected.targets.sum()
        )
        assert name == "openimages" or single["hico"] == row["hico"] == expected.mean()


def _packaged() -> ParSeDA:
    return ParSeDA.from_pretrained(PACKAGED)


def test_processes_with_fewer_images_wait_for_the_others(
    hico_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, labels = scanned(hico_run)
    other_has_more = [True] * 20
    passes = [0]
    detect_images = Objective.detect

    def detect(self: Objective, *images: object) -> Any:
        passes[0] += 1
        return detect_images(self, *images)

    monkeypatch.setattr(Objective, "detect", detect)
    monkeypatch.setattr(
        job, "gather", lambda more: [more, bool(other_has_more) and other_has_more.pop()]
    )
    Benchmark("hico", make_objective(_packaged(), recipe), recipe.data, labels, 12)()
    assert passes[0] == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__labels": "sampled"},
            "and validation shards with closed class lists with 'person'",
        ),
        (
            {"model__kind": "tagger"},
            "output.best: hico needs a training of relations that a detector finds",
        ),
        (
            {"data__val.0.limit": 3},
            "output.best: hico scores all images of .*, so data.val takes no limit with it",
        ),
        (
            {"loss__only_boxes": True},
            "that a detector finds, .*; use output.best: ap, recall or loss",
        ),
    ],
)
def test_a_training_that_cannot_be_scored_so_is_refused(
    hico_run: Path, changes: dict[str, Any], message: str
) -> None:
    recipe = still(hico_run, **changes)
    validation = scan_validation(recipe.data, scan_training(recipe.data))
    with pytest.raises(UserError, match=message):
        check_benchmark(recipe, validation)
    check_benchmark(recipe, None)  # nothing is validated
    check_benchmark(
        recipe.model_copy(update={"output": recipe.output.model_copy(update={"best": "ap"})}),
        validation,
    )
