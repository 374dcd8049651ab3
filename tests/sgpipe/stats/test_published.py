"""The published frequencies of COCO's pseudo-labels: 5.83 million relations of 1,141 predicates at 0.20."""

import json

import numpy as np
import pyarrow as pa
import pytest

from sgpipe.records import SCHEMA, to_table
from sgpipe.stats.measures import measure, measure_long_tail
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.shards import shard_name, write_table
from tests.sgpipe.stats.runs import scene

EACH = 5_000  # relations of an image
# What the paper's table has above the thresholds that there are frequencies of.
ABOVE = {0.3: 1.54e6, 0.4: 0.38e6, 0.5: 82e3, 0.6: 12e3}


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


@pytest.mark.slow
def test_the_threshold_table_is_the_published_one(frequencies, tmp_path):
    """A run with the published frequencies gives the published table: 5.83 M, 3.00 M, 1.54 M, 0.38 M, 82 k, 12 k."""
    found = measure(published_run(tmp_path / "run", frequencies))
    levels = {level.threshold: level for level in found.thresholds}
    assert found.totals["relations"] == levels[0.05].relations == levels[0.2].relations == 5_828_544
    published = {0.25: 3.00e6, **ABOVE}
    for threshold, relations in published.items():
        assert levels[threshold].relations == pytest.approx(relations, rel=0.03)
    assert [levels[threshold].predicate_kinds for threshold in (0.05, 0.2, 0.25)] == [1_141, 1_141, 1_020]
    head = [(name, round(count / found.totals["relations"], 3)) for name, count in list(found.predicates.items())[:3]]
    assert head == [("near", 0.076), ("next to", 0.048), ("on", 0.033)]
    assert found.predicates == {name: count for name, count in frequencies[0.2].items() if count}


def published_run(root, frequencies):
    """Relations of two boxes in a few images; their confidences are made up but for whether they reach 0.25."""
    rng = np.random.default_rng(0)
    names = list(frequencies[0.2])
    parts = []
    for number, name in enumerate(names):
        sure = frequencies[0.25].get(name, 0)
        unsure = frequencies[0.2][name] - sure
        confidence = np.concatenate([_confidences(rng, sure, frequencies), rng.uniform(0.201, 0.249, unsure)])
        parts.append((np.full(len(confidence), number), confidence))
    predicate, confidence = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = rng.permutation(len(predicate))
    relations = pa.StructArray.from_arrays(
        [
            pa.array(np.zeros(len(order), np.int32)),
            pa.array(np.ones(len(order), np.int32)),
            pa.array(names).take(pa.array(predicate[order])),
            pa.array(confidence[order].astype(np.float32)),
        ],
        ["subject", "object", "predicate", "confidence"],
    )
    ends = [*range(0, len(order), EACH), len(order)]
    table = to_table([scene(str(number)) for number in range(len(ends) - 1)])
    lists = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), relations).cast(SCHEMA.field("relations").type)
    table = table.set_column(SCHEMA.get_field_index("relations"), SCHEMA.field("relations"), lists)
    manifest = Manifest.create(_made(root), {"name": "published", "fingerprint": "published"})
    name = shard_name("val", 0, table.num_rows)
    write_table(root / name, table)
    manifest.commit(ShardEntry("val", 0, table.num_rows, name, "", (root / name).stat().st_size))
    return root


def _confidences(rng, count, frequencies):
    """Confidences from 0.25 that are spread as the published counts above it are."""
    total = sum(frequencies[0.25].values())
    edges = [0.251, *ABOVE, 0.8]
    left = np.array([1.0, *(relations / total for relations in ABOVE.values()), 0.0])
    band = rng.choice(len(edges) - 1, count, p=-np.diff(left))
    return rng.uniform(np.array(edges[:-1])[band] + 0.001, np.array(edges[1:])[band] - 0.001)


def _made(root):
    (root / "data").mkdir(parents=True)
    return root
