"""When a loss stops being a number: which picture did it, and what the batch was."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from rlip_model.distributed import rank, without_collectives
from rlip_model.matcher import NonFiniteError
from rlip_model.targets import Triplets
from rlip_model.training.batches import TrainingBatch
from rlip_model.training.objective import Objective


class DivergenceError(ValueError):
    """A loss, gradient or prediction is not finite. The message names the pictures, and where the batch is kept."""


def explain(objective: Objective, batch: TrainingBatch, reason: str, step: int, root: Path) -> DivergenceError:
    """Find out who is to blame, and keep the batch in `root` for whoever wants to know more."""
    parameters = () if is_spread(objective) else objective.network.named_parameters()
    broken = [name for name, parameter in parameters if not bool(parameter.isfinite().all())]
    if broken:
        blame = f"the parameters themselves are broken ({broken[0]}), since an earlier step"
    elif is_spread(objective):
        blame = f"it is among the images {', '.join(batch.image_ids)}"
    elif culprits := culprits_of(objective, batch):
        blame = f"it is image {', '.join(culprits)}"
    else:
        blame = f"none of the images {', '.join(batch.image_ids)} does it alone"
    folder = root / f"diverged-step-{step + 1:08d}" / f"process-{rank()}"
    kept = f"the batch is kept in {folder}" if _keep(batch, folder, reason) else "the batch could not be kept"
    return DivergenceError(
        f"step {step + 1}: {reason}; {blame}; {kept}. A smaller learning rate (optimisation.lr) may help"
    )


def is_spread(module: nn.Module) -> bool:
    """Whether parameters are spread over processes, none of which can compute anything alone."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


@torch.no_grad()
def culprits_of(objective: Objective, batch: TrainingBatch) -> list[str]:
    """The pictures whose own loss, without the others, is not finite."""
    with without_collectives():
        return [name for image, name in enumerate(batch.image_ids) if not _is_finite(objective, batch.only(image))]


def _is_finite(objective: Objective, batch: TrainingBatch) -> bool:
    try:
        return bool(objective(batch)["loss"].isfinite())
    except NonFiniteError:
        return False


def _keep(batch: TrainingBatch, folder: Path, reason: str) -> bool:
    """pictures and triplets in batch.safetensors, names and texts in batch.json."""
    tensors = {"pixel_values": batch.pixel_values, "padding": batch.padding}
    for image, triplets in enumerate(batch.triplets):
        tensors |= {f"{image}.{f.name}": getattr(triplets, f.name) for f in fields(Triplets)}
    names = {"images": batch.image_ids, "objects": batch.texts.objects, "relations": batch.texts.relations}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "batch.json").write_text(json.dumps({"reason": reason, **names}), encoding="utf-8")
        save_file({name: value.detach().cpu().clone() for name, value in tensors.items()}, folder / "batch.safetensors")
    except OSError:
        return False
    return True
