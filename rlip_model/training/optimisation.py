"""Optimiser settings: parameter groups with their own learning rates, schedule, clipping."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW

from rlip_model.settings import Optimisation


def make_optimizer(model: nn.Module, options: Optimisation) -> AdamW:
    """AdamW over the trainable parameters, in the published groups: backbone, text encoder, and the
    rest.

    Each group stores its initial rate in `base_lr`. The label layers of the fusion belong to the
    rest.

    Raises:
        ValueError: every parameter is frozen.
    """
    # All groups exist, even if empty, so that a stored state always fits.
    parameters: dict[str, list[nn.Parameter]] = {"rest": [], "backbone": [], "text": []}
    devices = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameters[group_of(name)].append(parameter)
            devices.add(parameter.device.type)
    if not devices:
        raise ValueError("every parameter is frozen: there is nothing to train")
    rates = {"rest": options.lr, "backbone": options.lr_backbone, "text": options.lr_text}
    groups = [
        {"params": parameters[group], "lr": rate, "base_lr": rate, "name": group}
        for group, rate in rates.items()
    ]
    fused = devices <= {"cpu", "cuda"}
    return AdamW(groups, lr=options.lr, weight_decay=options.weight_decay, fused=fused or None)


def group_of(name: str) -> str:
    """Return the learning-rate group of a parameter, by its name."""
    parts = name.split(".")
    if "backbone" in parts:
        return "backbone"
    return "text" if "text_encoder" in parts else "rest"


def set_rates(optimizer: AdamW, factor: float) -> None:
    """Set the learning rate of each group to its initial rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def freeze(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Freeze all parameters of the given parts, which are complete prefixes of parameter names.

    Raises:
        ValueError: the network has no such part.
    """
    for part in parts:
        chosen = [p for name, p in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
        if not chosen:
            known = sorted({name.split(".")[0] for name, _ in model.named_parameters()})
            raise ValueError(f"the network has no part {part!r}; its parts are {', '.join(known)}")
        for parameter in chosen:
            parameter.requires_grad_(False)
