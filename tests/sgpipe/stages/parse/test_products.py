"""Products in blocks: right, independent of the rows beside, and only where the machine's are."""

import numpy as np
import pytest

from sgpipe.stages.parse import products
from sgpipe.stages.parse.products import ROWS, BlockOps
from sgpipe.stages.parse.stage import load_model


def ops_of(model):
    return {type(layer.ops) for name in ("tok2vec", "tagger", "parser") for layer in model.get_pipe(name).model.walk()}


@pytest.mark.parametrize("rows", [0, 1, ROWS - 1, ROWS, 2 * ROWS + 3])
def test_blocks_multiply_as_numpy_does(rows):
    choose = np.random.default_rng(rows)
    left, right = choose.standard_normal((rows, 96), np.float32), choose.standard_normal((96, 32), np.float32)
    expected = left @ right
    assert BlockOps().gemm(left, right) == pytest.approx(expected, abs=1e-4)
    assert BlockOps().gemm(np.ascontiguousarray(left.T), right.T, trans1=True, trans2=True) == pytest.approx(
        expected, abs=1e-4
    )
    given = np.empty_like(expected)
    assert BlockOps().gemm(left, right, out=given) is given
    assert given == pytest.approx(expected, abs=1e-4)


def test_rows_that_depend_on_their_place_are_noticed(monkeypatch):
    exact = BlockOps.gemm
    monkeypatch.setattr(BlockOps, "gemm", lambda *_, **__: np.arange(ROWS, dtype=np.float32)[:, None])
    assert not products.rows_are_independent()
    monkeypatch.setattr(BlockOps, "gemm", lambda *arguments, **names: np.round(exact(*arguments, **names), 2))
    assert products.rows_are_independent()


@pytest.mark.parametrize("independent", [True, False])
def test_the_model_keeps_to_its_own_products_unless_numpys_are_fit(monkeypatch, independent):
    monkeypatch.setattr(products, "rows_are_independent", lambda: independent)
    assert (ops_of(load_model()) == {BlockOps}) == independent
    assert (BlockOps in ops_of(load_model())) == independent
