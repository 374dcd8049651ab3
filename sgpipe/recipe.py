"""The typed recipe of labelling: the only place where its settings are named, defaulted and
validated.

A meaning of several lines is in docs/hooks/meanings.yml.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from filecmp import cmp
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    field_validator,
)

from sgpipe.errors import EngineError, UserError
from sgpipe.files.image_roots import located
from sgpipe.files.locations import Location, below, is_uri, location
from sgpipe.files.model_cache import local_model, pin_model
from sgpipe.utils import LARGEST_SEED, BoxForm
from sgpipe.utils.config_file import Config as Config
from sgpipe.utils.config_file import load, recipe_folder

MINIWORLD = "MINIWORLD"  # in a recipe: the packaged model of the miniworld
PackagedModel = Literal["captioner", "tagger", "parseda"]


_DRAWN = ".sgpipe/drawn/"  # within a run of the miniworld
ImageLocation = Annotated[
    str,
    BeforeValidator(lambda place: located(place) if isinstance(place, str | Location) else place),
]


SplitName = Annotated[str, StringConstraints(pattern=r"^\w+$", max_length=64)]


CandidateSource = Literal[
    "captions", "image", "prior", "marks", "captions+marks", "layout", "captions+layout"
]


# Methods without scores, and what their relations are.
SERVED = "served"  # what identities say of an endpoint, whose address may change
UNSCORED: Mapping[str, str] = {
    "all": "every candidate pair is related (tag.method: all)",
    "overlap": "every candidate pair whose boxes overlap is related (tag.method: overlap)",
}


_WEIGHTS = "model.safetensors"
WHOLE = "all"  # the split of images that have no other
DEFAULT_SIDES = (
    800,
    1333,
)  # short and maximum long side, in pixels, of the images that a network reads, as published

PACKAGED_LAYOUT = Path(__file__).parent / "stages" / "tag" / "layout" / "weights"


# The setting of each stage that names its model
_MODELS = {
    "detect": "detector",
    "caption": "captioner",
    "parse": "model",
    "ground": "detector",
    "pair": "model",
}
_MODELS |= {"tag": "tagger"}
STAGES = tuple(_MODELS)  # in their order
_PACKAGED: Mapping[str, PackagedModel] = {
    "detect": "parseda",
    "ground": "parseda",
    "caption": "captioner",
    "tag": "tagger",
}


def packaged_model(name: PackagedModel) -> Path:
    """Return the folder of a packaged model, for `from_pretrained`; its README says how it was
    made.
    """
    return Path(__file__).parent / "miniworld" / "weights" / name


def network_folder(model: Path) -> Path:
    """Return the folder itself, or the best or last checkpoint in the folder of a training."""
    folders = (model, model / "best", model / "last")
    return next((folder for folder in folders if (folder / "config.json").is_file()), model)


def model_name(model: str) -> str:
    """Return MINIWORLD for this word in any letters, unless a folder of that name has a model;
    others unchanged.
    """
    is_folder = (network_folder(Path(model)) / "config.json").is_file()
    return MINIWORLD if model.upper() == MINIWORLD and not is_folder else model


def named_model(model: str, packaged: PackagedModel | None) -> str:
    """Return the folder of the packaged model for its name, of a training its best network; others
    unchanged.
    """
    if packaged is not None and model_name(model) == MINIWORLD:
        return str(packaged_model(packaged))
    folder = network_folder(Path(model))
    return model if folder == Path(model) else str(folder.resolve())


ModelName = Annotated[str, AfterValidator(model_name)]


class Resources(Config):
    """Resources of each actor of a stage, and the number of actors."""

    actors: int | None = Field(
        None, ge=1, description="parallel copies of the stage; null: as many as fit"
    )
    cpus: float = Field(1, gt=0, description="CPUs per actor, and its number of torch threads")
    gpus: float | None = Field(
        None, ge=0, le=1, description="GPUs per actor, one or a part; null: a share of all"
    )
    memory: float = Field(
        0, ge=0, description="GiB of memory per actor that Ray keeps free for it; 0: not counted"
    )
    io_threads: int | None = Field(
        None, ge=0, le=64, description="threads that open images; null: by CPUs and GPUs"
    )


class Requests(Config):
    """How an endpoint is asked. Nothing here changes an answer."""

    in_flight: int = Field(16, ge=1, description="requests of one actor that are under way at once")
    timeout: float = Field(120, gt=0, description="seconds to wait for an answer")
    retries: int = Field(
        6, ge=0, description="further attempts after a cut connection, a 429 or a 5xx"
    )
    key: str = Field(
        "OPENAI_API_KEY",
        pattern=r"^[A-Za-z_]\w*$",
        description="environment variable with it, if set",
    )


def _as_location(place: Any) -> Location:
    if not isinstance(place, str | Location):
        raise ValueError("expected a path or a URI")
    return location(place)


StoredPath = Annotated[
    Location, PlainValidator(_as_location), PlainSerializer(str, when_used="json")
]


class SplitConfig(Config):
    """The files of one split."""

    annotations: StoredPath | None = Field(
        None, description="COCO instances JSON, also .gz; null with format: folder"
    )
    images: ImageLocation = Field(
        description="folder, .zip or .tar archive, a folder of these, or a store (s3://…)"
    )
    captions: StoredPath | None = Field(
        None, description="COCO captions JSON; used if caption.captioner is null"
    )


class MiniworldConfig(Config):
    """The images that format: miniworld generates."""

    images: int = Field(200, ge=1, description="number of images")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="another seed gives other images")
    split: Literal["train", "val", "test-compositional"] = Field(
        "val", description="the last: new combinations"
    )


class HubColumns(Config):
    """The columns of the Parquet files; a dot leads into a column of columns: objects.bbox."""

    image: str | None = Field(None, description="the images; null: the only column of images")
    id: str | None = Field(
        None, description="ids; null: image_id or id if no two are the same, else the row's number"
    )
    width: str | None = Field(
        None, description="pixels; null: width, else the images themselves say it"
    )
    height: str | None = Field(
        None, description="pixels; null: height, else the images themselves say it"
    )
    boxes: str | None = Field(
        None, description="the boxes of an image; null: objects.bbox or a similar name"
    )
    classes: str | None = Field(
        None, description="the class of each box; null: objects.category or a similar name"
    )
    crowd: str | None = Field(
        None, description="whether a box is around a crowd; null: iscrowd beside the boxes"
    )
    captions: str | None = Field(
        None, description="captions, used if caption.captioner is null; null: none"
    )


class HubConfig(Config):
    """The dataset of format: hub."""

    dataset: str | None = Field(
        None, description="Parquet files: folder, store, or USER/NAME[@REVISION] of the hub"
    )
    subset: str | None = Field(
        None, description="subset (configuration); null: the only one, or default"
    )
    split: str | None = Field(None, description="split to label; null: all")
    classes: tuple[str, ...] | None = Field(
        None, min_length=1, description="by number; null: as the dataset states"
    )
    columns: HubColumns = HubColumns()


class SourceConfig(Config):
    """The dataset to label."""

    format: Literal["coco", "objects365", "folder", "hub", "miniworld", "run"] = "coco"
    run: StoredPath | None = Field(
        None, description="the run or import of format: run, also in a store (--extend)"
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="keep the run's relations from this confidence on"
    )
    root: StoredPath | None = Field(
        None, description="where relative paths begin; null: the working folder"
    )
    splits: dict[SplitName, SplitConfig] = Field(
        default_factory=dict, description="the files of each split"
    )
    boxes: BoxForm | None = None
    open_images: bool = True
    hub: HubConfig = HubConfig()
    miniworld: MiniworldConfig = MiniworldConfig()
    ground_truth: StoredPath | None = Field(
        None, description="run or import to measure precision and recall by"
    )
    image_data: StoredPath | None = Field(
        None, description="image_data.json, if VG is ground truth for COCO"
    )

    @field_validator("splits")
    @classmethod
    def _drawn_again(cls, splits: dict[str, SplitConfig], info: Any) -> dict[str, SplitConfig]:
        """Leave out the images that an earlier run of a saved recipe drew in its folder."""
        drawn = info.data.get("format") == "miniworld" and all(
            _DRAWN in each.images for each in splits.values()
        )
        return {} if drawn else splits

    @property
    def synthetic(self) -> dict[str, Any] | None:
        """Return the settings of a source that generates its own images, or None."""
        return self.miniworld.model_dump() if self.format == "miniworld" else None

    def path(self, path: Location) -> Location:
        """`path` below `root`, unless it is a URI."""
        return below(self.root, path)

    def images(self, split: str) -> str:
        return located(self.splits[split].images, self.root)


class DetectConfig(Config):
    """The detector for images without annotations (format: folder, and `sgpipe label`)."""

    detector: ModelName | None = Field(
        None, description="hub id or folder of an object detector; or miniworld"
    )
    classes: tuple[str, ...] | None = Field(
        None, min_length=1, description="of open-vocabulary detectors; null: COCO"
    )
    threshold: float = Field(0.3, ge=0, lt=1, description="keep boxes above this score")
    overlap: float = Field(
        0.5, gt=0, le=1, description="of boxes of one class with a larger IoU, keep the best one"
    )
    max_boxes: int = Field(100, ge=1, description="maximum number of boxes per image")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    resources: Resources = Resources()


class CaptionConfig(Config):
    """Captions by a model, or, with captioner: null, from the captions file of each split."""

    captioner: ModelName | None = Field(
        None, description="BLIP or other: hub id, folder, name at the endpoint, or miniworld"
    )
    endpoint: str | None = Field(
        None, description="URL of a server with the OpenAI chat API; null: runs here"
    )
    requests: Requests = Requests()
    decoding: Literal["nucleus", "beam"] = Field(
        "nucleus", description="nucleus sampling or beam search"
    )
    samples: int = Field(
        10, ge=1, description="captions per image with nucleus sampling; beam search gives one"
    )
    top_p: float = Field(0.9, gt=0, le=1, description="probability mass of nucleus sampling")
    top_k: int = Field(
        0, ge=0, description="nucleus sampling among the k likeliest tokens; 0: all; published: 50"
    )
    repetition_penalty: float = Field(1.0, gt=0)
    temperature: float = Field(1.0, gt=0, description="temperature of nucleus sampling")
    beams: int = Field(3, ge=1, description="beams of beam search")
    min_tokens: int = Field(5, ge=0, description="shortest caption")
    max_tokens: int | None = Field(
        None, ge=1, description="longest caption; null: 20 for BLIP, 128 for others"
    )
    prompt: str | None = None
    system: str | None = Field(None, description="system message of a chat model; null: none")
    image_size: int | None = Field(
        None, ge=16, description="pixels per side (BLIP) or of the longer side; null: own"
    )
    scopes: tuple[Literal["image", "box", "pair"], ...] = Field(
        ("image",), description="what is captioned"
    )
    max_crops: int = Field(
        100, ge=1, description="most captioned regions per image and scope, of its largest boxes"
    )
    batch_size: int = Field(8, ge=1, description="images read ahead; does not change the captions")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    resources: Resources = Resources()


class ParseConfig(Config):
    """Captions to relation triplets."""

    parser: Literal["rules", "learned", "seq2seq", "llm"] = "rules"
    model: str | None = Field(
        None, description="spaCy's (null: the best one); seq2seq: hub id or folder; llm: name"
    )
    endpoint: str | None = Field(None, description="llm: URL of a server with the OpenAI chat API")
    requests: Requests = Requests()
    device: str = Field("auto", description="of seq2seq: auto, cpu, cuda or cuda:N")
    attributes: bool = Field(
        True, description="adjectives and numbers become attributes of the objects that they fit"
    )
    batch_size: int = Field(256, ge=1, description="captions parsed together")
    resources: Resources = Resources()


class GroundConfig(Config):
    """Boxes for the words of captions that no box of the image carries; other boxes stay as they
    are.
    """

    detector: ModelName | None = Field(
        None, description="hub id or folder of a detector of texts, or miniworld; null: none"
    )
    words: Literal["triplets", "all"] = Field(
        "triplets", description="nouns to look for: those in triplets, or all"
    )
    ask: Literal["classes", "words"] = Field(
        "classes", description="read the class of a word (dog), or it (puppy)"
    )
    threshold: float = Field(0.3, ge=0, lt=1, description="keep boxes above this score")
    overlap: float = Field(
        0.5, gt=0, le=1, description="IoU above which boxes of one class are one, given or found"
    )
    overlap_across: float = Field(
        0.9, gt=0, le=1, description="the same for found boxes of different classes"
    )
    max_words: int = Field(
        30, ge=1, description="words per image: those in most captions; others are counted"
    )
    max_boxes: int = Field(50, ge=1, description="boxes of words per image; others are counted")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    resources: Resources = Resources()


class PairConfig(Config):
    """From triplets and boxes to ordered pairs of boxes, each with its candidate predicates."""

    candidates: CandidateSource = "captions"
    model: str | None = None
    probability: float = Field(
        0.01, gt=0, lt=1, description="layout: candidates are more probable than this"
    )
    endpoint: str | None = Field(
        None, description="marks: URL of a server with the OpenAI chat API; null: none"
    )
    requests: Requests = Requests()
    max_marks: int = Field(
        30, ge=2, description="marks: numbered boxes per image: the largest; others are counted"
    )
    samples: int = Field(
        1, ge=1, description="marks: answers per image; a candidate is in at least one of them"
    )
    temperature: float = Field(0.7, gt=0, description="marks: temperature of nucleus sampling")
    device: str = Field("auto", description="marks: auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="marks: number format of the model"
    )
    match: Literal["head", "substring"] = Field(
        "head", description="nouns with classes by heads, or as RLIPv2's code"
    )
    restrict: Literal["pair", "group"] = Field(
        "pair", description="to a pair's predicates, or its group's (RLIPv2)"
    )
    loose: bool = True
    synonyms: StoredPath | None = Field(
        None, description="JSON {class name: [synonyms]}; null: the packaged table"
    )
    known: int = Field(
        20, ge=0, description="--extend: frequent predicates of two classes are candidates"
    )
    equivalents: StoredPath | None = None
    prior: StoredPath | None = Field(
        None, description="scene graphs (VG JSON) for `candidates: prior`"
    )
    require_overlap: bool = Field(False, description="only pairs of overlapping boxes")
    max_pairs: int = Field(
        10_000, ge=1, description="most candidate pairs per image: of its largest boxes"
    )
    resources: Resources = Resources()

    @property
    def marks(self) -> bool:
        """Return whether a vision-language model relates numbered boxes."""
        return self.candidates in ("marks", "captions+marks")

    @property
    def layout(self) -> bool:
        """Return whether the layout model relates boxes."""
        return self.candidates in ("layout", "captions+layout")


class TagConfig(Config):
    """Which candidates are relations: every candidate pair is scored against its predicates."""

    method: Literal["auto", "rtagger", "all", "overlap", "clip", "vlm", "layout"] = "rtagger"
    tagger: ModelName | None = None
    endpoint: str | None = Field(
        None, description="vlm: URL of a server with the OpenAI chat API; null: it runs here"
    )
    requests: Requests = Requests()
    prior: Literal["layout"] | None = None
    prior_power: float = Field(
        0.5, gt=0, le=1, description="prior: the probability of the pair is raised to this"
    )
    threshold: float = Field(
        0.05, ge=0, lt=1, description="above this confidence; calibrated: probability"
    )
    calibration: StoredPath | None = Field(
        None, description="file of `sgpipe calibrate` for this tagger; null: none"
    )
    precision: float | None = Field(
        None, gt=0, le=1, description="with a calibration, instead of threshold (95% sure)"
    )
    short_side: int = Field(800, ge=32, description="resize images to this shorter side, in pixels")
    long_side: int = Field(1333, ge=32, description="and to at most this longer side, in pixels")
    group_size: int = Field(
        100, ge=1, description="pairs per decoder pass; at most the tagger's queries / 2"
    )
    chunk: int = Field(
        16, ge=1, description="restrict: group: groups whose texts are merged, as in RLIPv2's code"
    )
    vocabulary: Literal["dataset", "image"] = "dataset"
    vocabulary_others: int = Field(
        20, ge=0, description="image: size of that sample, fixed by seed and image"
    )
    batch_size: int | None = Field(
        None, ge=1, description="rtagger: images that a GPU scores at once; null: 8"
    )
    compile: bool = Field(
        False, description="rtagger on a GPU: torch.compile for backbone and encoder layers"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    resources: Resources = Resources()

    @property
    def scores(self) -> bool:
        """Return whether relations are scored; otherwise they have confidence 1."""
        return self.method not in UNSCORED


class EngineConfig(Config):
    """How the work is distributed. Nothing here changes a label."""

    kind: Literal["auto", "ray", "local"] = "auto"
    unit_size: int = Field(
        512, ge=1, description="maximum number of images per work unit, and so per shard"
    )
    address: str | None = Field(
        None, description="Ray cluster to join; null: start one on this machine"
    )
    store: str | None = Field(
        None, description="object store for the shards, such as s3://bucket/labels"
    )
    cpus: int | None = Field(None, ge=1, description="CPUs to use on this machine; null: all")


class Recipe(Config):
    """The data, the models and all settings of a run. Every setting that changes a label is
    here.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[^/\\\x00-\x1f]+$")] = Field(
        "sgpipe", description="of the run"
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of the caption sampling")
    limit: int | None = Field(None, ge=1, description="only the first N images")
    source: SourceConfig = SourceConfig()
    detect: DetectConfig = DetectConfig()
    caption: CaptionConfig = CaptionConfig()
    parse: ParseConfig = ParseConfig()
    ground: GroundConfig = GroundConfig()
    pair: PairConfig = PairConfig()
    tag: TagConfig = TagConfig()
    engine: EngineConfig = EngineConfig()

    @property
    def detects(self) -> bool:
        """Return whether a detector finds the boxes; otherwise they are given, or only words of
        captions get some.
        """
        return self.source.format == "folder" and self.detect.detector is not None

    @property
    def needs_captions(self) -> bool:
        """Return whether captions must be given: nothing else states candidates, and no model
        captions.
        """
        return self.caption.captioner is None and self.pair.candidates in ("captions", "image")


