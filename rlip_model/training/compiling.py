"""Layers that PyTorch compiles for training on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from rlip_model.gpu_memory import is_out_of_memory
from rlip_model.swin import FeedForward, WindowAttention
from rlip_model.training.objective import Objective, autocast

Backend: TypeAlias = str | Callable[..., object]  # of `torch.compile`
Forward: TypeAlias = Callable[..., Tensor]  # of a layer

# Parts of what is checkpointed, or divided between processes. Not whole blocks of a Swin: PyTorch
# did not finish one in 100 seconds, because they divide images of any size into windows.
LAYERS = (WindowAttention, FeedForward, Bottleneck)
# Of a layer: widths, with and without a mask, one image or several, on one GPU or divided.
_MOST_FORMS = 32
# Its levels are no widths of a network, so that no width is taken for a size.
_TRIED_SIZE = (520, 648)


class CompiledLayers:
    """The layers of a network that PyTorch compiles, with gradients, and for any size of the
    images.

    Without gradients, the layers compute as they are, and so does a layer after a failure.

    Args:
        network: not yet changed by `checkpoint_activations` or wrapped for distributed training.
        backend: of `torch.compile`.

    Attributes:
        seconds: how long `compile` took.
        failure: why layers cannot be compiled.
    """

    def __init__(self, network: nn.Module, backend: Backend = "inductor") -> None:
        self.seconds = 0.0
        self.failure: Exception | None = None
        self._is_trial = False
        self._layers: list[Forward] = []
        # A layer that is computed again must do as it did.
        self._plain: set[Forward] = set()
        torch._dynamo.config.cache_size_limit = _MOST_FORMS
        # It divides what is compiled; here every layer is apart already.
        torch._dynamo.config.optimize_ddp = False
        try:
            for layer in network.modules():
                if isinstance(layer, LAYERS):
                    compiled = torch.compile(layer.forward, dynamic=True, backend=backend)
                    self._layers.append(layer.forward)
                    run = partial(self._run, layer.forward, compiled)
                    setattr(layer, "forward", run)  # noqa: B010
        except RuntimeError as reason:  # not on this Python or system
            self.failure = reason

    def _run(self, plain: Forward, compiled: Forward, *arguments: Tensor | None) -> Tensor:
        if plain in self._plain or not torch.is_grad_enabled():
            return plain(*arguments)
        try:
            return compiled(*arguments)
        except torch._dynamo.exc.TorchDynamoException as reason:
            if self._is_trial:
                raise
            self._fail(reason, plain)
            return plain(*arguments)

    def _fail(self, reason: Exception, *layers: Forward) -> None:
        self.failure = reason.with_traceback(None)
        self._plain.update(layers)

    def compile(self, objective: Objective, images: int) -> None:
        """Compile now, forwards and backwards: PyTorch would otherwise fail within the backward
        pass of a step.

        Args:
            objective: of the network, on its device; it is not yet wrapped.
            images: that are computed together; one image is another form than several.

        Raises:
            torch.cuda.OutOfMemoryError: the memory of the GPU is full.
        """
        torch._inductor.config.compile_threads = torch.get_num_threads()
        began = time.perf_counter()
        backbone = objective.network.image_encoder.backbone
        device = next(objective.parameters()).device
        objective.train()
        self._is_trial = True
        try:
            with autocast(device, objective.precision):
                maps = backbone(torch.zeros(min(images, 2), 3, *_TRIED_SIZE, device=device))
            total = torch.stack([features.float().sum() for features in maps]).sum()
            if total.requires_grad:
                total.backward()
        except (RuntimeError, OSError) as reason:
            if is_out_of_memory(reason):
                raise
            self._fail(reason, *self._layers)
        self._is_trial = False
        objective.zero_grad()
        self.seconds = time.perf_counter() - began
