"""What every section of a stage has: its resources, and the facts that the pipeline asks of it."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from sgpipe.errors import UserError
from sgpipe.files.locations import Location, text_sha256
from sgpipe.plugins import own_reference
from sgpipe.recipe.models import PackagedModel
from sgpipe.registry import Kind
from sgpipe.utils.config_file import Config
from sgpipe.utils.hashing import model_sha256

StageIdentity: TypeAlias = dict[str, object]  # what decides the labels of a stage

SERVED = "served"  # what identities say of an endpoint, whose address may change
JPEG_QUALITY = 92  # of images that an endpoint does not get as their own files
SENT_AS = f"JPEG {JPEG_QUALITY}, 4:4:4"  # in identities
AUTO_ON_CPU = "auto on a CPU"  # what an identity says of a model without a GPU
_AUTO_ON_GPU = "auto on a GPU"
# Settings of all stages that only distribute work
_DISTRIBUTION = {"resources", "batch_size", "device", "requests", "engine", "replicas"}
# Engines that sgpipe starts by their names; another one is a command of the user's own.
ENGINES = ("vllm", "sglang", "transformers")
ENGINE_KEY = "SGPIPE_ENGINE_KEY"  # environment variable with the key of their servers


class Resources(Config):
    """Resources of each actor of a stage, and the number of actors."""

    actors: int | None = Field(
        None, ge=1, description="parallel copies of the stage; null: as many as fit"
    )
    min_actors: int | None = Field(
        None, ge=1, description="in place of actors: the fewest with which a run begins; null: 1"
    )
    max_actors: int | None = Field(
        None,
        ge=1,
        description="in place of actors: the most, for which Ray may start machines; null: as many"
        " as fit",
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

    @model_validator(mode="after")
    def _check_actors(self) -> Self:
        if self.actors and (self.min_actors or self.max_actors):
            raise ValueError("actors is a fixed number: leave it out beside min_actors, max_actors")
        if self.max_actors and self.max_actors < self.fewest_actors:
            raise ValueError(
                f"max_actors is {self.max_actors}, less than min_actors, which is {self.min_actors}"
            )
        return self

    @property
    def fewest_actors(self) -> int:
        """The number of actors that a run needs."""
        return self.actors or self.min_actors or 1

    @property
    def most_actors(self) -> int | None:
        """The number of actors beyond which a run does not grow; None: as many as fit."""
        return self.actors or self.max_actors


# URLs of servers of one model
Endpoints: TypeAlias = str | Annotated[list[str], Field(min_length=1)]
# What starts servers of the run's own
EngineName: TypeAlias = Annotated[
    str | None,
    Field(
        description="the run starts servers itself: vllm, sglang, transformers, or a command with"
        " {model}, {host} and {port}; null: none"
    ),
]


class Requests(Config):
    """How an endpoint is asked. Nothing here changes an answer."""

    in_flight: int = Field(
        512, ge=1, description="the most requests of one actor that are under way at once"
    )
    in_flight_of_run: int | None = Field(
        None,
        ge=1,
        description="the most of all actors, which share them equally; null: in_flight of each",
    )
    timeout: float = Field(120, gt=0, description="seconds to wait for an answer")
    retries: int = Field(
        6, ge=0, description="further attempts after a cut connection, a 429 or a 5xx"
    )
    patience: float = Field(
        3600, ge=0, description="seconds to wait while no server answers at all"
    )
    key: str = Field(
        "OPENAI_API_KEY",
        pattern=r"^[A-Za-z_]\w*$",
        description="environment variable with it, if set",
    )

    def among(self, actors: int) -> Self:
        """Return how one of so many actors asks."""
        if self.in_flight_of_run is None:
            return self
        share = max(self.in_flight_of_run // actors, 1)
        return self.model_copy(update={"in_flight": min(self.in_flight, share)})


class Replicas(Config):
    """Servers of a model that the run starts itself, watches, and ends. Only `arguments` may change
    an answer.
    """

    min: int = Field(1, ge=1, description="the run begins when as many answer")
    max: int | None = Field(
        None, ge=1, description="the most; null: as many as GPUs allow, or min without GPUs"
    )
    gpus: int | None = Field(
        None,
        ge=0,
        description="GPUs of each replica, by tensor parallelism; null: 1 if there are any",
    )
    gpu_memory: float | None = Field(
        None,
        gt=0,
        le=1,
        description="vllm, sglang: share of a GPU's memory that they take; null: their default",
    )
    arguments: tuple[str, ...] = Field((), description="further options of the engine's server")
    ready_timeout: float = Field(
        1200, gt=0, description="seconds after which a server that does not answer has not started"
    )


@dataclass(frozen=True)
class IdentityFacts:
    """What decides the labels of a stage besides its own section of the recipe.

    Attributes:
        seed: of the run.
        extends: the run extends another one.
        shares_gpu: the stage shares the GPUs of this machine without having asked for one.
    """

    seed: int = 0
    extends: bool = False
    shares_gpu: bool = False


class StageConfig(Config):
    """The section of a stage. A subclass states what is true of its stage alone.

    Attributes:
        section: its name in a recipe.
        setting_of_model: the setting that names its model.
        packaged: which packaged model it has for the name miniworld.
        kind_setting: the setting by which other settings and models are of another kind.
        column: of a record, which the stage fills.
        noun: what the stage adds, in messages.
        left_out: the counts of `Record.left_out` that are the stage's.
        kind_of_plugin: what a model of the user's own is.
        takes_device: its settings of device and GPUs are checked before a run.
    """

    section: ClassVar[str]
    setting_of_model: ClassVar[str]
    packaged: ClassVar[PackagedModel | None] = None
    kind_setting: ClassVar[str | None] = None
    column: ClassVar[str]
    noun: ClassVar[str]
    left_out: ClassVar[tuple[str, ...]] = ()
    kind_of_plugin: ClassVar[Kind]
    takes_device: ClassVar[bool] = True

    if TYPE_CHECKING:  # each section has these where its reader expects them
        device: str = "auto"
        resources: Resources = Resources()

    then: tuple[str, ...] = Field(
        (), description="stages of your own that run after this one: package.module:Class"
    )

    options: dict[str, object] = Field(
        {}, description="settings of code of your own in this section, by name"
    )

    @model_validator(mode="after")
    def _check_requests(self) -> Self:
        most = self.requests_of_run
        if most is not None and most < self.resources.fewest_actors:
            raise ValueError(
                f"requests.in_flight_of_run is {most}, less than one for each of"
                f" {self.resources.fewest_actors} actors"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        settings: dict[str, object] = serialize(self)
        for setting in ("then", "options"):
            if not getattr(self, setting):
                settings.pop(setting, None)
        return settings

    @property
    def stage(self) -> str:
        """The stage of sgpipe that runs with these settings, by its name in `sgpipe.registry`."""
        return self.section

    @property
    def own_stages(self) -> list[str]:
        """`package.module:Class` of each stage in `then`.

        Raises:
            UserError: the name is not known.
        """
        references = []
        for name in self.then:
            reference = own_reference("stage", name)
            if reference is None:
                raise UserError(f"then: {name!r} is not a stage; expected package.module:Class")
            references.append(reference)
        return references

    @property
    def own_code(self) -> list[tuple[Kind, str]]:
        """The kind and `package.module:Class` of all code of the user's own.

        Raises:
            UserError: as `own_stages`.
        """
        code: list[tuple[Kind, str]] = [("stage", reference) for reference in self.own_stages]
        if self.plugin is not None:
            code.insert(0, (self.kind_of_plugin, self.plugin))
        return code

    @property
    def named_model(self) -> str | None:
        """The model that the recipe names."""
        model: str | None = getattr(self, self.setting_of_model)
        return model

    @property
    def plugin(self) -> str | None:
        """`package.module:Class` of a model of the user's own; None: another one."""
        return None

    @property
    def has_engine(self) -> bool:
        """Whether the run starts servers of its model itself."""
        return getattr(self, "engine", None) is not None

    @property
    def is_served(self) -> bool:
        """Whether servers are asked instead of a model here: the user's, or those of the run."""
        return self.has_engine or getattr(self, "endpoint", None) is not None

    @property
    def streams(self) -> bool:
        """Whether a server is asked about the images of several units at once."""
        return False

    @property
    def requests_in_flight(self) -> int:
        """How many requests of an actor are under way at once; 0 without an endpoint."""
        requests: Requests | None = getattr(self, "requests", None)
        return requests.in_flight if requests and self.is_served else 0

    @property
    def requests_of_run(self) -> int | None:
        """How many requests of all actors are under way at once; None: as many as each has."""
        requests: Requests | None = getattr(self, "requests", None)
        return requests.in_flight_of_run if requests and self.is_served else None

    def among(self, actors: int) -> Self:
        """Return the settings of one of so many actors."""
        requests: Requests | None = getattr(self, "requests", None)
        if requests is None:
            return self
        return self.model_copy(update={"requests": requests.among(actors)})

    @property
    def reads_model(self) -> bool:
        """Whether these settings use a model that is named by its folder or hub id."""
        return True

    @property
    def shares_gpus(self) -> bool:
        """Whether its model computes on a GPU if there is one."""
        return True

    @property
    def loaded_model(self) -> str | None:
        """The model that the stage loads; None for a served one, or spaCy's."""
        return self.named_model if self.reads_model and not self.is_served else None

    def with_model(self, model: str) -> Self:
        """Return the section with another model."""
        return self.model_copy(update={self.setting_of_model: model})

    def labelling_settings(self, unused: Collection[str] = ()) -> StageIdentity:
        """Return the settings that decide labels, but `unused` ones; models by name, files by
        path.
        """
        settings = self.model_dump(mode="json", exclude=_DISTRIBUTION | set(unused))
        if settings.get("endpoint") is not None:
            settings["endpoint"] = SERVED
        if self.has_engine:
            settings |= self._engine_settings()
        return settings

    def _engine_settings(self) -> StageIdentity:
        """Return what of its engine decides labels. The packaged engines answer alike: a run may
        change from one to another, or to an endpoint of the same model.
        """
        engine: str = getattr(self, "engine", "")
        replicas: Replicas = getattr(self, "replicas", Replicas())
        settings: StageIdentity = {"endpoint": SERVED}
        if engine not in ENGINES:
            settings["engine"] = engine
        if replicas.arguments:
            settings["arguments"] = list(replicas.arguments)
        return settings

    def identity(self, facts: IdentityFacts) -> StageIdentity:
        """Return what decides the labels of the stage, with the content of models and files."""
        return self.labelling_settings()

    def _model_identity(
        self, dtype: Literal["auto", "float32", "bfloat16"], facts: IdentityFacts
    ) -> dict[str, str | None]:
        """Return the content of the model's files and the number format; of a served one its name,
        and how it gets images.
        """
        setting = self.setting_of_model
        if self.is_served:
            return {setting: self.named_model, "dtype": SERVED, "images": SENT_AS}
        computed_in: str = dtype
        if dtype == "auto":  # half precision needs a GPU; actors that ask for none see none
            on_gpu = facts.shares_gpu or self.resources.gpus
            computed_in = _AUTO_ON_GPU if on_gpu else AUTO_ON_CPU
        return {setting: model_sha256(self.named_model), "dtype": computed_in}


def file_identity(path: Location | None) -> str | None:
    """Return the hash of a text file; None: no file is named, or it is not there.

    A stage that does not run needs no file.
    """
    if path is None:
        return None
    try:
        return text_sha256(path)
    except (FileNotFoundError, IsADirectoryError):
        return None
