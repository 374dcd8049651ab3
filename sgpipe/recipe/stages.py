"""The sections of a recipe that set the stages, in their order."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from sgpipe.files.locations import content_id, text_sha256
from sgpipe.plugins import own_reference
from sgpipe.recipe.models import PACKAGED_LAYOUT, ModelName
from sgpipe.recipe.own_options import own_identity
from sgpipe.recipe.source import StoredPath
from sgpipe.recipe.stage import (
    Endpoints,
    EngineName,
    IdentityFacts,
    Replicas,
    Requests,
    Resources,
    StageConfig,
    StageIdentity,
    file_identity,
)
from sgpipe.utils.hashing import model_sha256

CandidateSource = Literal[
    "captions", "image", "prior", "marks", "captions+marks", "layout", "captions+layout"
]
_MARKS_ONLY = {"model", "endpoint", "arguments", "max_marks", "samples", "temperature", "dtype"}
_PAIR_FILES = ("synonyms", "prior", "equivalents")
# Which stage of sgpipe makes pairs of these candidates; others are those of the stage "pair".
_PAIR_STAGES = {
    "marks": "marks",
    "captions+marks": "marks",
    "layout": "layout pairs",
    "captions+layout": "layout pairs",
}
# By the stage that makes pairs: settings that it does not read.
_OF_OTHER_PAIRS = {
    "pair": _MARKS_ONLY | {"probability"},
    "marks": {"probability"},
    "layout pairs": _MARKS_ONLY,
}
_PRIOR_ONLY = {"prior", "prior_power"}
_RTAGGER_ONLY = {
    "short_side",
    "long_side",
    "group_size",
    "chunk",
    "vocabulary",
    "vocabulary_others",
}
# By methods that score: settings that they do not read.
_OF_OTHER_METHODS: Mapping[str, set[str]] = {
    "auto": _RTAGGER_ONLY,
    "rtagger": set(),
    "clip": _RTAGGER_ONLY | {"dtype"},  # it computes in float32
    "vlm": _RTAGGER_ONLY,
    "layout": _RTAGGER_ONLY | {"dtype", "compile"},
}
# By `tag.method`, once `auto` is decided.
_TAG_STAGES = {
    "rtagger": "rtagger",
    "all": "assume",
    "overlap": "assume",
    "clip": "score",
    "vlm": "score",
    "layout": "layout",
}
# Methods without scores, and what their relations are.
UNSCORED: Mapping[str, str] = {
    "all": "every candidate pair is related (tag.method: all)",
    "overlap": "every candidate pair whose boxes overlap is related (tag.method: overlap)",
}


class DetectConfig(StageConfig):
    """The detector for images without annotations (format: folder, and `sgpipe label`)."""

    section = "detect"
    setting_of_model = "detector"
    packaged = "parseda"
    column = "objects"
    noun = "boxes"
    left_out = ("boxes",)

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

    def identity(self, facts: IdentityFacts) -> StageIdentity:
        return self.labelling_settings() | {"detector": model_sha256(self.detector)}


class CaptionConfig(StageConfig):
    """Captions by a model, or, with captioner: null, from the captions file of each split."""

    section = "caption"
    setting_of_model = "captioner"
    packaged = "captioner"
    kind_of_plugin = "captioner"
    column = "captions"
    noun = "captions"
    left_out = ("regions",)

    captioner: ModelName | None = Field(
        None, description="BLIP or other: hub id, folder, name at the endpoint, or miniworld"
    )
    endpoint: Endpoints | None = Field(
        None,
        description="URL of a server with the OpenAI chat API, or a list of them; null: runs here",
    )
    engine: EngineName = None
    replicas: Replicas = Replicas()
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

    def identity(self, facts: IdentityFacts) -> StageIdentity:
        if self.captioner is None:
            return {"captioner": None}
        if self.plugin is not None:
            code = own_identity(self, "captioner", self.plugin)
            return self.labelling_settings() | {"captioner": code}
        unused = {"repetition_penalty", "top_k"} if self.decoding == "beam" else set()
        return self.labelling_settings(unused) | self._model_identity(self.dtype, facts)

    @property
    def stage(self) -> str:
        return "load" if self.captioner is None else "caption"

    @property
    def streams(self) -> bool:
        return self.is_served

    @property
    def plugin(self) -> str | None:
        """`package.module:Class` of a captioner of the user's own; None: another one."""
        if self.captioner is None or self.is_served:
            return None
        return own_reference("captioner", self.captioner)

    @property
    def reads_model(self) -> bool:
        return self.plugin is None


