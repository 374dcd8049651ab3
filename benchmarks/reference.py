"""RLIPv2's procedure on sgpipe's modules, for benchmarks: the same answers, its own way there.

Its image passes the network once per group of 100 pairs, its texts pass the text encoder for every
image, all padded to the longest; deformable attention is one `grid_sample` per level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from transformers import PreTrainedTokenizerBase, RobertaModel

from rlip_model import attention, encoder
from rlip_model.attention import sample, sample_by_grid
from rlip_model.backbone import FoldedBottleneck, ResNet50
from rlip_model.encoder import TOKENS_PER_PART
from rlip_model.model import RTagger
from rlip_model.queries import GivenPairs
from rlip_model.text import LabelFeatures


class PaddedTextEncoder(nn.Module):
    """The text encoder of a network as the reference calls it: the same parameters, all tokens in
    all layers.
    """

    def __init__(self, tagger: RTagger) -> None:
        super().__init__()
        with torch.device("meta"):
            self.roberta = RobertaModel(tagger.config.text_config)
        state = tagger.text_encoder.roberta.state_dict(keep_vars=True)
        self.roberta.load_state_dict(state, assign=True, strict=True)
        for name, buffer in tagger.text_encoder.roberta.embeddings.named_buffers():
            setattr(self.roberta.embeddings, name, buffer)
        self.train(tagger.training)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`[labels, tokens]` to `[labels, dim]`."""
        return self.roberta(input_ids=input_ids, attention_mask=attention_mask).pooler_output

    def encode(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
        tokens = tokenizer(list(texts), padding=True, return_tensors="pt").to(self.roberta.device)
        return self(tokens["input_ids"], tokens["attention_mask"])


@contextmanager
def as_the_reference() -> Iterator[None]:
    """In here, backbones, encoder layers and deformable attention work as the reference's do."""
    forward = ResNet50.forward
    folded = FoldedBottleneck.forward
    attention.sample = sample_by_grid
    encoder.TOKENS_PER_PART = 10**9
    ResNet50.forward, FoldedBottleneck.forward = _channels_first, Bottleneck.forward
    try:
        yield
    finally:
        attention.sample = sample
        encoder.TOKENS_PER_PART = TOKENS_PER_PART
        ResNet50.forward = forward
        FoldedBottleneck.forward = folded


def _channels_first(backbone: ResNet50, images: Tensor) -> list[Tensor]:
    return backbone.stages(backbone.relu(backbone.bn1(backbone.conv1(images))))


@torch.no_grad()
def score_groups(
    tagger: RTagger,
    text_encoder: PaddedTextEncoder,
    pixels: Tensor,
    objects: Sequence[str],
    predicates: Sequence[str],
    groups: Sequence[GivenPairs],
) -> Tensor:
    """`[groups, slots, predicates]`: as `RTagger.score_pairs`, of one image `[1, 3, height,
    width]`.

    The reference repeats the image in a batch of up to 16; one after another they take the same
    time, not the memory.
    """
    features = text_encoder.encode([*objects, *predicates], tagger.tokenizer)
    labels = LabelFeatures(features.unsqueeze(0), len(objects))
    with as_the_reference():
        outputs = [
            tagger(pixels, None, labels, [group]).final.relation_logits.sigmoid()
            for group in groups
        ]
    return torch.cat(outputs)
