"""The busy share of pools of actors."""

from argparse import Namespace

from sgpipe.generation.ray_engine import Pool
from sgpipe.generation.utilization import BusyMeter
from sgpipe.recipe import Resources

CAPTION, TAG, SCORE = (Namespace(name=name) for name in ("caption", "tag", "score"))


def test_busy_is_the_share_of_the_time_that_all_actors_of_a_pool_computed():
    meter = BusyMeter([Pool((CAPTION, TAG), Resources(), actors=2), Pool((SCORE,), Resources(), actors=1)])
    meter.add(104.0, {"caption": 3.0, "tag": 0.5, "score": 0.5})
    meter.add(110.0, {"caption": 5.0, "tag": 5.0, "score": 3.0})  # begun at 97: before the one that was ready first
    meter.add(105.0, {"caption": 3.0, "tag": 1.5, "score": 0.5})  # known later than one that was written later
    assert meter.text == "busy once started: caption + tag 69%, score 31%"


def test_without_shards_nobody_was_busy():
    assert BusyMeter([Pool((TAG,), Resources(), actors=1)]).text == "busy once started: tag 0%"
