"""The simulated GPU itself."""

from __future__ import annotations

import sys

import pytest
import torch

if "tests.simulated_gpu.device" not in sys.modules:
    pytest.skip("only with its plugin: make test-simulated-gpu", allow_module_level=True)

from tests.simulated_gpu.device import counts


def test_it_computes_what_a_cpu_does_and_counts_launches_and_waits() -> None:
    values, weights = torch.randn(3, 4), torch.randn(5, 4)
    pinned = values.pin_memory().to("cuda", non_blocking=True)
    there = weights.to("cuda").requires_grad_()  # a wait: not from pinned memory
    product = torch.nn.functional.linear(pinned[1:], there)
    product.square().sum().backward()
    assert there.grad is not None
    assert (product.device.type, there.grad.device.type) == ("cuda", "cuda")
    assert counts.waits.total() == 1
    before = counts.launches.total()
    assert pinned[1:].T.shape == (4, 2)
    assert counts.launches.total() == before  # views
    assert torch.equal(product.detach().cpu(), torch.nn.functional.linear(values[1:], weights))  # a wait
    assert float(there.grad.sum()) == pytest.approx(
        float(2 * (values[1:] @ weights.T).T.mm(values[1:]).sum()), rel=1e-4
    )
    found = there.detach()[there.detach()[:, 0] > 0]  # a wait for its shape, and before it for a number
    assert len(found) == int((weights[:, 0] > 0).sum())
    assert [why.partition(" at ")[0] for why in counts.waits.elements()] == [
        "a copy to the GPU", "a copy from the GPU", "the value of _local_scalar_dense", "the shape of index",
    ]  # fmt: skip


def test_devices_are_not_mixed_and_autocast_is_that_of_a_gpu() -> None:
    with pytest.raises(RuntimeError, match="tensors on cuda:0 and cpu"):
        torch.zeros(3, device="cuda") + torch.zeros(3)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.zeros(2, 3, device="cuda").mm(torch.zeros(3, 2, device="cuda")).dtype == torch.bfloat16
        assert torch.zeros(2, 3).mm(torch.zeros(3, 2)).dtype == torch.float32
