"""What tests of models of transformers need on the simulated GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sgpipe.stages import checkpoint

if TYPE_CHECKING:
    import torch
    from transformers import AutoModelForImageTextToText, PreTrainedModel


@pytest.fixture
def filled_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill buffers that no checkpoint has, which transformers leaves undefined when it loads here."""
    load_weights = checkpoint.load_weights

    def load(
        model_class: type[AutoModelForImageTextToText], source: str, role: str, dtype: torch.dtype
    ) -> PreTrainedModel:
        model: PreTrainedModel = load_weights(model_class, source, role, dtype=dtype)
        for name, buffer in model_class.from_config(model.config).named_buffers():
            model.get_buffer(name).copy_(buffer)
        return model

    monkeypatch.setattr(checkpoint, "load_weights", load)
