"""How each engine's own server is started, and what it needs."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from sgpipe.errors import UserError
from sgpipe.recipe import ENGINE_KEY, ENGINES, Replicas, StageConfig

LOOPBACK = "127.0.0.1"
_PLACES = ("{model}", "{host}", "{port}", "{gpus}")
_NEEDED = ("{model}", "{port}")
_NEED_GPUS = ("vllm", "sglang")
_TAKE_MEMORY = ("vllm", "sglang")
# What has to be installed, and how.
_MODULES: Mapping[str, tuple[str, ...]] = {
    "vllm": ("vllm",),
    "sglang": ("sglang",),
    "transformers": ("transformers.cli.transformers", "fastapi", "uvicorn"),
}
_PACKAGES: Mapping[str, str] = {
    "vllm": "sgpipe[vllm]",
    "sglang": "sgpipe[sglang]",
    "transformers": "transformers[serving]>=5",
}
# Variables that servers read their key from. SGLang takes it as an option only, which it logs.
_KEYS = (ENGINE_KEY, "VLLM_API_KEY", "LLAMA_API_KEY")
_TRANSFORMERS = "from transformers.cli.transformers import main; main()"


@dataclass(frozen=True)
class ModelServer:
    """A model, and how it is served. Stages for which all this is equal share its replicas.

    Attributes:
        section: the first stage of the recipe that asks it.
        engine: the name of a packaged one, or a command.
        model: its name, as the server lists it.
        replicas: how many, and on how many GPUs each.
    """

    section: str = field(compare=False)
    engine: str
    model: str
    replicas: Replicas

    @classmethod
    def of(cls, section: str, config: StageConfig) -> ModelServer:
        """Return what serves the model of a stage.

        Raises:
            UserError: it names none, or its engine is not known.
        """
        engine: str = config.engine  # type: ignore[attr-defined]
        replicas: Replicas = config.replicas  # type: ignore[attr-defined]
        if config.endpoint is not None:  # type: ignore[attr-defined]
            raise UserError(f"{section}.engine and {section}.endpoint: omit one of them")
        if config.named_model is None:
            raise UserError(f"{section}.engine: set {section}.{config.setting_of_model}, its model")
        if engine not in ENGINES:
            _check_command(section, engine)
        if replicas.gpu_memory is not None and engine not in _TAKE_MEMORY:
            raise UserError(f"{section}.replicas.gpu_memory is for vllm and sglang")
        if replicas.max is not None and replicas.max < replicas.min:
            raise UserError(f"{section}.replicas.max is less than {section}.replicas.min")
        return cls(section, engine, config.named_model, replicas)

    @property
    def name(self) -> str:
        """The engine, for messages."""
        return self.engine if self.engine in ENGINES else shlex.split(self.engine)[0]

    def gpus(self, available: int) -> int:
        """Return the number of GPUs of each replica.

        Args:
            available: how many there are.

        Raises:
            UserError: too few.
        """
        setting = f"{self.section}.replicas.gpus"
        gpus = self.replicas.gpus
        if gpus is None and not available and self.engine in _NEED_GPUS:
            raise UserError(
                f"{self.section}.engine is {self.name}, but there is no GPU: use transformers, or set"
                f" {setting}=0 if {self.name} computes on the CPU here"
            )
        if gpus is None:
            return min(1, available)
        if gpus > available:
            raise UserError(f"{setting} is {gpus}, but the number of GPUs is {available}")
        return gpus

    def limit(self, size: int, available: int) -> int:
        """Return the largest number of replicas, by the recipe or, if it says none, by the GPUs.

        Args:
            size: GPUs of each.
            available: how many there are.
        """
        if self.replicas.max is not None:
            return self.replicas.max
        return available // size if size else self.replicas.min

    def check_installed(self) -> None:
        """Raise UserError if the program of the engine is not on this machine."""
        if self.engine in ENGINES:
            if not all(map(_is_module, _MODULES[self.engine])):
                raise UserError(
                    f"{self.section}.engine is {self.engine}, which is not installed: pip install"
                    f" '{_PACKAGES[self.engine]}', or name the command of another environment"
                )
        elif shutil.which(shlex.split(self.engine)[0]) is None:
            raise UserError(f"{self.section}.engine: there is no program {self.name}")

    def command(self, host: str, port: int, gpus: int) -> list[str]:
        """Return the command line of one replica, which gets its GPUs by the environment."""
        address = ["--host", host, "--port", str(port)]
        options = [*address, *self._options(gpus), *self.replicas.arguments]
        if self.engine == "vllm":
            program = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", self.model]
        elif self.engine == "sglang":
            program = [sys.executable, "-m", "sglang.launch_server", "--model-path", self.model]
        elif self.engine == "transformers":
            program = [sys.executable, "-c", _TRANSFORMERS, "serve", self.model]
        else:
            values = dict(zip(_PLACES, (self.model, host, str(port), str(gpus)), strict=True))
            words = [_filled(word, values) for word in shlex.split(self.engine)]
            return [*words, *self.replicas.arguments]
        return [*program, *options]

    def _options(self, gpus: int) -> list[str]:
        """Return what a packaged engine is told besides its model and address."""
        memory = self.replicas.gpu_memory
        if self.engine == "vllm":
            options = ["--served-model-name", self.model, "--tensor-parallel-size", str(gpus or 1)]
            share = "--gpu-memory-utilization"
        elif self.engine == "sglang":
            options = ["--served-model-name", self.model, "--tp-size", str(gpus or 1)]
            share = "--mem-fraction-static"
        else:
            return [] if gpus else ["--device", "cpu"]
        return options if memory is None else [*options, share, f"{memory:g}"]


def key_variables(key: str) -> dict[str, str]:
    """Return the environment by which servers learn the key that they require."""
    return dict.fromkeys(_KEYS, key)


def model_servers(sections: Mapping[str, StageConfig]) -> dict[ModelServer, list[str]]:
    """Return what serves the models of stages with engines, and the stages that ask each.

    Raises:
        UserError: as `ModelServer.of`.
    """
    servers: dict[ModelServer, list[str]] = {}
    for name, section in sections.items():
        servers.setdefault(ModelServer.of(name, section), []).append(name)
    return servers


def replica_counts(servers: Sequence[ModelServer], gpus: int) -> list[int]:
    """Return how many replicas of each server there is room for: as many of each, by turns.

    Args:
        gpus: of all machines.

    Raises:
        UserError: there is no room for the fewest.
    """
    sizes = [server.gpus(gpus) for server in servers]
    counts = [server.replicas.min for server in servers]
    left = gpus - sum(size * count for size, count in zip(sizes, counts, strict=True))
    if left < 0:
        first = servers[0]
        raise UserError(
            f"{first.section}.replicas: {sum(counts)} of {first.name} need {gpus - left} GPUs, but"
            f" there are {gpus}"
        )
    limits = [server.limit(size, gpus) for server, size in zip(servers, sizes, strict=True)]
    while True:
        growing: list[int] = []
        for number, size in enumerate(sizes):
            if size <= left and counts[number] < limits[number]:
                growing.append(number)
        if not growing:
            return counts
        smallest = min(growing, key=counts.__getitem__)
        counts[smallest] += 1
        left -= sizes[smallest]


def _check_command(section: str, command: str) -> None:
    """Raise UserError if a command of the user's own cannot be one of a server."""
    missing = [place for place in _NEEDED if place not in command]
    if missing:
        raise UserError(
            f"{section}.engine is {command!r}: expected {', '.join(ENGINES)}, or a command with"
            f" {' and '.join(missing)}, such as 'llama-server -hf {{model}} --host {{host}} --port"
            " {port}'"
        )
    with suppress(ValueError):
        shlex.split(command)
        return
    raise UserError(f"{section}.engine is {command!r}: a quotation mark has no other end")


def _filled(word: str, values: Mapping[str, str]) -> str:
    """Return a word of a command with values in place of their names."""
    for place, value in values.items():
        word = word.replace(place, value)
    return word


def _is_module(name: str) -> bool:
    with suppress(ModuleNotFoundError):  # of its package
        return importlib.util.find_spec(name) is not None
    return False
