"""The typed recipe of a training: the only place where a setting of it is named, defaulted and validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rlip_model.losses import LossWeights
from rlip_model.training.augment import Augmentation
from rlip_model.training.optimisation import Optimisation
from rlip_model.training.sampling import Strategy
from sgpipe.errors import UserError
from sgpipe.recipe import Config, SplitName
from sgpipe.utils.config_file import load, recipe_folder

Kind = Literal["tagger", "parseda", "parsed", "rlipv1"]
Backbone = Literal["resnet50", "swin_tiny", "swin_small", "swin_base", "swin_large", "miniature"]


class ModelConfig(Config):
    """The network to train: one that is there (`init`), or a new one of a published size."""

    kind: Kind = "parseda"
    init: str | None = Field(None, description="folder or hub id of a network, or an official checkpoint (.pth)")
    backbone: Backbone = Field("swin_tiny", description="size of a new network; with init, it has its own")
    text_encoder: str | None = Field(
        None, description="RoBERTa of a new network, tokenizer of a .pth; null: a small one that knows the data's words"
    )
    frozen_norms: bool | None = Field(
        None, description="keep the backbone's norms and first stages, as published; null: with init"
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="settings of the network that shall differ, such as num_queries: 128"
    )


class ShardsConfig(Config):
    """A folder of shards, or some of its splits."""

    shards: Path
    splits: tuple[SplitName, ...] | None = Field(None, description="null: all there are")
    images: Path | None = Field(None, description="image folder; null: where the shards say")
    weight: float = Field(1.0, gt=0, le=1000, description="passes over these shards in an epoch; 0.5: over half")


class DataConfig(Config):
    train: tuple[ShardsConfig, ...] = ()
    val: tuple[ShardsConfig, ...] = ()
    threshold: float = Field(0.2, ge=0, le=1, description="least confidence of a relation; those of people all count")
    labels: Literal["sampled", "full"] = Field(
        "sampled", description="texts of a batch: its own and sampled ones, or all classes of the dataset"
    )
    negative_texts: int = Field(500, ge=0, description="sampled: extend the texts to so many, 2/3 of them objects")
    object_strategy: Strategy = "frequency"
    relation_strategy: Strategy = "frequency"
    wordings: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="other ways to say a relation, drawn in training: {riding: [rides]}"
    )
    related_first: bool = Field(
        False, description="tagger: pairs with relations come first, as published; else in any order"
    )
    augment: Augmentation | None = Field(default_factory=Augmentation, description="null: only resized")
    short_side: int = Field(800, ge=32, description="pixels; of validation images, and of all if not augmented")
    long_side: int = Field(1333, ge=32)
    limit: int | None = Field(None, ge=1, description="only the first N training images")
    shuffle: int = Field(8, ge=1, description="row groups (of up to 512 images) that are shuffled together")
    threads: int = Field(2, ge=1, description="per worker, that read images ahead")
    prefetch: int = Field(4, ge=1, description="steps that are read ahead")


class LossConfig(Config):
    """Losses of ParSeD and ParSeDA (the tagger has but one form), see `rlip_model.losses.DetectionCriterion`."""

    weights: LossWeights = Field(default_factory=LossWeights, description="of the parts, of the tagger's losses too")
    quality_labels: bool = True
    pseudo_labels: bool = True
    pseudo_label_gradient: bool = False
    mask_by_sum: bool = Field(False, description="hide texts from each other as the published training did")
    no_object_weight: float = Field(0.1, ge=0)


class OutputConfig(Config):
    """What is written, and how often."""

    log_every: int = Field(10, ge=1, description="steps per line of metrics")
    checkpoint_every: int | None = Field(None, ge=1, description="steps; null: only after every epoch")
    keep: int = Field(1, ge=1, description="latest checkpoints that are kept, besides the best")
    validate_every: int = Field(1, ge=1, description="epochs")
    best: Literal["ap", "recall", "loss"] = Field("ap", description="of the validation; without one, nothing is best")
    tensorboard: bool = True


class WorkersConfig(Config):
    count: int = Field(1, ge=1, description="processes that train together; more than one run on Ray")
    cpus: float = Field(1, gt=0, description="per worker, when there are several; also their torch threads")
    gpus: float = Field(0, ge=0, description="per worker, when there are several")
    device: str = Field("auto", description="of one worker: auto, cpu, cuda or cuda:N")
    parallel: Literal["ddp", "fsdp"] = "ddp"
    address: str | None = Field(None, description="Ray cluster to join; null: start one on this machine")
    restarts: int = Field(3, ge=0, description="times that lost workers are replaced")


class TrainRecipe(Config):
    """WHAT network is trained HOW on WHICH shards."""

    name: str = "train"
    seed: int = 42
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimisation: Optimisation = Optimisation()
    output: OutputConfig = OutputConfig()
    workers: WorkersConfig = WorkersConfig()


def train_recipe_folder() -> Path:
    """Where the packaged training recipes lie."""
    return recipe_folder() / "train"


def load_train_recipe(name: str, overrides: Mapping[str, Any] | None = None, *, miniature: bool = False) -> TrainRecipe:
    """The training recipe of a packaged name ("tagger") or a YAML file, with overrides by dotted key.

    Args:
        miniature: lay the settings of a laptop over it: a small network, small images, short epochs.

    Raises UserError: as `recipe_file.load`.
    """
    folder = train_recipe_folder()
    overlays = [folder / "miniature" / "overlay.yaml"] if miniature else []
    return load(TrainRecipe, name, folder, overrides or {}, *overlays)


def shards_options(folders: Sequence[str], images: Path | None) -> list[dict[str, Any]]:
    """What `--data FOLDER` or `--data FOLDER@WEIGHT` mean in a recipe.

    Raises UserError: the weight is no number above 0.
    """
    return [_shards_option(folder, images) for folder in folders]


def _shards_option(text: str, images: Path | None) -> dict[str, Any]:
    folder, at, weight = text.rpartition("@")
    if not at or Path(text).exists():
        return {"shards": text, "images": images}
    try:
        return {"shards": folder, "images": images, "weight": float(weight)}
    except ValueError:
        raise UserError(f"--data {text}: {weight!r} is no number; expected FOLDER or FOLDER@WEIGHT") from None
