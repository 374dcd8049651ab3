"""Several workers on Ray predict the same as one process."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sgpipe.errors import UserError
from sgpipe.evaluation.inputs import data_classes
from sgpipe.inference.predictor import predict
from sgpipe.inference.rows import PredictConfig, list_row_groups
from sgpipe.utils.ray_cluster import start_ray

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def ray_engine() -> Iterator[None]:
    import ray

    start_ray(cpus=2)
    yield
    ray.shutdown()


@pytest.fixture
def config(drawn_run: Path, network: Path) -> PredictConfig:
    return PredictConfig(network, data_classes(drawn_run), "scene graph", sides=(48, 64), device="cpu", workers=2)


def test_two_workers_predict_the_same_as_one_process(drawn_run: Path, config: PredictConfig) -> None:
    row_groups = list_row_groups(drawn_run) * 3
    one, two = (list(predict(replace(config, workers=workers), row_groups)) for workers in (1, 2))
    assert [each.row for each in two] == [each.row for each in one]
    for first, second in zip(one, two, strict=True):
        assert first.pairs is not None
        assert second.pairs is not None
        assert np.allclose(first.pairs.scores, second.pairs.scores, atol=1e-5)


def test_an_invalid_network_is_one_line(drawn_run: Path, config: PredictConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere") as caught:
        list(predict(replace(config, model=tmp_path / "nowhere"), list_row_groups(drawn_run)))
    assert "\n" not in str(caught.value)


def test_more_workers_than_cpus_are_refused_instead_of_waiting(drawn_run: Path, config: PredictConfig) -> None:
    row_groups = list_row_groups(drawn_run) * 4
    for workers, gpus, device in ((4, 0, "cpu"), (2, 1, "auto")):
        reason = rf"no room for {workers} workers: each needs CPU 1, GPU {gpus}, .* have CPU 2, GPU 0;"
        with pytest.raises(UserError, match=reason):
            list(predict(replace(config, workers=workers, gpus=gpus, device=device), row_groups))
