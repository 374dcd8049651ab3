"""The typed recipe of a training: the only place where its settings are named, defaulted and
validated.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rlip_model.settings import Augmentation, LossWeights, MatchingCosts, Optimisation, Strategy
from sgpipe.recipe import Config, ImageLocation, ModelName, SplitName, StoredPath
from sgpipe.records import RelationOrigin
from sgpipe.utils import LARGEST_SEED
from sgpipe.utils.config_file import load, recipe_folder

BENCHMARKS = ("hico", "openimages")  # the values of `output.best` that a benchmark computes
Kind = Literal["tagger", "parseda", "parsed", "rlipv1"]
Backbone = Literal["resnet50", "swin_tiny", "swin_small", "swin_base", "swin_large", "miniature"]


class ModelConfig(Config):
    """The network to train: a copy of an existing one (`init`), or a new one of a published
    size.
    """

    kind: Kind = Field("parseda", description="the R-Tagger, or a relation detector")
    init: ModelName | None = Field(
        None,
        description="start from a folder, store, hub id, official .pth or miniworld; null: new",
    )
    backbone: Backbone = Field("swin_tiny", description="size of a new network; ignored with init")
    text_encoder: str | None = Field(
        None, description="RoBERTa of a new network, or tokenizer of a .pth; null: small"
    )
    frozen_norms: bool = Field(
        True, description="also first stages of the backbone, as published; false: none"
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="changes of the network, such as num_queries: 128"
    )


class ShardsConfig(Config):
    """A folder of shards, or some of its splits."""

    shards: StoredPath = Field(
        description="folder of a run or an import, or the object store of one"
    )
    splits: tuple[SplitName, ...] | None = Field(None, description="splits to use; null: all")
    images: ImageLocation | None = Field(
        None, description="where the images are, if they moved; null: as the run says"
    )
    judged: bool = Field(
        False, description="R-Tagger: only what people judged in `sgpipe view`, also as negatives"
    )
    weight: float = Field(
        1.0, gt=0, le=1000, description="passes per epoch; 0.5: half, another one each epoch"
    )
    limit: int | None = Field(
        None, ge=1, description="use only N usable images of these shards; null: all"
    )
    limit_seed: int | None = Field(
        None, ge=0, le=LARGEST_SEED, description="limit: N random images; null: the first N"
    )


class DataConfig(Config):
    """The images and relations to train on, and how batches are made from them."""

    train: tuple[ShardsConfig, ...] = Field((), description="shards to train on")
    val: tuple[ShardsConfig, ...] = Field((), description="shards to validate on")
    threshold: float = Field(
        0.2, ge=0, le=1, description="minimum confidence (calibrated: probability), if any"
    )
    origins: dict[RelationOrigin, Annotated[float, Field(gt=0, le=1)]] = Field(
        default_factory=dict,
        description="share of visits in which a relation of an origin is a label: {tagger: 0.5}",
    )
    calibration: StoredPath | None = Field(
        None, description="file of `sgpipe calibrate` for the tagger of the shards"
    )
    precision: float | None = Field(
        None, gt=0, le=1, description="with a calibration, instead of threshold (95% sure)"
    )
    labels: Literal["sampled", "full"] = Field(
        "sampled", description="texts: own and sampled, or all of the dataset"
    )
    negative_texts: int = Field(
        500, ge=0, description="sampled: texts per batch, two thirds of them object classes"
    )
    text_group: int | None = Field(
        None, ge=1, description="images that share texts: a GPU's as published; null: all"
    )
    object_strategy: Strategy = Field(
        "frequency", description="sampling of classes: by frequency, or uniform"
    )
    relation_strategy: Strategy = Field("frequency", description="sampling of predicates")
    wordings: dict[str, tuple[str, ...]] = Field(
        {}, description="other wordings of predicates: {riding: [rides]}"
    )
    related_first: bool = Field(
        False, description="R-Tagger: related pairs first, as published; false: random order"
    )
    augment: Augmentation | None = Field(
        default_factory=Augmentation, description="random changes; null: resizing"
    )
    short_side: int = Field(
        800, ge=32, description="pixels of validation images' shorter side; augment: null: of all"
    )
    long_side: int = Field(
        1333, ge=32, description="maximum length of their longer side, in pixels"
    )
    limit: int | None = Field(
        None, ge=1, description="use only N usable training images, besides judged; null: all"
    )
    limit_seed: int | None = Field(
        None, ge=0, le=LARGEST_SEED, description="N random images; null: the first N"
    )
    shuffle: int = Field(
        8, ge=1, description="row groups (of up to 512 images) that are shuffled together"
    )
    threads: int = Field(2, ge=1, description="threads per worker that read images")
    prefetch: int = Field(4, ge=1, description="steps whose images are read in advance")


class LossConfig(Config):
    """The losses of ParSeD and ParSeDA, see `rlip_model.losses.DetectionCriterion`; the R-Tagger
    has only one form.
    """

    weights: LossWeights = Field(
        default_factory=LossWeights, description="of the loss terms, also of the R-Tagger"
    )
    costs: MatchingCosts = Field(
        default_factory=MatchingCosts, description="of matching queries; not of the R-Tagger"
    )
    quality_labels: bool = Field(
        True, description="scale relation labels by how well boxes are localised (RQL)"
    )
    pseudo_labels: bool = Field(
        True, description="give soft labels to texts of similar meaning (RPL)"
    )
    pseudo_label_gradient: bool = Field(
        False, description="soft labels train the text encoder, too, as published"
    )
    mask_by_sum: bool = Field(
        False, description="mask label texts as published (see `rlip_model.text.masked_by_sum`)"
    )
    dense: float = Field(
        0.2, ge=0, description="weight of the losses of the dense head (model.config.dense_head)"
    )
    only_boxes: bool = Field(
        False, description="train only the dense head and its features: a detector to start from"
    )
    no_object_weight: float = Field(0.1, ge=0, description='weight of the class "no objects"')


class OutputConfig(Config):
    """What is written, and how often."""

    log_every: int = Field(10, ge=1, description="steps per line of metrics")
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints, besides those of epochs; null: any"
    )
    checkpoint_minutes: float | None = Field(
        15, gt=0, description="minutes between checkpoints, besides; null: any number"
    )
    keep: int = Field(
        1, ge=1, description="number of latest checkpoints to keep, besides the best one"
    )
    validate_every: int = Field(
        1, ge=1, description="epochs between validations; the end is always validated"
    )
    validate_every_steps: int | None = Field(
        None, ge=1, description="steps between validations; null: validate_every"
    )
    best: Literal["ap", "recall", "loss", "hico", "openimages"] = Field(
        "ap",
        description=(
            "measure that selects the best checkpoint; hico: its mAP, openimages: its weighted"
            " score"
        ),
    )
    tensorboard: bool = Field(True, description="write event files for TensorBoard")


class WorkersConfig(Config):
    """The processes that train."""

    count: int = Field(
        1, ge=1, description="processes that train together; more than one run on Ray"
    )
    cpus: float = Field(
        1,
        gt=0,
        description="CPUs per worker, and its number of torch threads; with several workers",
    )
    gpus: float = Field(
        0, ge=0, le=1, description="GPUs per worker; 0: only a single worker takes one, if any"
    )
    device: str = Field(
        "auto", description="auto, cpu (whatever gpus says), cuda, or cuda:N for a single worker"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="parameters: whole in every worker (ddp), or divided"
    )
    compile: bool = Field(
        False, description="torch.compile for the backbone, on a GPU; changes rounding"
    )
    address: str | None = Field(
        None, description="Ray cluster to join; null: start one on this machine"
    )
    restarts: int = Field(
        3, ge=0, description="restarts after a lost worker, or a file or store that fails for now"
    )
    restart_seconds: float = Field(
        30, ge=0, description="before a restart after a file or a store failed"
    )


class TrainRecipe(Config):
    """The network, the data and all settings of a training."""

    name: str = Field("train", description="name of the recipe")
    seed: int = Field(
        42,
        ge=0,
        le=LARGEST_SEED,
        description="of initial weights, the order and all random choices",
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimisation: Optimisation = Optimisation()
    output: OutputConfig = OutputConfig()
    workers: WorkersConfig = WorkersConfig()


def train_recipe_folder() -> Path:
    return recipe_folder() / "train"


def load_train_recipe(
    name: str | Path, overrides: Mapping[str, Any] | None = None, *, miniature: bool = False
) -> TrainRecipe:
    """Return the training recipe of a packaged name ("tagger") or a YAML file, with overrides by
    dotted key.

    Args:
        miniature: with settings for a laptop: a small network and small images.

    Raises:
        UserError: as `config_file.load`.
    """
    folder = train_recipe_folder()
    overlays = [folder / "miniature" / "overlay.yaml"] if miniature else []
    return load(TrainRecipe, name, folder, overrides or {}, *overlays)


def shards_options(folders: Sequence[str], images: str | None) -> list[dict[str, object]]:
    """Return the recipe's form of `--data FOLDER[@WEIGHT]`."""
    options: list[dict[str, object]] = []
    for text in folders:
        shards, at, weight = text.rpartition("@")
        if at and not Path(text).exists():
            options.append({"images": images, "shards": shards, "weight": weight})
        else:
            options.append({"images": images, "shards": text})
    return options
