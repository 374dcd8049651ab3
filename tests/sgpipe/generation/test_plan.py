"""What `sgpipe plan` tells from the shards of a sample, against simulated workers and a run of this
machine.
"""

import heapq
import io
import json
import random
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.generation.engine import WorkUnit
from sgpipe.generation.plan import Plan, _Labelled, _measured, _sample, print_plan
from sgpipe.storage.manifest import ShardEntry
from sgpipe.storage.tokens import CACHED, COMPLETION, PROMPT, Prices
from sgpipe.utils.config_file import recipe_folder
from tests.values import values_of

GROUNDED = recipe_folder() / "miniworld" / "grounded.yaml"
SECONDS = {"caption": 20.0, "parse": 1.0, "tag": 9.0, "compilation": 50.0}
ON_CPUS = {("caption",): 1, ("parse", "tag"): 5}
ON_GPUS = {("caption",): 2, ("parse",): 1, ("tag",): 2}


def simulate(
    units: list[int], workers: int, load: float, cost: float, seed: int
) -> list[tuple[float, ShardEntry]]:
    """The shards of units of so many rows, and when each comes: workers load models, then take unit
    after unit.
    """
    noise = random.Random(seed)
    done = []
    free = [(load, worker) for worker in range(workers)]
    for number, rows in enumerate(units):
        began, worker = heapq.heappop(free)
        seconds = sum(cost * noise.uniform(0.8, 1.2) for _ in range(rows))
        heapq.heappush(free, (began + seconds, worker))
        stages = {"caption": 0.75 * seconds, "tag": 0.25 * seconds}
        counts = {"errors": rows // 5}
        done.append(
            (
                began + seconds,
                ShardEntry("all", 0, rows, f"{number}", "", 100 * rows, counts, stages),
            )
        )
    return sorted(done, key=lambda event: event[0])


@given(
    workers=st.integers(1, 8),
    load=st.floats(0, 60),
    cost=st.floats(0.01, 5),
    total=st.integers(2_000, 20_000),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_plan_of_simulated_workers_is_right(
    workers: int, load: float, cost: float, total: int, seed: int
) -> None:
    units = _sample([WorkUnit("all", 0, total)], 64, workers, seed)
    rows = values_of(units, "rows")
    plan = _measured(
        total,
        0.0,
        [_Labelled(*labelled) for labelled in simulate(rows, workers, load, cost, seed)],
        {("caption", "tag"): workers},
        0,
        is_local=True,
    )
    took = simulate([10] * (total // 10), workers, load, cost, seed + 1)[-1][0]
    assert abs(plan.seconds() / took - 1) < 0.15
    assert abs(plan.stages["caption"] / plan.stages["tag"] - 3) < 1e-6
    assert plan.as_json()["bottleneck"] == "caption"
    assert plan.seconds(2) - plan.start == pytest.approx((plan.seconds() - plan.start) / 2)
    assert plan.as_json(price_per_hour=3600)["price"] == pytest.approx(plan.seconds())
    tokens = {PROMPT: 500_000, CACHED: 200_000, COMPLETION: 100_000}
    priced = replace(plan, tokens=tokens).as_json(2, 3600, Prices(2, 8, 1))
    assert priced["price"] == pytest.approx(2 * plan.seconds(2) + 0.6 + 0.2 + 0.8)
    assert plan.as_json()["disk_bytes"] == 100 * total
    expected, fewest, largest = plan.errors
    assert fewest <= expected <= largest


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=5),
    st.integers(1, 200),
    st.integers(1, 8),
    st.integers(0, 9),
)
def test_a_sample_has_different_images_of_the_units(
    rows: list[int], images: int, workers: int, seed: int
) -> None:
    units = [WorkUnit(str(number), 7, 7 + row) for number, row in enumerate(rows)]
    images = min(images, sum(rows))
    sample = _sample(units, images, workers, seed)
    chosen = [(unit.split, row) for unit in sample for row in range(unit.start, unit.stop)]
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= {
        (unit.split, row) for unit in units for row in range(unit.start, unit.stop)
    }
    assert sample == _sample(units, images, workers, seed)
    assert len(chosen) == images


def test_a_sample_for_a_served_model_keeps_its_requests_under_way() -> None:
    units = [WorkUnit("all", 0, 5000)]
    # two for each worker: one warms up
    assert values_of(_sample(units, 1024, 2, 0, 256), "rows") == [256] * 4
    assert values_of(_sample(units, 256, 2, 0, 256), "rows") == [64] * 4
    assert values_of(_sample(units, 64, 1, 0, 16), "rows") == [22, 22, 20]


def planned(
    workers: dict[tuple[str, ...], int], gpus: int = 0, local: bool = False, **used: float | None
) -> Plan:
    """The plan for 100 images of 10 that took `SECONDS`, where stages with a utilization computed
    on `gpus`.
    """
    uses = {
        name: {"gpu": "H100"} | ({} if u is None else {"utilization": u})
        for name, u in used.items()
    }
    shard = ShardEntry("all", 0, 10, "a", "", 1000, {}, SECONDS, uses)
    return _measured(100, 0.0, [_Labelled(5.0, shard)], workers, gpus, is_local=local)


def test_the_workers_that_take_longest_decide() -> None:
    assert planned(ON_CPUS).as_json()["images_per_second"] == pytest.approx(0.5)
    alone = planned({("caption", "parse", "tag"): 3}, local=True)
    assert alone.seconds() - alone.start == pytest.approx(100)
    few = planned({("caption",): 90, ("parse", "tag"): 1})
    assert few.as_json()["bottleneck"] == "tag"
    assert few.actors() == {"caption": 61, "parse": 3, "tag": 27}


@pytest.mark.parametrize(
    ("workers", "gpus", "rate", "actors", "slowest"),
    [
        (ON_GPUS, 2, 1, {"caption": 2, "parse": 1, "tag": 1}, "caption"),
        (ON_GPUS, 8, 4, {"caption": 8, "parse": 1, "tag": 4}, "caption"),
        (ON_GPUS, 40, 10, {"caption": 40, "parse": 2, "tag": 18}, "parse"),
        (
            {("caption", "parse", "tag"): 2},
            8,
            8 / 3,
            {"caption": 6, "parse": 1, "tag": 3},
            "caption",
        ),
        (ON_CPUS, 8, 0.5, {"caption": 4, "parse": 1, "tag": 2}, "caption"),
    ],
)
def test_stages_on_gpus_grow_with_them_and_others_do_not(
    workers, gpus, rate, actors, slowest
) -> None:
    known = (0, {}) if workers is ON_CPUS else (2, {"caption": 0.9, "tag": 0.9})
    plan = planned(workers, known[0], **known[1]).with_gpus(gpus)
    assert plan.actors() == actors
    values = plan.as_json(3)
    assert (values["gpus"], values["bottleneck"]) == (known[0] and gpus, slowest)
    assert values["images_per_second"] == pytest.approx(3 * rate)
    assert values["seconds"] == pytest.approx(plan.start + 100 / (3 * rate))


@pytest.mark.parametrize(
    ("plan", "pattern"),
    [
        (planned(ON_CPUS), "not measured: no stage"),
        (
            planned(ON_GPUS, 2, caption=None, tag=0.9),
            "utilization not measured: it takes nvidia-ml-py",
        ),
        (planned(ON_GPUS, 2, caption=0.86, tag=0.1), "utilized 86%: enough actors"),
        (
            planned(ON_GPUS, 2, caption=0.4, tag=0.9),
            ".* 40%: .* MPS .*caption.resources.gpus=0.25 .*tag.*=0.25$",
        ),
        (
            planned({("caption", "parse", "tag"): 2}, 2, True, caption=0.9, tag=0.4),
            "utilized 72%: .*caption.*gpus=0.25 ",
        ),
        (planned(ON_GPUS, 2, caption=0.4, tag=0.4).with_gpus(40), "waiting for parse: more cores"),
    ],
)
def test_the_advice_follows_from_the_utilization_while_the_slowest_workers_compute(
    plan: Plan, pattern: str
) -> None:
    assert re.match(pattern, plan.advice())
    shown = io.StringIO()
    print_plan(plan.as_json(2, 2.5), Console(file=shown, width=400))
    assert plan.advice() in shown.getvalue()
    assert (", 2 GPUs each" in shown.getvalue()) == (plan.gpus == 2)


@pytest.mark.slow
def test_a_plan_keeps_nothing_and_says_that_all_images_fail(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SGPIPE_QUIET", "1")
    runner = CliRunner()
    done = runner.invoke(
        app, ["plan", "--limit", "4", "--sample", "2", "--machines", "2", "--gpus", "9", "--json"]
    )
    assert done.exit_code == 0, done.output
    planned = json.loads(done.stdout)
    assert (planned["images"], planned["machines"], planned["error_rows"]["expected"]) == (4, 2, 0)
    assert planned["seconds"] > planned["start_seconds"] > 0
    assert planned["gpu_advice"].startswith("not measured")
    assert planned["worker_memory_bytes"] > planned["driver_memory_bytes"] / 10
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "text.jpg").write_text("no image")
    failed = runner.invoke(app, ["plan", str(GROUNDED), "--images", "bad"])
    assert failed.exit_code == 2
    assert "all 1 images of the sample became error rows" in failed.output
