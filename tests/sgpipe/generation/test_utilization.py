"""Utilization of pools of actors."""

from argparse import Namespace

from benchmarks.bench_pipeline import utilization_line
from sgpipe.generation.pools import Pool
from sgpipe.generation.utilization import Utilization
from sgpipe.recipe import Resources

CAPTION, TAG, SCORE = (Namespace(name=name) for name in ("caption", "tag", "score"))


def test_utilization_is_the_share_of_time_in_which_the_actors_of_a_pool_compute():
    utilization = Utilization([Pool((CAPTION, TAG), Resources(), actors=2), Pool((SCORE,), Resources(), actors=1)])
    utilization.add(104.0, {"caption": 3.0, "tag": 0.5, "score": 0.5})
    utilization.add(
        110.0, {"caption": 5.0, "tag": 5.0, "score": 3.0}
    )  # started at 97, before the shard that was written first
    # Reported after a shard that was written later.
    utilization.add(105.0, {"caption": 3.0, "tag": 1.5, "score": 0.5})
    assert str(utilization) == "utilization: caption + tag 69%, score 31%"


def test_without_shards_utilization_is_zero():
    assert str(Utilization([Pool((TAG,), Resources(), actors=1)])) == "utilization: tag 0%"


def test_the_benchmark_of_the_pipeline_finds_the_line():
    line = str(Utilization([Pool((TAG,), Resources(), actors=1)]))
    assert utilization_line(f"starting Ray\n{line}\n") == line
