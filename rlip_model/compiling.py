"""What functions that PyTorch compiles have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

Backend: TypeAlias = str | Callable[..., Any]  # of `torch.compile`

_LONGEST_REASON = 200


def refusals() -> tuple[type[Exception], ...]:
    """What PyTorch raises for what it cannot compile; not a constant, as importing its compiler takes seconds."""
    errors = torch._dynamo.exc
    return errors.TorchDynamoException, getattr(errors, "FailOnRecompileLimitHit", errors.TorchDynamoException)


def one_line(reason: Exception) -> str:
    """The start of a message that may have pages, as those of compilers."""
    return " ".join(str(reason).split())[:_LONGEST_REASON] or type(reason).__name__
