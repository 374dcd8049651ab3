"""Losses of several processes, averaged as their gradients are, against one process that has all the data."""

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from rlip_model.distributed import gather, rank, without_collectives, world_size
from rlip_model.heads import LayerOutput, RelationOutput
from rlip_model.losses import DetectionCriterion, TaggerCriterion
from tests.rlip_model.samples import random_output, random_triplets

CRITERIA = (
    DetectionCriterion(quality_labels=False, pseudo_labels=False),
    DetectionCriterion(pseudo_labels=False),
    TaggerCriterion(),
)
COUNTS = (3, 0, 1, 2)  # triplets of four images; two processes have two images each


def part(output: RelationOutput, images: slice) -> RelationOutput:
    parts = [vars(layer).values() for layer in (output.final, *output.auxiliary)]
    final, *auxiliary = (LayerOutput(*(tensor.detach()[images] for tensor in layer)) for layer in parts)
    return RelationOutput(final, tuple(auxiliary))


def losses(images: slice) -> list[float]:
    output, triplets = random_output(batch=len(COUNTS)), [random_triplets(count) for count in COUNTS]
    return [float(criterion(part(output, images), triplets[images]).total) for criterion in CRITERIA]


def _one_of_two(number: int, meeting: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=2)
    try:
        own = losses(slice(2 * number, 2 * number + 2))
        every = gather(own)
        expected = torch.tensor(losses_alone)
        assert (rank(), world_size()) == (number, 2)
        torch.testing.assert_close(torch.tensor(every).mean(0), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(torch.tensor(every[0]), expected, rtol=1e-2)
        with without_collectives():
            assert world_size() == 1
            if number == 0:  # the other process computes nothing here
                assert losses(slice(None)) == losses_alone
    finally:
        distributed.destroy_process_group()


losses_alone = losses(slice(None))  # in every process, before it meets the others


@pytest.mark.slow
def test_two_processes_lose_as_much_as_one(tmp_path: Path) -> None:
    multiprocessing.spawn(_one_of_two, args=(str(tmp_path / "meeting"),), nprocs=2)
