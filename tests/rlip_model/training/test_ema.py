"""Moving averages of parameters."""

import torch
from torch import nn

from rlip_model.training.ema import EMA


def moved(network: nn.Linear, value: float) -> None:
    with torch.no_grad():
        network.weight.fill_(value)


def test_the_average_of_parameters_follows_them() -> None:
    network = nn.Linear(1, 1, bias=False)
    moved(network, 0.0)
    ema, expected = EMA(network, decay=0.3), 0.0
    for update, value in enumerate((1.0, 2.0, -4.0, 8.0, 1.0), 1):
        moved(network, value)
        ema.update()
        decay = min(0.3, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
        torch.testing.assert_close(ema.values["weight"].item(), expected)
    assert ema.updates == 5
