"""Configurations of the networks: sizes, fusion, queries, noise. Stored as config.json next to the
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from transformers import PretrainedConfig, RobertaConfig

Backbone = Literal["resnet50", "swin", "convolutional"]
Fusion = Literal["alif", "after_decoding", "none"]
VerbQuery = Literal["vanilla", "MBF", "vanilla_MBF"]
Gating = Literal[
    "GLIP",
    "VXAc",
    "Vtanh",
    "Etanh",
    "XGating",
    "Stanh",
    "SXAc",
    "SDFtanh",
    "SDFXAc",
    "SFtanh",
    "SXAcLN",
    "SDFXAcLN",
    "SOtanh",
    "SDFOXAcLN",
    "MBF",
]

SWIN_STAGES = 4
CHANNELS_PER_NORM_GROUP = 8  # of the convolutional backbone
_CHOICES = {
    "backbone": get_args(Backbone),
    "fusion": get_args(Fusion),
    "gating": get_args(Gating),
    "verb_query": get_args(VerbQuery),
}
_COUNTS = [
    "swin_embed_dim",
    "swin_depths",
    "swin_heads",
    "swin_window",
    "conv_width",
    "hidden_dim",
    "num_heads",
    "feedforward_dim",
    "num_queries",
    "encoder_layers",
    "decoder_layers",
    "num_levels",
    "num_points",
    "fusion_interval",
    "fusion_dim",
    "fusion_heads",
]


class RLIPConfig(PretrainedConfig):
    """Settings common to all networks. Defaults: the paper's Swin-T model.

    Args:
        conv_width: channels of the stem of the convolutional backbone, a multiple of 8.
        hidden_dim: width of image tokens and queries.
        num_queries: number of subject and object queries together, twice the number of pairs.
        num_levels, num_points: feature levels of deformable attention, and sampling points per
        level.
        fusion: where labels and image are fused: in the image encoder (`alif`, RLIPv2), between the
            decoders and the read-out (`after_decoding`, RLIPv1), or only in the read-out's dot
            products (`none`).
        fusion_interval: encoder layers per vision-language fusion. This and the settings up to
            `gating` apply to ALIF only.
        fusion_last_level: fuse the coarsest level only; otherwise all image tokens.
        fusion_dim, fusion_heads, fusion_dropout: inner width, heads and attention dropout of a
        fusion block.
        gating: how the update of a fusion is scaled before it is added.
        verb_query: initial content of the relation queries.
        subject_class: classify subjects too, not only objects.
        dense_head: also detect boxes in the feature maps (see `rlip_model.dense_head`).
        proposals: ParSeDA only: number of boxes of the dense head whose pairs are the queries; 0:
            learned anchors.
        image_sides: short and maximum long side, in pixels, of the images that the network was
            validated on.
        drop_path: rate of the last Swin block; it grows linearly from 0 at the first.
        text_config: sizes of the RoBERTa label encoder (also used by the fusion's label layers).

    Raises:
        ValueError: a value is invalid, or sizes are inconsistent.
    """

    model_type = "rlip"

    def __init__(
        self,
        backbone: Backbone = "swin",
        swin_embed_dim: int = 96,
        swin_depths: Sequence[int] = (2, 2, 6, 2),
        swin_heads: Sequence[int] = (3, 6, 12, 24),
        swin_window: int = 7,
        conv_width: int = 24,
        drop_path: float = 0.2,
        hidden_dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        num_queries: int = 200,
        encoder_layers: int = 6,
        decoder_layers: int = 3,
        num_levels: int = 4,
        num_points: int = 4,
        dropout: float = 0.0,
        fusion: Fusion = "alif",
        fusion_interval: int = 2,
        fusion_last_level: bool = True,
        fusion_dim: int = 2048,
        fusion_heads: int = 8,
        fusion_dropout: float = 0.1,
        gating: Gating = "VXAc",
        verb_query: VerbQuery = "vanilla_MBF",
        subject_class: bool = True,
        dense_head: bool = False,
        proposals: int = 0,
        image_sides: Sequence[int] | None = None,
        text_config: RobertaConfig | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone
        self.swin_embed_dim = swin_embed_dim
        self.swin_depths = list(swin_depths)
        self.swin_heads = list(swin_heads)
        self.swin_window = swin_window
        self.conv_width = conv_width
        self.drop_path = drop_path
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.feedforward_dim = feedforward_dim
        self.num_queries = num_queries
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.num_levels = num_levels
        self.num_points = num_points
        self.dropout = dropout
        self.fusion = fusion
        self.fusion_interval = fusion_interval
        self.fusion_last_level = fusion_last_level
        self.fusion_dim = fusion_dim
        self.fusion_heads = fusion_heads
        self.fusion_dropout = fusion_dropout
        self.gating = gating
        self.verb_query = verb_query
        self.subject_class = subject_class
        self.dense_head = dense_head
        self.proposals = proposals
        self.image_sides = image_sides and list(image_sides)
        self.text_config = _roberta_config(text_config)
        self._check()
        super().__init__(**kwargs)

    @property
    def num_pairs(self) -> int:
        """Number of subject-object pairs."""
        return self.num_queries // 2

    @property
    def num_fusions(self) -> int:
        """Number of vision-language fusions in the encoder (ALIF)."""
        return -(-self.encoder_layers // self.fusion_interval)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "text_config": self.text_config.to_dict()}

    def _check(self) -> None:
        self._check_boxes()
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
        self._check_counts()
        self._check_widths()
        self._check_layers()

    def _check_counts(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            counts = value if isinstance(value, list) else [value]
            if not all(isinstance(count, int) and count > 0 for count in counts):
                raise ValueError(f"{name} is {value!r}, expected at least 1")
        for name in ("swin_depths", "swin_heads"):
            if len(getattr(self, name)) != SWIN_STAGES:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected one number for each of the"
                    f" {SWIN_STAGES} stages"
                )

    def _check_widths(self) -> None:
        if self.conv_width % CHANNELS_PER_NORM_GROUP:
            raise ValueError(
                f"conv_width {self.conv_width} must be a multiple of {CHANNELS_PER_NORM_GROUP}"
            )
        if (
            self.hidden_dim % 32
            or self.hidden_dim % self.num_heads
            or self.fusion_dim % self.fusion_heads
        ):
            raise ValueError(
                f"hidden_dim {self.hidden_dim} must be a multiple of 32 and of num_heads"
                f" {self.num_heads}, fusion_dim {self.fusion_dim} of fusion_heads"
                f" {self.fusion_heads}"
            )

    def _check_layers(self) -> None:
        if self.num_queries % 2:
            raise ValueError(
                f"num_queries {self.num_queries} must be even: one half are subjects, the other"
                " objects"
            )
        if self.fusion == "alif" and self.num_fusions != self.decoder_layers:
            raise ValueError(
                f"{self.encoder_layers} encoder layers fused every {self.fusion_interval} give"
                f" {self.num_fusions} label states, expected one for each of the"
                f" {self.decoder_layers} decoder layers"
            )

    def _check_boxes(self) -> None:
        if self.dense_head and isinstance(self, RTaggerConfig):
            raise ValueError("dense_head is for detectors: an R-Tagger gets its boxes")
        if not self.proposals:
            return
        if not isinstance(self, ParSeDAConfig):
            raise ValueError(
                f"proposals {self.proposals}: only ParSeDA takes its queries from boxes"
            )
        if not self.dense_head:
            raise ValueError(
                f"proposals {self.proposals} are boxes of the dense head; set dense_head: true"
            )
        if self.proposals * (self.proposals - 1) < self.num_pairs:
            raise ValueError(
                f"proposals {self.proposals} have too few pairs for num_queries {self.num_queries}"
            )


class ParSeDConfig(RLIPConfig):
    """RLIPv2-ParSeD: learned queries, from which reference points are predicted."""

    model_type = "rlip_parsed"

    # Without it, transformers 5 generates an __init__ that skips ours.
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class ParSeDAConfig(RLIPConfig):
    """RLIPv2-ParSeDA: learned queries are anchor boxes, refined layer by layer (DAB-DETR)."""

    model_type = "rlip_parseda"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class RTaggerConfig(RLIPConfig):
    """The R-Tagger: ParSeD with given pairs of boxes as queries.

    Args:
        box_noise: in training, boxes are perturbed by up to this share of their size.
        label_noise: in training, the probability that a label is replaced.
        label_noise_range: "labels" draws replacements from all labels but "no objects"; "batch", as
            in the reference implementation, from 0 to the number of images in the batch.
    """

    model_type = "rlip_tagger"

    def __init__(
        self,
        box_noise: float = 0.4,
        label_noise: float = 0.2,
        label_noise_range: Literal["labels", "batch"] = "labels",
        **kwargs: Any,
    ) -> None:
        self.box_noise = box_noise
        self.label_noise = label_noise
        self.label_noise_range = label_noise_range
        super().__init__(**kwargs)


def _roberta_config(config: RobertaConfig | dict[str, Any] | None) -> RobertaConfig:
    if config is None:
        return RobertaConfig(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    if isinstance(config, RobertaConfig):
        return config
    if not isinstance(config, dict):
        raise ValueError(f"text_config is {config!r}, expected the settings of a RoBERTa")
    return RobertaConfig(**{name: value for name, value in config.items() if name != "model_type"})
