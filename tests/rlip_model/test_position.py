"""Position encodings against the formula, written out for one pixel at a time."""

import math

import torch

from rlip_model.position import image_positions, inverse_sigmoid


def test_image_positions_by_hand() -> None:
    padding = torch.zeros(1, 4, 6, dtype=torch.bool)
    padding[:, 3:] = True
    padding[:, :, 5:] = True
    for offset in (0.0, 0.5):
        encoded = image_positions(padding, 8, offset)
        assert encoded.shape == (1, 8, 4, 6)
        for row, column in ((0, 0), (2, 4), (1, 3)):
            y = (row + 1 - offset) / (3 + 1e-6) * 2 * math.pi
            x = (column + 1 - offset) / (5 + 1e-6) * 2 * math.pi
            expected = [math.sin(y), math.cos(y), math.sin(y / 100), math.cos(y / 100)]
            expected += [math.sin(x), math.cos(x), math.sin(x / 100), math.cos(x / 100)]
            torch.testing.assert_close(encoded[0, :, row, column], torch.tensor(expected), atol=1e-5, rtol=0)


def test_inverse_sigmoid_is_finite_everywhere_and_exact_inside() -> None:
    probabilities = torch.tensor([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0])
    logits = inverse_sigmoid(probabilities)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[2:4].sigmoid(), probabilities[2:4])
    assert logits[0] == logits[1] == -logits[4] == math.log(1e-5) or abs(logits[1] + logits[4]) < 1e-4


def test_inverse_sigmoid_of_half_precision_is_single() -> None:
    assert inverse_sigmoid(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
