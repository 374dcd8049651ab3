"""RLIPv2 in pure PyTorch: ParSeD, ParSeDA and the R-Tagger. Importing one of them registers all with AutoModel."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlip_model.config import ParSeDAConfig as ParSeDAConfig
    from rlip_model.config import ParSeDConfig as ParSeDConfig
    from rlip_model.config import RTaggerConfig as RTaggerConfig
    from rlip_model.model import ParSeD as ParSeD
    from rlip_model.model import ParSeDA as ParSeDA
    from rlip_model.model import RTagger as RTagger

__all__ = ["ParSeD", "ParSeDA", "ParSeDAConfig", "ParSeDConfig", "RTagger", "RTaggerConfig"]


def __getattr__(name: str) -> Any:
    """Import a network when it is used: the benchmarks in `rlip_model.evaluation` need no PyTorch."""
    if name in __all__:
        return getattr(import_module("rlip_model.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
