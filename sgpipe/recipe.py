"""The typed recipe of labelling: the only place where a setting of it is named, defaulted and validated.

The trained models of the drawn world that ship with sgpipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from sgpipe.utils.config_file import load, recipe_folder


class Config(BaseModel):
    """Base of every part of a recipe: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Resources(Config):
    """What one actor of a stage needs, and how many actors there are."""

    actors: int | None = Field(None, ge=1, description="parallel copies; null: what the machine has room for")
    cpus: float = Field(1, gt=0, description="CPUs per actor; also its number of torch threads")
    gpus: float = Field(0, ge=0, description="GPUs per actor")


class SplitConfig(Config):
    """Where one split of the source lies."""

    annotations: Path | None = Field(None, description="null: a folder of images without any (format: folder)")
    images: Path
    captions: Path | None = Field(None, description="COCO captions JSON, used when no captioner is set")


SplitName = Annotated[str, StringConstraints(pattern=r"^\w+$", max_length=64)]


class MiniworldConfig(Config):
    """Which images of the miniworld are made (format: miniworld)."""

    images: int = Field(200, ge=1)
    seed: int = Field(0, ge=0)
    split: Literal["train", "val", "test-compositional"] = "val"


class SourceConfig(Config):
    """The dataset to label. Paths of the splits are relative to `root` (null: the working folder)."""

    format: Literal["coco", "objects365", "folder", "miniworld"] = "coco"
    root: Path | None = None
    splits: dict[SplitName, SplitConfig] = Field(default_factory=dict)
    drawn: MiniworldConfig = MiniworldConfig()
    ground_truth: Path | None = Field(
        None, description="run or import with relations of the same images; generate then prints precision and recall"
    )
    image_data: Path | None = Field(
        None, description="image_data.json, if the ground truth is Visual Genome's and the images are COCO's"
    )

    @property
    def synthetic(self) -> dict[str, Any] | None:
        """The settings of a source that makes its own images; None of any other."""
        return self.drawn.model_dump() if self.format == "miniworld" else None

    def path(self, path: Path) -> Path:
        """`path` below `root`."""
        return self.root / path if self.root else path


class DetectConfig(Config):
    """Boxes for images without annotations (format: folder, and `sgpipe label`)."""

    detector: str | None = Field(None, description="hub id or folder of an object detector; or MINIWORLD")
    classes: tuple[str, ...] | None = Field(
        None, min_length=1, description="what a detector without classes of its own is asked for; null: COCO's names"
    )
    threshold: float = Field(0.3, ge=0, lt=1, description="boxes above this score are kept")
    overlap: float = Field(0.5, gt=0, le=1, description="of boxes of a class with a larger IoU the surest is kept")
    max_boxes: int = Field(100, ge=1, description="most boxes kept per image")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    resources: Resources = Resources()


class CaptionConfig(Config):
    """Captions by a BLIP checkpoint, or (captioner: null) read from each split's captions file."""

    captioner: str | None = Field(None, description="hub id or folder of a BlipForConditionalGeneration; or MINIWORLD")
    decoding: Literal["nucleus", "beam"] = "nucleus"
    samples: int = Field(10, ge=1, description="captions per image (nucleus); beam gives one")
    top_p: float = Field(0.9, gt=0, le=1)
    temperature: float = Field(1.0, gt=0)
    beams: int = Field(3, ge=1)
    min_tokens: int = Field(5, ge=0)
    max_tokens: int = Field(20, ge=1)
    prompt: str = Field("a picture of", description="start of every caption, removed from the result")
    image_size: int | None = Field(None, ge=16, description="pixels per side; null: the checkpoint's own")
    scopes: tuple[Literal["image", "box", "pair"], ...] = ("image",)
    max_crops: int = Field(100, ge=1, description="most box or pair crops captioned per image")
    batch_size: int = Field(8, ge=1, description="images per forward pass; does not change the captions")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    resources: Resources = Resources()


