"""Diagnose a loss that is not finite: find the image that caused it, and save the batch."""

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

DIVERGED = "diverged-step-"  # begins the names of the folders of saved batches


class DivergenceError(ValueError):
    """A loss, gradient or prediction is not finite. The message names the images and the saved
    batch.
    """


def explain(
    objective: Objective, batch: TrainingBatch, reason: str, step: int, root: Path
) -> DivergenceError:
    """Find the cause, and save the batch in a folder in `root`."""
    folder = root / f"{DIVERGED}{step + 1:08d}" / f"process-{rank()}"
    saved = "the batch could not be saved"
    if _save(batch, folder, reason):
        saved = f"the batch is saved in {folder}"
    return DivergenceError(
        f"step {step + 1}: {reason}; {_find_cause(objective, batch)}; {saved}. A smaller learning"
        " rate (optimisation.lr) may help"
    )


def _find_cause(objective: Objective, batch: TrainingBatch) -> str:
    images = ", ".join(batch.image_ids)
    if is_sharded(objective):
        return f"caused by one of the images {images}"
    for name, parameter in objective.network.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"parameters are not finite since an earlier step ({name})"
    culprits = find_culprits(objective, batch)
    if culprits:
        return f"caused by image {', '.join(culprits)}"
    return f"none of the images {images} causes it alone"


def is_sharded(module: nn.Module) -> bool:
    """Return whether parameters are sharded over processes, so that no process can compute a loss
    on its own.
    """
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


@torch.no_grad()
def find_culprits(objective: Objective, batch: TrainingBatch) -> list[str]:
    """Return the ids of the images whose loss is not finite in a batch of their own."""
    culprits = []
    with without_collectives():
        for image, name in enumerate(batch.image_ids):
            if not _is_finite(objective, batch.only(image)):
                culprits.append(name)
    return culprits


def _is_finite(objective: Objective, batch: TrainingBatch) -> bool:
    try:
        return bool(objective(batch)["loss"].isfinite())
    except NonFiniteError:
        return False


def _save(batch: TrainingBatch, folder: Path, reason: str) -> bool:
    """Save images and triplets as batch.safetensors, image ids and texts as batch.json. Return
    whether it succeeded.
    """
    tensors = {"pixel_values": batch.pixel_values, "padding": batch.padding}
    for image, triplets in enumerate(batch.triplets):
        tensors |= {f"{image}.{f.name}": getattr(triplets, f.name) for f in fields(Triplets)}
    names = {
        "images": batch.image_ids,
        "objects": batch.texts.objects,
        "relations": batch.texts.relations,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "batch.json").write_text(
            json.dumps({"reason": reason, **names}), encoding="utf-8"
        )
        save_file(
            {name: value.detach().cpu().clone() for name, value in tensors.items()},
            folder / "batch.safetensors",
        )
    except OSError:
        return False
    return True
