"""Learning rates by group and step, and frozen parts."""

import pytest

from rlip_model.settings import Optimisation
from rlip_model.training.optimisation import freeze, make_optimizer, set_rates
from tests.rlip_model.training.worlds import network


def rates(options: Optimisation, steps: int) -> list[float]:
    return [
        options.factor(epoch * steps + step, epoch, step / steps)
        for epoch in range(options.epochs)
        for step in range(steps)
    ]


def test_the_rate_drops_one_step_late_as_published() -> None:
    factors = rates(Optimisation(epochs=4, lr_drop=2), steps=3)
    assert factors == pytest.approx([1.0] * 7 + [0.1] * 5)


def test_cosine_falls_from_one_to_nearly_zero() -> None:
    factors = rates(Optimisation(epochs=5, schedule="cosine"), steps=20)
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[-1] < 0.001


@pytest.mark.parametrize(("steps", "ends"), [(None, 6), (4, 4), (9, 9)])
def test_epochs_or_steps_decide_the_end(steps: int | None, ends: int) -> None:
    options = Optimisation(epochs=2, steps=steps)
    assert options.total(3) == ends
    assert not options.is_done(ends - 1, (ends - 1) // 3)
    assert options.is_done(ends, ends // 3)


def test_every_trainable_parameter_has_one_group() -> None:
    model = network()
    freeze(model, ("text_encoder",))
    optimizer = make_optimizer(model, Optimisation(lr=1.0, lr_backbone=0.5, lr_text=0.25))
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    set_rates(optimizer, 0.1)
    assert [(len(group["params"]) > 0, group["lr"]) for group in optimizer.param_groups] == [
        (True, pytest.approx(0.1)),
        (True, pytest.approx(0.05)),
        (False, pytest.approx(0.025)),
    ]


def test_freezing_means_whole_names() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"no part 'text'; its parts are .*text_encoder"):
        freeze(model, ("text",))
    freeze(model, ("encoder",))
    still = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert "text_encoder" in still
    assert "encoder" not in still
