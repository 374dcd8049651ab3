"""The work of one training process."""

import pytest
import torch

from sgpipe.errors import EngineError
from sgpipe.training.job import _compiled


def test_a_compiler_that_fails_within_a_step_ends_the_training_with_a_remedy() -> None:
    told = r"within a step \(no such size\); with --set workers.compile=false the same"
    with pytest.raises(EngineError, match=told), _compiled():
        raise torch._dynamo.exc.InternalTorchDynamoError("no such size")
