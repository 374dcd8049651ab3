"""The typed recipe: the only place where a setting is named, defaulted and validated."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from sgpipe.errors import UserError


class Config(BaseModel):
    """Base of every part of a recipe: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Resources(Config):
    """What one actor of a stage needs, and how many actors there are."""

    actors: int | None = Field(None, ge=1, description="parallel copies; null: what the machine has room for")
    cpus: float = Field(1, gt=0, description="CPUs per actor; also its number of torch threads")
    gpus: float = Field(0, ge=0, description="GPUs per actor")


class SplitConfig(Config):
    """Where one split of the source lies."""

    annotations: Path
    images: Path
    captions: Path | None = Field(None, description="COCO captions JSON, used when no captioner is set")


SplitName = Annotated[str, StringConstraints(pattern=r"^\w+$", max_length=64)]


class DrawnConfig(Config):
    """Which pictures of the drawn world (`format: miniworld`) are made."""

    images: int = Field(24, ge=1)
    seed: int = Field(0, ge=0)
    split: Literal["train", "val", "test-compositional"] = "val"


class SourceConfig(Config):
    """The dataset to label. Paths of the splits are relative to `root` (null: the working folder)."""

    format: Literal["coco", "objects365", "miniworld"] = "coco"
    root: Path | None = None
    splits: dict[SplitName, SplitConfig] = Field(default_factory=dict)
    drawn: DrawnConfig = DrawnConfig()

    def path(self, path: Path) -> Path:
        """`path` below `root`."""
        return self.root / path if self.root else path


class CaptionConfig(Config):
    """Captions by a BLIP checkpoint, or (captioner: null) read from each split's captions file."""

    captioner: str | None = Field(None, description="hub id or folder of a BlipForConditionalGeneration")
    decoding: Literal["nucleus", "beam"] = "nucleus"
    samples: int = Field(10, ge=1, description="captions per picture (nucleus); beam gives one")
    top_p: float = Field(0.9, gt=0, le=1)
    temperature: float = Field(1.0, gt=0)
    beams: int = Field(3, ge=1)
    min_tokens: int = Field(5, ge=0)
    max_tokens: int = Field(20, ge=1)
    prompt: str = Field("a picture of", description="start of every caption, removed from the result")
    image_size: int | None = Field(None, ge=16, description="pixels per side; null: the checkpoint's own")
    scopes: tuple[Literal["image", "box", "pair"], ...] = ("image",)
    max_crops: int = Field(100, ge=1, description="most box or pair crops captioned per image")
    batch_size: int = Field(8, ge=1, description="pictures per forward pass; does not change the captions")
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
        None, description="folder or hub id of a converted R-Tagger; or UNTRAINED: a random miniature, to try things"
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
    cpus: int | None = Field(None, ge=1, description="CPUs Ray may use on this machine; null: all")


class Recipe(Config):
    """WHAT runs on WHAT with WHICH models. Everything that changes a label is named here."""

    name: str = "sgpipe"
    seed: int = 0
    limit: int | None = Field(None, ge=1, description="only the first N images")
    source: SourceConfig = SourceConfig()
    caption: CaptionConfig = CaptionConfig()
    parse: ParseConfig = ParseConfig()
    pair: PairConfig = PairConfig()
    tag: TagConfig = TagConfig()
    engine: EngineConfig = EngineConfig()


def recipe_folder() -> Path:
    """Where the packaged recipes lie: in the wheel, or beside the packages in a checkout."""
    here = Path(__file__).parent
    return here / "pipelines" if (here / "pipelines").is_dir() else here.parent / "pipelines"


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a packaged name ("coco") or a YAML file, with `{"tag.threshold": 0.1}`-style overrides.

    Raises:
        UserError: no such recipe, not YAML, or a key that is unknown or of the wrong type; the message names
            the file, the key and what was expected.
    """
    path = _find(name)
    values = _read_yaml(path)
    for key, value in (overrides or {}).items():
        _override(values, key, value)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, path, overrides or {})) from None


def parse_set(assignments: list[str]) -> dict[str, Any]:
    """`["tag.threshold=0.1"]` as overrides; values are read as YAML.

    Raises UserError: an assignment is not of the form key=value.
    """
    overrides = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise UserError(f"--set {assignment!r}: expected key=value, such as tag.threshold=0.1")
        try:
            overrides[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):
            raise UserError(f"--set {assignment!r}: the value is not valid YAML; put it in quotes") from None
    return overrides


def _find(name: str) -> Path:
    packaged = recipe_folder() / f"{name}.yaml"
    if "/" not in name and not name.endswith((".yaml", ".yml")) and packaged.is_file():
        return packaged
    if Path(name).is_file():
        return Path(name)
    names = ", ".join(sorted(path.stem for path in recipe_folder().glob("*.yaml")))
    raise UserError(f"no recipe {name!r}: it is neither a file nor one of the packaged recipes ({names})")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"recipe {path}{where}: not valid YAML") from None
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from None
    if not isinstance(values or {}, dict):
        raise UserError(f"recipe {path}: expected keys and values, found {type(values).__name__}")
    return values or {}


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        values[parent] = dict(inner) if isinstance(inner, dict) else {}
        values = values[parent]
    values[leaf] = value


def _explain(error: ValidationError, path: Path, overrides: Mapping[str, Any]) -> str:
    """The first fault of a recipe in one line."""
    first, *others = error.errors()
    key = ".".join(str(part) for part in first["loc"])
    given = any(key == name or key.startswith(f"{name}.") for name in overrides)
    where = "option" if given else f"recipe {path}"
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{_suggest(first)}{more}"
    expected = first["msg"].replace("Input should be", "expected").removeprefix("Value error, ")
    return f"{where}: key {key!r}: {expected}, got {first.get('input')!r}{more}"


def _suggest(error: ErrorDetails) -> str:
    """The keys that would have been right at the place of an unknown one."""
    config: Any = Recipe
    *parents, leaf = error["loc"]
    for part in parents:
        field = getattr(config, "model_fields", {}).get(part)
        inner = field.annotation if field else config
        config = next((t for t in (inner, *get_args(inner)) if hasattr(t, "model_fields")), inner)
    known = sorted(getattr(config, "model_fields", {}))
    close = difflib.get_close_matches(str(leaf), known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(known)}"
