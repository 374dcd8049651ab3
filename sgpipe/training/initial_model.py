"""Create the network that a training starts from: a copy of an existing one, an official
checkpoint, or a new one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedTokenizerBase, RobertaModel

from rlip_model.checkpoint import convert, load_roberta, roberta_sizes, save_atomically
from rlip_model.config import RLIPConfig
from rlip_model.model import ParSeD, ParSeDA, RLIPModel, RTagger, build_model
from rlip_model.noise import initial_seed
from rlip_model.presets import KINDS, preset, tiny_sizes
from rlip_model.pretrained import CheckpointError
from rlip_model.prune_queries import prune_queries
from rlip_model.text import NO_OBJECTS, TokenizerError, build_tokenizer, load_tokenizer, spread
from sgpipe.errors import UserError, existing_file
from sgpipe.files.model_cache import local_model
from sgpipe.recipe import MINIWORLD, PackagedModel, named_model
from sgpipe.training.recipe import Kind, ModelConfig
from sgpipe.utils.config_file import did_you_mean, merged

CLASSES: dict[Kind, type[RLIPModel]] = {
    "tagger": RTagger,
    "parseda": ParSeDA,
    "parsed": ParSeD,
    "rlipv1": ParSeD,
}

_Settings: TypeAlias = dict[str, Any]  # of a network, by name
_PACKAGED: dict[Kind, PackagedModel] = {"tagger": "tagger", "parseda": "parseda"}
# Starts of the names of parameters.
_FUSION = ("encoder.fusion_layers.", "encoder.label_layers.", "late_fusion.")
_COMMON_WORDS = (
    "a an the on in at of to with by for from near behind under over next front above below beside"
)


def make_initial_model(
    config: ModelConfig,
    texts: Sequence[str],
    seed: int,
    folder: Path,
    image_sides: tuple[int, int] | None = None,
) -> None:
    """Save the network in `folder`, for `from_pretrained`; config.json has `image_sides`, those of
    validation images.

    Args:
        texts: the names in the data; a new network without RoBERTa gets a tokenizer that knows
            their words.

    Raises:
        UserError: the network does not exist or is of another kind, or a setting is invalid.
        EngineError: no store.
    """
    try:
        network = _existing(config, folder, seed) if config.init else _new(config, texts, seed)
        network.config.image_sides = image_sides and list(image_sides)
        save_atomically(network.eval(), folder)
    except (CheckpointError, TokenizerError, ValueError, TypeError) as reason:
        raise UserError(f"model: {reason}") from None


def _existing(config: ModelConfig, folder: Path, seed: int) -> RLIPModel:
    if config.init == MINIWORLD and config.kind not in _PACKAGED:
        raise CheckpointError(
            f"init: the packaged models are a tagger and a parseda, not a {config.kind}"
        )
    name = named_model(str(config.init), _PACKAGED.get(config.kind))
    if Path(name).suffix in (".pth", ".pt"):
        converted = folder.with_name(f"{folder.name}-converted")
        if not (converted / "config.json").exists():
            convert(
                existing_file(Path(name)),
                converted,
                local_model(config.text_encoder or "roberta-base"),
            )
        name = str(converted)
    else:
        name = local_model(name)
    return _reconfigured(CLASSES[config.kind].from_pretrained(name), config.config, seed)


def _reconfigured(network: RLIPModel, changes: _Settings, seed: int) -> RLIPModel:
    """Return it with changed settings; parameters of another `fusion` are random. Raises
    CheckpointError.
    """
    queries = changes.get("num_queries", network.config.num_queries)
    if queries != network.config.num_queries:
        network = prune_queries(network, queries)
    kind = type(network.config)
    config = kind.from_dict(merged(network.config.to_dict(), _checked(kind, changes)))
    changed = _random(config, seed)
    parameters = network.state_dict()
    if config.fusion != network.config.fusion:
        parameters = {
            name: value for name, value in parameters.items() if not name.startswith(_FUSION)
        }
        parameters |= {
            name: value for name, value in changed.state_dict().items() if name.startswith(_FUSION)
        }
    try:
        changed.load_state_dict(parameters)
    except RuntimeError:
        raise CheckpointError(
            f"the parameters of the network do not fit the settings {changes}"
        ) from None
    if network.tokenizer is not None:
        changed.set_tokenizer(network.tokenizer)
    return changed


def _new(config: ModelConfig, texts: Sequence[str], seed: int) -> RLIPModel:
    roberta: RobertaModel | None = None
    changes = _checked(KINDS[config.kind], config.config)
    tokenizer: PreTrainedTokenizerBase
    if config.text_encoder is None:
        tokenizer = build_tokenizer([*texts, NO_OBJECTS, _COMMON_WORDS])
    else:
        encoder = local_model(config.text_encoder)
        tokenizer = load_tokenizer(encoder)
        roberta = load_roberta(encoder)
        changes["text_config"] = roberta_sizes(roberta.config)
    if config.backbone == "miniature":
        sizes = tiny_sizes(len(tokenizer))
        settings = KINDS[config.kind](
            **merged({**sizes, "text_config": sizes["text_config"].to_dict()}, changes)
        )
    elif roberta is None:
        needs = (
            f"a new network of size {config.backbone} needs a RoBERTa (model.text_encoder: folder"
            " or hub id)"
        )
        hint = (
            "better start from a detector: `sgpipe convert DETECTOR --as ... --out start`, then"
            " --init start"
        )
        raise CheckpointError(f"{needs}; {hint}")
    else:
        settings = preset(config.kind, config.backbone, **changes)
    network = _random(settings, seed)
    network.set_tokenizer(tokenizer)
    if roberta is None:
        spread(network.text_encoder, tokenizer, list(dict.fromkeys([*texts, NO_OBJECTS])))
    else:
        network.text_encoder.roberta.load_state_dict(roberta.state_dict())
    return network


def _random(settings: RLIPConfig, seed: int) -> RLIPModel:
    """Return a network initialised from the seed; torch's global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(initial_seed(seed))
        return build_model(settings)


def _checked(kind: type[RLIPConfig], changes: _Settings) -> _Settings:
    known = kind().to_dict().keys()
    unknown = sorted(changes.keys() - known)
    if unknown:
        raise CheckpointError(
            f"a {kind.__name__} has no setting {unknown[0]!r}{did_you_mean(unknown[0], known)}"
        )
    return dict(changes)
