"""Matrix products for spaCy: numpy's, where a row of them does not depend on the rows beside it.

Labels must not depend on which captions are parsed together, and a rounding may decide a parse. thinc's own products
(BLIS) have this property and take up to twice the time. numpy's (OpenBLAS) have it with AVX-512, in blocks of a fixed
number of rows, but not with AVX2, where captions keep to thinc's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from spacy.language import Language
from spacy.pipeline import TrainablePipe
from thinc.api import NumpyOps

ROWS = 128
_WIDTHS = (96, 288, 576)  # of the layers of spaCy's small models

Floats = NDArray[np.float32]


class BlockOps(NumpyOps):
    """Products of `ROWS` rows at a time, the last ones filled up with zeros."""

    def gemm(
        self, x: Floats, y: Floats, out: Floats | None = None, trans1: bool = False, trans2: bool = False
    ) -> Floats:
        left, right = x.T if trans1 else x, y.T if trans2 else y
        blocks = np.zeros((-(-len(left) // ROWS), ROWS, left.shape[1]), left.dtype)
        blocks.reshape(-1, left.shape[1])[: len(left)] = left
        product = (blocks @ right).reshape(-1, right.shape[1])[: len(left)]
        if out is None:
            return product
        out[...] = product
        return out


def use_fast_products(model: Language) -> None:
    """Have a spaCy model compute with numpy's products, if this machine's are fit for it."""
    if not rows_are_independent():
        return
    ops = BlockOps()
    for _, component in model.pipeline:
        if isinstance(component, TrainablePipe):
            for layer in component.model.walk():
                layer.ops = ops


def rows_are_independent() -> bool:
    """Whether equal rows of a block have products equal to the last bit, wherever they stand."""
    choose = np.random.default_rng(0)
    for width in _WIDTHS:
        row, right = choose.standard_normal((1, width), np.float32), choose.standard_normal((288, width), np.float32)
        product = BlockOps().gemm(row.repeat(ROWS, 0), right, trans2=True)
        if (product != product[0]).any():
            return False
    return True