def resolved(recipe: Recipe) -> Recipe:
    """Return the recipe with what it leaves open decided, before anything else reads it.

    `tag.method: auto` is the layout model, the packaged one or that of `tag.tagger`, or else the
    R-Tagger of `tag.tagger`. Candidates by layout are of the model that scores them, unless
    `pair.model` names another one.
    """
    tag = recipe.tag
    pair = recipe.pair
    if tag.method == "auto":
        by_layout = tag.tagger is None or is_layout_model(tag.tagger)
        tag = tag.model_copy(update={"method": "layout" if by_layout else "rtagger"})
    if pair.layout and pair.model is None and tag.method == "layout":
        pair = pair.model_copy(update={"model": tag.tagger})
    return recipe.model_copy(update={"tag": tag, "pair": pair})


def load_recipe(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe of a packaged name or YAML file, with overrides by dotted key; raises
    UserError, as `load`.
    """
    return load(Recipe, name, recipe_folder(), overrides or {})


def layout_folder(model: str | None) -> Path:
    """Return the folder of a layout model, fetched if it is elsewhere; None: of the packaged one.
    Raises as `local_model`.
    """
    return PACKAGED_LAYOUT if model is None else Path(local_model(model))


def is_layout_model(model: str) -> bool:
    """Return whether a model is one of `sgpipe train layout`, by its configuration."""
    return "subject_classes" in known_settings(model)


def known_settings(model: str | None) -> dict[str, Any]:
    """Return the settings of a network in a folder, in a store or on the hub; {} for one that is
    not there.
    """
    with suppress(UserError, EngineError):
        return _config_json(model)
    return {}


def _config_json(model: str | None) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        folder = network_folder(Path(local_model(str(model), whole=False)))
        settings = json.loads((folder / "config.json").read_text("utf-8"))
        return settings if isinstance(settings, dict) else {}
    return {}


def trained_sides(model: str) -> tuple[int, int] | None:
    """Return the sides of a network's validation images, short and long, or None. Raises as
    `local_model`.
    """
    return _image_sides(_config_json(model))


def _image_sides(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    match settings.get("image_sides"):
        case [int(short), int(long)]:
            return short, long
    return None


def _is_miniworld(model: str | None) -> bool:
    """Return whether a model is a packaged one, by its name, its folder or as a copy."""
    with suppress(OSError):
        weights = network_folder(Path(str(model))) / _WEIGHTS
        packaged = (packaged_model(name) / _WEIGHTS for name in get_args(PackagedModel))
        return model_name(str(model)) == MINIWORLD or any(
            cmp(weights, each, shallow=False) for each in packaged
        )
    return False


def miniworld_notes(models: Iterable[str | None], source: SourceConfig | None = None) -> list[str]:
    """Return what users should know if some of the models are the packaged ones; source: of the
    images, if known.
    """
    if not any(map(_is_miniworld, models)):
        return []
    if source is None or source.synthetic is None:
        return [
            "the packaged miniworld models know only synthetic images: for photographs, pass other"
            " models"
        ]
    if source.miniworld.split == "train":
        return [
            "the miniworld models were trained on this split: label quality on it is too optimistic"
        ]
    return []


def size_notes(detector: str | None) -> list[str]:
    """Return a note on a detector that does not state at which size it reads images."""
    settings = known_settings(detector and named_model(detector, "parseda"))
    if _image_sides(settings) or not str(settings.get("model_type")).startswith("rlip"):
        return []
    short, long = DEFAULT_SIDES
    return [
        f"{detector}: its config.json has no image_sides, so images are resized to {short} and at"
        f' most {long} pixels; if it was trained on other sizes, add them, such as "image_sides":'
        " [480, 800]"
    ]


def _layout_note(recipe: Recipe) -> str:
    """Return what the layout model looks at and, of the packaged one, how good its relations
    are.
    """
    if recipe.tag.tagger is not None:
        return (
            f"relations are scored by the layout model {recipe.tag.tagger}: it sees boxes and"
            " captions, no pixels"
        )
    measured = json.loads((PACKAGED_LAYOUT / "evidence.json").read_text("utf-8"))["figures"]
    figures = measured.get(recipe.pair.candidates, measured["captions"])
    return (
        "no tagger: the packaged layout model scores relations by boxes and captions. Given the"
        f" persons and used things of V-COCO's photographs it finds {figures['pairs found']:.0%} of"
        f" the annotated pairs, at a precision of {figures['precision in scope']:.0%} (confidence"
        f" {measured['confidence']:g}); with more boxes it is lower. An R-Tagger (--tagger) looks"
        " at the image"
    )


def recipe_notes(recipe: Recipe, *, detects: bool, source: SourceConfig | None = None) -> list[str]:
    """Return what users should know of a recipe's models; `detects`: its detector runs; `source`:
    if known.
    """
    tag = recipe.tag
    detector = recipe.detect.detector if detects else None
    models = [
        detector,
        recipe.ground.detector,
        recipe.caption.captioner,
        tag.tagger if tag.scores else None,
    ]
    notes = miniworld_notes(models, source)
    if not tag.scores:
        kept = UNSCORED[tag.method]
        notes.append(
            f"{kept}: nothing looks at the image, and confidence 1 means only that nothing scored"
            " them"
        )
    if tag.method == "layout":
        notes.append(_layout_note(recipe))
    tagger = named_model(tag.tagger, "tagger") if tag.method == "rtagger" and tag.tagger else None
    sides = _image_sides(known_settings(tagger))
    if sides and sides != (tag.short_side, tag.long_side):
        notes.append(
            f"{tag.tagger} was trained on images of {sides[0]} and at most {sides[1]} pixels: set"
            f" tag.short_side ({tag.short_side} now) and tag.long_side ({tag.long_side})"
        )
    return list(dict.fromkeys([*notes, *size_notes(detector), *size_notes(recipe.ground.detector)]))


def models_of(recipe: Recipe, skipped: Collection[str] = ()) -> dict[str, str]:
    """Return the models that stages but `skipped` ones load: not those behind endpoints, nor
    spaCy's.
    """
    asks_pairs = recipe.pair.marks or recipe.pair.layout
    used = {"parse": recipe.parse.parser == "seq2seq", "pair": asks_pairs, "tag": recipe.tag.scores}
    configs = {
        stage: getattr(recipe, stage)
        for stage in _MODELS
        if stage not in skipped and used.get(stage, True)
    }
    served = {
        stage for stage, config in configs.items() if getattr(config, "endpoint", None) is not None
    }
    models = {
        stage: getattr(config, _MODELS[stage])
        for stage, config in configs.items()
        if stage not in served
    }
    return {stage: model for stage, model in models.items() if model is not None}


def with_model_folders(
    recipe: Recipe, before: Mapping[str, Any] | None = None, resumes: bool = True
) -> Recipe:
    """Return the recipe with folders of networks in place of MINIWORLD and of trainings.

    What a training's `best` or `last` is now is used throughout the run, and so are the files that
    a model of an object store has now, and the commit of one of the hub.

    Args:
        before: the identity of the run that is resumed, or of its parent; models of the hub stay at
            its commits.
        resumes: False: `before` is the parent's, from which a revision that the recipe names may
            differ.
    """
    changed = {}
    for stage, model in models_of(recipe).items():
        folder = named_model(model, _PACKAGED.get(stage))
        known = json.dumps((before or {}).get(stage)) if resumes or "@" not in folder else ""
        changed[stage] = getattr(recipe, stage).model_copy(
            update={_MODELS[stage]: pin_model(folder, known)}
        )
    return recipe.model_copy(update=changed)


def hub_models(recipe: Recipe, skipped: Collection[str] = ()) -> list[str]:
    """Return the hub ids of the models that stages but `skipped` ones load; none if one is
    open_clip's.
    """
    names = dict.fromkeys(models_of(recipe, skipped).values())
    found = [
        name for name in names if name != MINIWORLD and not is_uri(name) and not Path(name).exists()
    ]
    return [] if any(":" in name for name in found) else found
