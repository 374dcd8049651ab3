"""Position encodings against the formula, written out for one pixel at a time."""

import math

import torch

from rlip_model.position import inverse_sigmoid


def test_inverse_sigmoid_is_finite_everywhere_and_exact_inside() -> None:
    probabilities = torch.tensor([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0])
    logits = inverse_sigmoid(probabilities)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[2:4].sigmoid(), probabilities[2:4])
    assert logits[0] == logits[1] == -logits[4] == math.log(1e-5) or abs(logits[1] + logits[4]) < 1e-4


def test_inverse_sigmoid_of_half_precision_is_single() -> None:
    assert inverse_sigmoid(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