class ParseConfig(StageConfig):
    """Captions to relation triplets."""

    section = "parse"
    setting_of_model = "model"
    kind_setting = "parser"
    column = "triplets"
    noun = "triplets"
    takes_device = False

    parser: Literal["rules", "learned", "seq2seq", "llm"] = "rules"
    model: str | None = Field(
        None, description="spaCy's (null: the best one); seq2seq: hub id or folder; llm: name"
    )
    endpoint: Endpoints | None = Field(
        None, description="llm: URL of a server with the OpenAI chat API, or a list of them"
    )
    engine: EngineName = None
    replicas: Replicas = Replicas()
    requests: Requests = Requests()
    device: str = Field("auto", description="of seq2seq: auto, cpu, cuda or cuda:N")
    attributes: bool = Field(
        True, description="adjectives and numbers become attributes of the objects that they fit"
    )
    batch_size: int = Field(256, ge=1, description="captions parsed together")
    resources: Resources = Resources()

    @property
    def streams(self) -> bool:
        return self.parser == "llm" and self.is_served

    @property
    def finds_attributes(self) -> bool:
        """Whether words of captions become attributes of the objects that they fit."""
        return self.attributes and self.parser in ("rules", "learned")

    @property
    def reads_model(self) -> bool:
        return self.parser == "seq2seq"


class GroundConfig(StageConfig):
    """Boxes for the words of captions that no box of the image carries; other boxes stay as they
    are.
    """

    section = "ground"
    setting_of_model = "detector"
    packaged = "parseda"
    column = "objects"
    noun = "boxes of words"
    left_out = ("words", "grounded")

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

    def identity(self, facts: IdentityFacts) -> StageIdentity:
        return self.labelling_settings() | {"detector": model_sha256(self.detector)}


class PairConfig(StageConfig):
    """From triplets and boxes to ordered pairs of boxes, each with its candidate predicates."""

    section = "pair"
    setting_of_model = "model"
    column = "pairs"
    noun = "pairs"
    left_out = ("pairs", "marks", "answers")

    candidates: CandidateSource = "captions"
    model: str | None = None
    probability: float = Field(
        0.01, gt=0, lt=1, description="layout: candidates are more probable than this"
    )
    endpoint: Endpoints | None = Field(
        None, description="marks: URL of a server with the OpenAI chat API, or a list; null: none"
    )
    engine: EngineName = None
    replicas: Replicas = Replicas()
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
    def stage(self) -> str:
        return _PAIR_STAGES.get(self.candidates, "pair")

    @property
    def streams(self) -> bool:
        return self.is_served

    @property
    def marks(self) -> bool:
        """Return whether a vision-language model relates numbered boxes."""
        return self.stage == "marks"

    @property
    def layout(self) -> bool:
        """Return whether the layout model relates boxes."""
        return self.stage == "layout pairs"

    @property
    def reads_model(self) -> bool:
        return self.marks or self.layout

    @property
    def shares_gpus(self) -> bool:
        return not self.layout  # which computes on the CPU

    def identity(self, facts: IdentityFacts) -> StageIdentity:
        parts = self.labelling_settings(self._unused(facts))
        for setting in _PAIR_FILES:
            if setting in parts:
                parts[setting] = file_identity(getattr(self, setting))
        if self.marks:
            parts |= self._model_identity(self.dtype, facts)
            parts["seed"] = facts.seed
        if self.layout:
            parts["model"] = model_sha256(self.model or str(PACKAGED_LAYOUT))
        return parts

    def matching(self, facts: IdentityFacts) -> StageIdentity:
        """Return what decides which noun fits which class, also where other stages ask."""
        parts = self.identity(facts)
        return {setting: parts[setting] for setting in ("synonyms", "loose")}

    def _unused(self, facts: IdentityFacts) -> set[str]:
        """Return the settings that are for other candidates than these."""
        unused = set(_OF_OTHER_PAIRS[self.stage])
        if not facts.extends:
            unused |= {"equivalents", "known"}
        return unused