class ParseConfig(Config):
    model: str | None = Field(None, description="spaCy model; null: the best one installed")
    batch_size: int = Field(256, ge=1)
    resources: Resources = Resources()


class PairConfig(Config):
    """From triplets and boxes to the ordered pairs of boxes and the predicates each may carry."""

    candidates: Literal["captions", "prior"] = "captions"
    match: Literal["head", "substring"] = "head"
    restrict: Literal["pair", "group"] = "pair"
    synonyms: Path | None = Field(None, description="JSON {class name: [synonyms]}; null: the packaged table")
    prior: Path | None = Field(None, description="scene graphs (VG JSON) for `candidates: prior`")
    require_overlap: bool = False
    max_pairs: int = Field(10_000, ge=1, description="most candidate pairs kept per image")
    resources: Resources = Resources()


class TagConfig(Config):
    """The R-Tagger: scores every candidate pair against its predicates."""

    tagger: str | None = Field(
        None, description="folder or hub id of an R-Tagger; or MINIWORLD: the one of the drawn world"
    )
    threshold: float = Field(0.05, ge=0, lt=1, description="relations above this confidence are kept")
    short_side: int = Field(800, ge=32, description="pixels; the image is resized to this shorter side")
    long_side: int = Field(1333, ge=32, description="pixels; and to at most this longer side")
    group_size: int = Field(100, ge=1, description="pairs per decoder pass; at most the tagger's queries / 2")
    chunk: int = Field(16, ge=1, description="groups whose texts are merged (restrict: group), as upstream")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    resources: Resources = Resources()


class EngineConfig(Config):
    unit_size: int = Field(512, ge=1, description="most images per work unit, hence per shard")
    address: str | None = Field(None, description="Ray cluster to join; null: start one on this machine")
    store: str | None = Field(None, description="object store for the shards, such as s3://bucket/labels")
    cpus: int | None = Field(None, ge=1, description="CPUs Ray may use on this machine; null: all")


class Recipe(Config):
    """WHAT runs on WHAT with WHICH models. Everything that changes a label is named here."""

    name: Annotated[str, StringConstraints(pattern=r"^[^/\\\x00-\x1f]+$")] = "sgpipe"
    seed: int = 0
    limit: int | None = Field(None, ge=1, description="only the first N images")
    source: SourceConfig = SourceConfig()
    detect: DetectConfig = DetectConfig()
    caption: CaptionConfig = CaptionConfig()
    parse: ParseConfig = ParseConfig()
    pair: PairConfig = PairConfig()
    tag: TagConfig = TagConfig()
    engine: EngineConfig = EngineConfig()


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a packaged name ("coco") or a YAML file, with `{"tag.threshold": 0.1}`-style overrides.

    Raises UserError: as `recipe_file.load`.
    """
    return load(Recipe, name, recipe_folder(), overrides or {})


MINIWORLD = "MINIWORLD"  # names them in recipes

NetworkName = Literal["tagger", "parseda"]
ModelName = Literal["captioner"] | NetworkName


def packaged_model(name: ModelName) -> Path:
    """The folder of a packaged model, for `from_pretrained`; its README says how it was made and how good it is."""
    return Path(__file__).parent / "miniworld" / "weights" / name


def with_packaged_models(recipe: Recipe) -> Recipe:
    """The recipe with folders in the places of models that it calls MINIWORLD."""
    detect, caption, tag = recipe.detect, recipe.caption, recipe.tag
    if detect.detector == MINIWORLD:
        detect = detect.model_copy(update={"detector": str(packaged_model("parseda"))})
    if caption.captioner == MINIWORLD:
        caption = caption.model_copy(update={"captioner": str(packaged_model("captioner"))})
    if tag.tagger == MINIWORLD:
        tag = tag.model_copy(update={"tagger": str(packaged_model("tagger"))})
    return recipe.model_copy(update={"detect": detect, "caption": caption, "tag": tag})
