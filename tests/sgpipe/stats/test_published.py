"""The published frequencies of COCO's pseudo-labels: 5.83 million relations of 1,141 predicates at 0.20."""

import json

import pytest

from sgpipe.stats.measures import measure_long_tail


@pytest.fixture(scope="module")
def frequencies(oracle) -> dict[float, dict[str, int]]:
    """How often the published labels have each predicate, by threshold."""
    name = "RLIPv2_train2017_threshold{:.0f}_Tagger2_Noi24_20e_keep_names_freq.json"
    files = {threshold: oracle / "data" / "priors" / name.format(100 * threshold) for threshold in (0.2, 0.25)}
    return {threshold: json.loads(file.read_text())["relationship_freq"] for threshold, file in files.items()}


def test_few_predicates_have_most(frequencies):
    tails = {threshold: measure_long_tail(list(counts.values())) for threshold, counts in frequencies.items()}
    assert (tails[0.2].total, tails[0.2].kinds) == (5_828_544, 1_141)
    assert 2.95e6 < tails[0.25].total < 3.05e6
    assert tails[0.25].kinds <= tails[0.2].kinds
    assert tails[0.2].half < 40
    assert tails[0.2].gini > 0.8