class TagConfig(StageConfig):
    """Which candidates are relations: every candidate pair is scored against its predicates."""

    section = "tag"
    setting_of_model = "tagger"
    packaged = "tagger"
    kind_of_plugin = "tagger"
    kind_setting = "method"
    column = "relations"
    noun = "relations"

    method: Literal["auto", "rtagger", "all", "overlap", "clip", "vlm", "layout"] = "rtagger"
    tagger: ModelName | None = None
    endpoint: Endpoints | None = Field(
        None, description="vlm: URL of a server with the OpenAI chat API, or a list; null: none"
    )
    engine: EngineName = None
    replicas: Replicas = Replicas()
    requests: Requests = Requests()
    questions: Literal["each", "shared"] = Field(
        "each",
        description="vlm: an outlined image for each relation, or shared, with numbered boxes",
    )
    prior: Literal["layout"] | None = None
    prior_power: float = Field(
        0.5, gt=0, le=1, description="prior: the probability of the pair is raised to this"
    )
    threshold: float = Field(
        0.05, ge=0, lt=1, description="minimum confidence; with a calibration, minimum probability"
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
    def stage(self) -> str:
        return _TAG_STAGES[self.method] if self.plugin is None else "score"

    @property
    def plugin(self) -> str | None:
        """`package.module:Class` of a tagger of the user's own; None: another one."""
        if self.tagger is None or self.method not in ("auto", "rtagger"):
            return None
        return own_reference("tagger", self.tagger)

    @property
    def streams(self) -> bool:
        return self.method == "vlm" and self.is_served

    @property
    def scores(self) -> bool:
        """Return whether relations are scored; otherwise they have confidence 1."""
        return self.method not in UNSCORED

    @property
    def reads_model(self) -> bool:
        return self.scores and self.plugin is None

    @property
    def shares_gpus(self) -> bool:
        return self.method != "layout"  # which computes on the CPU

    @property
    def content(self) -> str | None:
        """What identifies a tagger that is not served: the content of its files, or its code."""
        if self.plugin is not None:
            return own_identity(self, "tagger", self.plugin)
        if self.method == "layout":
            return model_sha256(self.tagger or str(PACKAGED_LAYOUT))
        return model_sha256(self.tagger)

    def identity(self, facts: IdentityFacts) -> StageIdentity:
        """Return what decides the relations.

        Raises:
            UserError: the calibration is missing.
        """
        if not self.scores:
            return {"method": self.method}
        parts = self.labelling_settings()
        if self.plugin is None:
            parts |= self._model_identity(self.dtype, facts)
        if not self.is_served:
            parts["tagger"] = self.content
        if self.method == "rtagger" and self.vocabulary == "image":
            parts["seed"] = facts.seed
        if self.prior is not None:
            parts["prior"] = model_sha256(str(PACKAGED_LAYOUT))
        if self.calibration is not None:
            content_id(self.calibration)
            parts["calibration"] = text_sha256(self.calibration)
        unused = self._unused()
        return {setting: value for setting, value in parts.items() if setting not in unused}

    def _unused(self) -> set[str]:
        """Return the settings that are for other methods than this one."""
        unused = set(_OF_OTHER_METHODS[self.method])
        if self.vocabulary == "dataset":
            unused.add("vocabulary_others")
        if self.prior is None:
            unused |= _PRIOR_ONLY
        if self.questions == "each":
            unused.add("questions")
        if self.calibration is None:
            unused |= {"calibration", "precision"}
        return unused
