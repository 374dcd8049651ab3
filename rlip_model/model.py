"""The networks: ParSeD (learned queries), ParSeDA (anchors), R-Tagger (given pairs). Only their
queries differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase

from rlip_model.backbone import ImageEncoder, ImageFeatures, ResNet50
from rlip_model.config import ParSeDAConfig, ParSeDConfig, RLIPConfig, RTaggerConfig
from rlip_model.decoder import (
    AnchorPositions,
    DecodedEntities,
    DecodedRelations,
    EntityDecoder,
    RelationDecoder,
)
from rlip_model.dense_head import DenseHead, DenseOutput
from rlip_model.encoder import ALIFEncoder, DeformableEncoder, Memory
from rlip_model.fusion import Gate, LabelResizer, initialise_by_xavier
from rlip_model.gpu_memory import send
from rlip_model.heads import LabelScorer, LayerOutput, RelationOutput
from rlip_model.late_fusion import LateFusion, ReadOutStates
from rlip_model.noise import Noise, TorchNoise
from rlip_model.pretrained import RLIPPreTrainedModel
from rlip_model.queries import (
    AnchorQueries,
    EntityQueries,
    GivenPairs,
    LearnedQueries,
    PairQueries,
    ProposalQueries,
)
from rlip_model.text import LabelCache, LabelEncoder, LabelFeatures, masked_by_sum

CACHED_LABELS = 20_000


class RLIPModel(RLIPPreTrainedModel):
    """Image encoder, label encoder, fusion (`config.fusion`), two decoders and heads; subclasses
    define the queries.

    The forward pass is `encode_image` and `encode_labels`, then `fuse`, `decode` and `read_out`.
    """

    queries: LearnedQueries | AnchorQueries | ProposalQueries | PairQueries
    anchored: ClassVar[bool] = False

    def __init__(self, config: RLIPConfig) -> None:
        super().__init__(config)
        self.image_encoder = ImageEncoder(config)
        self.text_encoder = LabelEncoder(config.text_config)
        self.encoder = ALIFEncoder(config) if config.fusion == "alif" else DeformableEncoder(config)
        self.label_resizer = LabelResizer(
            config.text_config.hidden_size, config.hidden_dim, config.fusion_dropout
        )
        self.entity_decoder = EntityDecoder(config, self.anchored)
        self.relation_decoder = RelationDecoder(config, self.anchored)
        self.late_fusion = LateFusion(config) if config.fusion == "after_decoding" else None
        self.scorer = LabelScorer(config.hidden_dim)
        self.queries = self._make_queries(config)
        self.dense_head = DenseHead(config) if config.dense_head else None
        self._label_cache: LabelCache | None = None
        self.post_init()
        self._initialise_as_published()

    def _initialise_as_published(self) -> None:
        """Xavier, as in all of the published transformer, for the layers that others start in
        another way.

        It comes last, so that a seed gives all other parameters the values that it gave in earlier
        versions.
        """
        for module in self.modules():
            if isinstance(module, AnchorPositions | Gate):
                initialise_by_xavier(module)

    def _make_queries(
        self, config: RLIPConfig
    ) -> LearnedQueries | AnchorQueries | ProposalQueries | PairQueries:
        raise TypeError(f"{type(self).__name__} has no queries; use ParSeD, ParSeDA or RTagger")

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts for inference, `[texts, label_dim]`, without gradient. Encoded texts are
        cached.

        Raises:
            ValueError: the network has no tokenizer.
        """
        if self._label_cache is None:
            if self.tokenizer is None:
                raise ValueError("this network has no tokenizer; set one with set_tokenizer")
            self._label_cache = LabelCache(self.text_encoder, self.tokenizer, CACHED_LABELS)
        return self._label_cache.encode(texts)

    def encode_labels(
        self, object_texts: Sequence[str], relation_texts: Sequence[str]
    ) -> LabelFeatures:
        """Encode labels for inference: unmasked and shared by the whole batch. "no objects" is the
        last object text.
        """
        features = self.encode_texts([*object_texts, *relation_texts])
        return LabelFeatures(features.unsqueeze(0), len(object_texts))

    def encode_tokens(
        self, input_ids: Tensor, attention_mask: Tensor, num_objects: int, mask_by_sum: bool = False
    ) -> LabelFeatures:
        """Encode labels for training, with gradient, from tokenized texts `[labels, tokens]`.

        Args:
            mask_by_sum: mask labels as in the published training (see `masked_by_sum`).
        """
        features = self.text_encoder(input_ids, attention_mask).unsqueeze(0)
        return LabelFeatures(
            features, num_objects, masked_by_sum(features) if mask_by_sum else None
        )

    def encode_image(self, pixel_values: Tensor, padding: Tensor | None = None) -> ImageFeatures:
        """Encode images; the result does not depend on the labels.

        Args:
            pixel_values: `[batch, 3, height, width]`, normalised by ImageNet's mean and standard
                deviation.
            padding: `[batch, height, width]`, True where padded (right and bottom); None for no
                padding.
        """
        if padding is None:
            batch, _, height, width = pixel_values.shape
            padding = torch.zeros(
                batch, height, width, dtype=torch.bool, device=pixel_values.device
            )
        return self.image_encoder(pixel_values, padding)

    def fuse(self, image: ImageFeatures, labels: LabelFeatures) -> Memory:
        """Run the encoder over the image tokens and the labels."""
        tokens, states = self.encoder(image, labels)
        resized = self.label_resizer(states).expand(self.config.decoder_layers, -1, -1, -1)
        ignored = labels.ignored(tokens.shape[0])
        return Memory(
            tokens,
            image.padding,
            image.valid_ratios,
            image.shapes,
            resized,
            labels.num_objects,
            ignored,
        )

    def decode(
        self, queries: EntityQueries, memory: Memory
    ) -> tuple[DecodedEntities, DecodedRelations]:
        """Decode subjects and objects, then their relations."""
        entities = self.entity_decoder(queries, memory)
        relation_queries = self.queries.relations(entities.hidden[-1], queries.padding)
        return entities, self.relation_decoder(relation_queries, entities.boxes[-1], memory)

    def fuse_decoded(
        self, entities: DecodedEntities, relations: DecodedRelations, memory: Memory
    ) -> ReadOutStates:
        """Return the states and labels that the heads compare: those of the decoders, or of the
        fusion after decoding.
        """
        if self.late_fusion is not None:
            return self.late_fusion(entities, relations, memory)
        objects, verbs = memory.labels.tensor_split([memory.num_objects], dim=2)
        return ReadOutStates(entities.hidden, relations.hidden, objects, verbs)

    def read_out(
        self, entities: DecodedEntities, relations: DecodedRelations, memory: Memory
    ) -> RelationOutput:
        """Class logits and boxes of every decoder layer."""
        states = self.fuse_decoded(entities, relations, memory)
        layers = []
        for layer, boxes in enumerate(entities.boxes):
            if self.late_fusion is not None:
                boxes = self.entity_decoder.boxes(
                    layer, states.entities[layer], entities.references[layer]
                )
            layers.append(self._read_layer(states, layer, boxes))
        return RelationOutput(layers[-1], tuple(layers[:-1]))

    def _read_layer(self, states: ReadOutStates, layer: int, boxes: Tensor) -> LayerOutput:
        objects = self.scorer.project(states.object_labels[layer])
        verbs = self.scorer.project(states.relation_labels[layer])
        subject_hidden, object_hidden = states.entities[layer].chunk(2, dim=1)
        subject_boxes, object_boxes = boxes.chunk(2, dim=1)
        return LayerOutput(
            self.scorer.entities(subject_hidden, objects) if self.config.subject_class else None,
            self.scorer.entities(object_hidden, objects),
            self.scorer.relations(states.relations[layer], verbs),
            subject_boxes,
            object_boxes,
        )

    def freeze(self) -> None:
        """Freeze the parameters that the published training froze. Loading makes every parameter
        trainable again.
        """
        self.image_encoder.backbone.freeze()

    def prepare_inference(self, dtype: torch.dtype) -> None:
        """Convert once what every forward pass would convert under autocast in this dtype, with the
        same results.

        Training and saving are then no longer possible. The text encoder, whose features are
        cached, stays as it is.
        """
        if isinstance(self.image_encoder.backbone, ResNet50):
            self.image_encoder.backbone.fold()
        if dtype == torch.float32:
            return
        for name, module in self.named_modules():
            is_converted = isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention)
            if is_converted and not name.startswith(("text_encoder.", "dense_head.")):
                module.to(dtype)

    def set_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().set_tokenizer(tokenizer)
        self._label_cache = None

    def train(self, mode: bool = True) -> RLIPModel:
        self._label_cache = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> RLIPModel:
        self._label_cache = None
        return super()._apply(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> _IncompatibleKeys:
        self._label_cache = None
        return super().load_state_dict(*args, **kwargs)


class TripletDetector(RLIPModel):
    """Detects triplets with learned queries; the common base of ParSeD and ParSeDA."""

    queries: LearnedQueries | AnchorQueries | ProposalQueries

    def forward(
        self, pixel_values: Tensor, padding: Tensor | None, labels: LabelFeatures
    ) -> RelationOutput:
        """Detect triplets in a batch of images; see `encode_image` for the first two arguments."""
        return self.detect(self.encode_image(pixel_values, padding), labels)

    def detect(
        self, image: ImageFeatures, labels: LabelFeatures, boxes: DenseOutput | None = None
    ) -> RelationOutput:
        """Detect triplets in encoded images.

        Args:
            boxes: the output of `detect_boxes`, if it is there already.
        """
        memory = self.fuse(image, labels)
        if isinstance(self.queries, ProposalQueries):
            boxes = boxes or self.detect_boxes(image, labels)
            queries = self.queries.entities(boxes.proposals(self.queries.proposals))
        else:
            queries = self.queries.entities(image.tokens.shape[0])
        entities, relations = self.decode(queries, memory)
        return self.read_out(entities, relations, memory)

    def detect_boxes(self, image: ImageFeatures, labels: LabelFeatures) -> DenseOutput:
        """Detect boxes in encoded images, without queries. The last object text, "no objects", is
        not a class.

        Raises:
            ValueError: the network has no dense head.
        """
        if self.dense_head is None:
            raise ValueError(
                "this network has no dense head; train one with model.config.dense_head: true"
            )
        objects = labels.features[:, : labels.num_objects - 1]
        return self.dense_head(image, self.label_resizer(objects))


class ParSeD(TripletDetector):
    """RLIPv2-ParSeD: queries are learned positions, from which their initial reference points are
    predicted.
    """

    config_class = ParSeDConfig
    title = "RLIPv2-ParSeD"
    queries: LearnedQueries

    def _make_queries(self, config: RLIPConfig) -> LearnedQueries:
        return LearnedQueries(config)


class ParSeDA(TripletDetector):
    """RLIPv2-ParSeDA: queries are anchor boxes."""

    config_class = ParSeDAConfig
    title = "RLIPv2-ParSeDA"
    anchored = True
    queries: AnchorQueries | ProposalQueries

    def _make_queries(self, config: RLIPConfig) -> AnchorQueries | ProposalQueries:
        return ProposalQueries(config) if config.proposals else AnchorQueries(config)


class RTagger(RLIPModel):
    """The R-Tagger: scores relation texts for given pairs of boxes (RLIPv2, section 3.3)."""

    config_class = RTaggerConfig
    title = "R-Tagger"
    queries: PairQueries

    def _make_queries(self, config: RLIPConfig) -> PairQueries:
        if not isinstance(config, RTaggerConfig):
            raise TypeError(f"an R-Tagger needs an RTaggerConfig, not {type(config).__name__}")
        return PairQueries(config)

    def forward(
        self,
        pixel_values: Tensor,
        padding: Tensor | None,
        labels: LabelFeatures,
        pairs: Sequence[GivenPairs],
        noise: Noise | None = None,
    ) -> RelationOutput:
        """Score the given pairs of each image, in `num_pairs` slots; in training, with noise.

        The output of unused slots is meaningless, but never NaN.
        """
        memory = self.fuse(self.encode_image(pixel_values, padding), labels)
        if self.training and noise is None:
            noise = TorchNoise()
        queries = self.queries.entities(pairs, self.object_labels(memory), noise=noise)
        entities, relations = self.decode(queries, memory)
        return self.read_out(entities, relations, memory)

    def object_labels(self, memory: Memory) -> Tensor:
        """`[batch, objects, dim]`: the features that the content of the queries is taken from."""
        return memory.labels[-1, :, : memory.num_objects]

    @torch.no_grad()
    def score_pairs(
        self, memory: Memory, groups: Sequence[GivenPairs], owners: Sequence[int] | None = None
    ) -> Tensor:
        """Probabilities `[groups, pairs, relations]` of the relation labels for pairs of one image,
        or of several.

        Pairs attend to the pairs of their own group only. Rows beyond the pairs of a group are 0;
        what is there for relations that pad the list of an image (`pad_labels`) means nothing.

        Args:
            memory: of one image (`fuse` with a batch of 1), shared by all groups; or of several.
            groups: at most `config.num_pairs` pairs each.
            owners: the image of each group in the batch; None if there is one.
        """
        slots = max((len(group) for group in groups), default=0)
        relations = memory.labels.shape[2] - memory.num_objects
        if slots == 0:
            return memory.tokens.new_zeros((len(groups), 0, relations), dtype=torch.float32)
        if owners is not None:
            memory = memory.of_groups(owners)
        queries = self.queries.entities(groups, self.object_labels(memory), slots=slots)
        states = self.fuse_decoded(*self.decode(queries, memory), memory)
        projected = self.scorer.project(states.relation_labels[-1])
        scores = self.scorer.relations(states.relations[-1], projected).sigmoid()
        unused = torch.arange(slots) >= torch.tensor([len(group) for group in groups]).unsqueeze(1)
        return scores.masked_fill(send(unused, scores.device).unsqueeze(-1), 0.0)


def build_model(config: RLIPConfig) -> RLIPModel:
    """Build the network of a configuration, with random parameters."""
    if isinstance(config, RTaggerConfig):
        return RTagger(config)
    return ParSeDA(config) if isinstance(config, ParSeDAConfig) else ParSeD(config)


def register() -> None:
    """Register the networks with AutoConfig and AutoModel."""
    for config, model in (
        (ParSeDConfig, ParSeD),
        (ParSeDAConfig, ParSeDA),
        (RTaggerConfig, RTagger),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)


register()
