"""Weights of the large reference folders: `offset + scale * r`, r from RandomState(crc32(official
key)).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

_ALIAS = re.compile(r"^transformer\.(ho|verb)_decoder\.(sub|obj)_bbox_embed\.(\d+)\.(.*)$")
_EMBEDDING = re.compile(
    r"(word_embeddings|position_embeddings|token_type_embeddings|tgt_embed|query_embed|verb_tgt|verb_query_embed)"
    r"\.weight$"
)
_INTEGER = re.compile(r"(relative_position_index|position_ids|num_batches_tracked)$")


def seeded_state(shapes: Mapping[str, Sequence[int]], decoder_layers: int) -> dict[str, Tensor]:
    """Every floating-point parameter of a key list, by name; second names get the value of the
    first.
    """
    floats = {key: tuple(shape) for key, shape in shapes.items() if not _INTEGER.search(key)}
    return {
        key: seeded_value(_first_name(key, decoder_layers), shape) for key, shape in floats.items()
    }


def seeded_value(key: str, shape: tuple[int, ...]) -> Tensor:
    normal = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("running_var"):
        return torch.from_numpy((1 + 0.2 * np.abs(normal)).astype(np.float32))
    offset, scale = _offset_and_scale(key, shape)
    return torch.from_numpy((offset + scale * normal).astype(np.float32))


def _first_name(key: str, decoder_layers: int) -> str:
    alias = _ALIAS.match(key)
    if alias is None:
        return key
    decoder, role, index, rest = alias.groups()
    return f"{role}_bbox_embed.{int(index) + (decoder_layers if decoder == 'verb' else 0)}.{rest}"


def _offset_and_scale(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    by_name = _by_name(key, shape)
    if by_name is not None:
        return by_name
    inputs = math.prod(shape[1:])
    if len(shape) == 4 and ".body." in key and "patch_embed" not in key:
        return 0.0, math.sqrt(2 / inputs)
    if len(shape) == 1 and key.endswith(".weight"):
        return (0.4, 0.05) if key.endswith(".bn3.weight") else (1.0, 0.1)
    return 0.0, 0.1 if len(shape) == 1 else 1 / math.sqrt(inputs)


def _by_name(key: str, shape: tuple[int, ...]) -> tuple[float, float] | None:
    leaf = key.rsplit(".", 1)[-1]
    inputs = math.prod(shape[1:])
    named = {
        "running_mean": (0.0, 0.1), "gamma_v": (0.25, 0.1), "gamma_l": (0.25, 0.1), "bias_obj_a": (0.0, 0.1),
        "bias_pred_a": (0.0, 0.1), "relative_position_bias_table": (0.0, 0.2), "level_embed": (0.0, 0.5),
    }  # fmt: skip
    patterns = (
        (r"sampling_offsets\.bias$", 1.5), (r"sampling_offsets\.weight$", 0.5 / math.sqrt(inputs)),
        (r"(sub|obj)_bbox_embed\.\d+\.layers\.2\.weight$", 0.7 / math.sqrt(inputs)),
        (r"(sub|obj)_bbox_embed\.\d+\.layers\.2\.bias$", 0.3),
        (r"^refpoint_embed\.weight$", 1.0), (r"^projection_text\.weight$", 4 / math.sqrt(inputs)),
    )  # fmt: skip
    if leaf in named:
        return named[leaf]
    for pattern, scale in patterns:
        if re.search(pattern, key):
            return 0.0, scale
    is_embedding = len(shape) == 2 and "verb_tgt_generator" not in key and _EMBEDDING.search(key)
    return (0.0, 0.5) if is_embedding else None
