"""RLIPv2 in pure PyTorch: ParSeD, ParSeDA and the R-Tagger. Importing the package registers them
with AutoModel.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlip_model.config import ParSeDAConfig as ParSeDAConfig
    from rlip_model.config import ParSeDConfig as ParSeDConfig
    from rlip_model.config import RTaggerConfig as RTaggerConfig
    from rlip_model.model import ParSeD as ParSeD
    from rlip_model.model import ParSeDA as ParSeDA
    from rlip_model.model import RTagger as RTagger

__all__ = ["ParSeD", "ParSeDA", "ParSeDAConfig", "ParSeDConfig", "RTagger", "RTaggerConfig"]
_AUTO = "transformers.models.auto.configuration_auto"
_CONFIGS = {
    "rlip_parsed": "ParSeDConfig",
    "rlip_parseda": "ParSeDAConfig",
    "rlip_tagger": "RTaggerConfig",
}


def __getattr__(name: str) -> Any:
    """Import a network when it is used: the benchmarks in `rlip_model.evaluation` need no
    PyTorch.
    """
    if name in __all__:
        return getattr(import_module("rlip_model.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Later:
    """Stands for a configuration in AutoConfig until one is read; then the networks are imported,
    which registers all.

    Importing them here would take seconds, and while transformers is being imported it would fail.
    """

    @classmethod
    def from_dict(cls, values: dict[str, Any], **options: Any) -> Any:
        return getattr(import_module("rlip_model.model"), cls.__name__).from_dict(values, **options)


def _register(auto: Any) -> None:
    for kind, name in _CONFIGS.items():
        auto.AutoConfig.register(kind, type(name, (_Later,), {}), exist_ok=True)


class _Registration:
    """Registers the configurations when transformers imports its AutoConfig."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            vars(spec.loader)["exec_module"] = execute_and_register
        return spec


if _AUTO in sys.modules:
    _register(sys.modules[_AUTO])
else:
    sys.meta_path.insert(0, _Registration())
