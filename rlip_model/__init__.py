"""RLIPv2 in pure PyTorch: ParSeD, ParSeDA and the R-Tagger. Importing it registers them with AutoModel."""

from rlip_model.config import ParSeDAConfig, ParSeDConfig, RTaggerConfig
from rlip_model.model import ParSeD, ParSeDA, RTagger

__all__ = ["ParSeD", "ParSeDA", "ParSeDAConfig", "ParSeDConfig", "RTagger", "RTaggerConfig"]
