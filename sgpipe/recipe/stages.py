"""The sections of a recipe that set the stages, in their order."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from sgpipe.recipe.models import ModelName
from sgpipe.recipe.source import StoredPath
from sgpipe.utils.config_file import Config

CandidateSource = Literal[
    "captions", "image", "prior", "marks", "captions+marks", "layout", "captions+layout"
]
SERVED = "served"  # what identities say of an endpoint, whose address may change
# Methods without scores, and what their relations are.
UNSCORED: Mapping[str, str] = {
    "all": "every candidate pair is related (tag.method: all)",
    "overlap": "every candidate pair whose boxes overlap is related (tag.method: overlap)",
}


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
