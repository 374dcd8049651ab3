"""Encode label texts: tokenizers, the RoBERTa label encoder, and a cache of encoded labels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
)
from transformers import RobertaModel as Roberta
from transformers.models.roberta.modeling_roberta import RobertaLayer

from rlip_model.gpu_memory import send

NO_OBJECTS = "no objects"
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SMALLEST_VOCABULARY = 16
MOST_TEXTS = 128  # per batch
FEWEST_TEXTS = 16  # per thread; with fewer rows, matrix products round differently
SMALLEST_DEVIATION = 1e-3


@dataclass(frozen=True)
class LabelFeatures:
    """Encoded labels: objects ("no objects" last), then relations.

    features `[batch or 1, labels, label_dim]`; masked `[batch or 1, labels]`, True for labels that
    the label layers ignore, or None. Labels encoded for inference are never masked. absent `[batch,
    labels]`, True for what pads a shorter list of labels (`pad_labels`): nothing attends to it, so
    that it changes no result.
    """

    features: Tensor
    num_objects: int
    masked: Tensor | None = None
    absent: Tensor | None = None

    def ignored(self, batch: int) -> Tensor | None:
        """`[batch, labels]`, True for labels that are masked or absent; None if there are none."""
        masks = [mask.expand(batch, -1) for mask in (self.masked, self.absent) if mask is not None]
        return torch.stack(masks).any(0) if masks else None


def pad_labels(lists: Sequence[LabelFeatures]) -> LabelFeatures:
    """Return the label lists of several images, each of a batch of 1 and not masked, as a batch.

    Raises:
        ValueError: the lists have different numbers of objects.
    """
    if len(lists) == 1:
        return lists[0]
    numbers = {labels.num_objects for labels in lists}
    if len(numbers) != 1:
        raise ValueError(f"label lists with {sorted(numbers)} objects cannot be a batch")
    features = pad_sequence([labels.features[0] for labels in lists], batch_first=True)
    counts = torch.tensor([labels.features.shape[1] for labels in lists])
    absent = torch.arange(features.shape[1]) >= counts.unsqueeze(1)
    return LabelFeatures(
        features, numbers.pop(), absent=send(absent, features.device) if absent.any() else None
    )


def masked_by_sum(features: Tensor) -> Tensor:
    """Return the label mask of the published training: `[..., labels, dim]` to `[..., labels]`.

    It was meant for zero padding, but masks every label whose features do not have a positive sum.
    """
    return ~(features.sum(-1) > 0)


class PooledLayer(RobertaLayer):
    """The last layer of a RoBERTa of which only the pooler is used: it computes the first token
    only.
    """

    @classmethod
    def of(cls, layer: nn.Module, config: RobertaConfig) -> PooledLayer:
        """Build it with the parameters of `layer`."""
        with torch.device("meta"):
            pooled = cls(config)
        pooled.load_state_dict(layer.state_dict(keep_vars=True), assign=True)
        return pooled

    def forward(
        self, states: Tensor, mask: Tensor | None = None, *arguments: object, **options: object
    ) -> Tensor:
        """`[labels, tokens, dim]` to `[labels, 1, dim]`.

        Args:
            mask: `[labels, 1, tokens, tokens]`, as for `scaled_dot_product_attention`.
            arguments, options: further ones that transformers passes to every layer and only
            decoders use.
        """
        attention = self.attention.self
        first = states[:, :1]
        heads = (attention.num_attention_heads, -1)
        query = attention.query(first).unflatten(-1, heads).transpose(1, 2)
        key = attention.key(states).unflatten(-1, heads).transpose(1, 2)
        value = attention.value(states).unflatten(-1, heads).transpose(1, 2)
        mask = None if mask is None else mask[:, :, :1]
        dropout = attention.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        attended = self.attention.output(attended.transpose(1, 2).flatten(-2), first)
        output: Tensor = self.feed_forward_chunk(attended)
        return output


class LabelEncoder(nn.Module):
    """RoBERTa's pooled output for each label text."""

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__()
        self.roberta = Roberta(config)
        *_, last = self.roberta.encoder.layer
        self.roberta.encoder.layer[-1] = PooledLayer.of(last, config)
        self.first_position = (config.pad_token_id or 0) + 1

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode labels, grouped by length, so that no time is spent on padding.

        Args:
            input_ids: `[labels, tokens]`, padded at the right; on the CPU, so that the host does
                not wait for a GPU.
            attention_mask: `[labels, tokens]`, 1 for tokens.

        Returns:
            `[labels, dim]`.
        """
        lengths = attention_mask.sum(1).tolist()
        order = []
        pooled = []
        for length in sorted(set(lengths)):
            rows = [row for row, of_row in enumerate(lengths) if of_row == length]
            order += rows
            pooled.append(
                self.encode_equal_lengths(send(input_ids[rows, :length], self.roberta.device))
            )
        return torch.cat(pooled)[send(torch.tensor(order).argsort(), self.roberta.device)]

    def encode_equal_lengths(self, input_ids: Tensor) -> Tensor:
        """Encode labels `[labels, tokens]` without padding to `[labels, dim]`."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) + self.first_position
        output = self.roberta(
            input_ids=input_ids,
            position_ids=positions.expand_as(input_ids),
            token_type_ids=torch.zeros_like(input_ids),
        )
        return output.pooler_output


@torch.no_grad()
def spread(encoder: LabelEncoder, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Standardise the pooler of a new label encoder: over these texts, each feature has mean 0 and
    deviation 1.

    This holds before the activation. With random weights, all texts have nearly the same features,
    from which no network learns to distinguish labels.
    """
    outputs: list[Tensor] = []
    pooler = encoder.roberta.pooler
    assert pooler is not None
    dense = pooler.dense
    handle = dense.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    was_training = encoder.training
    encoder.eval()
    try:
        LabelCache(encoder, tokenizer, len(texts)).encode(texts)
    finally:
        handle.remove()
        encoder.train(was_training)
    features = torch.cat(outputs).unique(dim=0)  # batches are padded with repeats
    deviation = features.std(0, correction=0).clamp(min=SMALLEST_DEVIATION)
    dense.weight.div_(deviation.unsqueeze(1))
    dense.bias.sub_(features.mean(0)).div_(deviation)


class LabelCache:
    """Caches the features of label texts; evicts the least recently used.

    Texts of equal length are encoded together. The features of a text must not depend on the other
    texts of its batch. One thread of a CPU rounds alike if the batch is not too small, so small
    batches are padded with repeats. Several threads and GPUs divide matrix products by their size,
    so all of their batches have one size.
    """

    def __init__(
        self, encoder: LabelEncoder, tokenizer: PreTrainedTokenizerBase, capacity: int
    ) -> None:
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.capacity = capacity
        self.features: OrderedDict[str, Tensor] = OrderedDict()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """`[texts, dim]`, in the precision of the encoder even under autocast; equal texts are
        encoded once.
        """
        features = {text: self.features[text] for text in texts if text in self.features}
        new = [text for text in dict.fromkeys(texts) if text not in features]
        with torch.autocast(self.encoder.roberta.device.type, enabled=False):
            features.update(self._encode_new(new))
        for text in features:
            self.features[text] = features[text]
            self.features.move_to_end(text)
        while len(self.features) > self.capacity:
            self.features.popitem(last=False)
        return torch.stack([features[text] for text in texts])

    def _encode_new(self, texts: Sequence[str]) -> dict[str, Tensor]:
        by_length: dict[int, list[tuple[str, list[int]]]] = {}
        limit = self.encoder.roberta.config.max_position_embeddings - self.encoder.first_position
        for text in texts:
            tokens = self.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
            by_length.setdefault(len(tokens), []).append((text, tokens))
        device = self.encoder.roberta.device
        threads = torch.get_num_threads()
        min_texts = MOST_TEXTS
        max_texts = MOST_TEXTS
        if device.type == "cpu":
            min_texts = min(FEWEST_TEXTS * threads, MOST_TEXTS)
            max_texts = MOST_TEXTS if threads == 1 else min_texts
        encoded: dict[str, Tensor] = {}
        for items in by_length.values():
            for start in range(0, len(items), max_texts):
                batch = dict(items[start : start + max_texts])
                rows = list(batch.values())
                rows += rows[:1] * (min_texts - len(rows))
                features = self.encoder.encode_equal_lengths(send(torch.tensor(rows), device))
                encoded.update(zip(batch, features.unbind(), strict=False))
        return encoded


class TokenizerError(ValueError):
    """A tokenizer cannot be loaded, or has no vocabulary."""


def load_tokenizer(name: str | Path, **options: object) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or hub id; `options`: of transformers, such as `revision`.

    Raises:
        TokenizerError: there is none, or it has only special tokens. transformers returns such a
            tokenizer without a warning if the vocabulary files are missing.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), **options)
    except (OSError, ValueError, KeyError, TypeError) as reason:
        first_line = str(reason).strip().split("\n")[0]
        raise TokenizerError(f"no tokenizer in {name}: {first_line}") from reason
    check_tokenizer(tokenizer, str(name))
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raise `TokenizerError` if the tokenizer has hardly more than its special tokens."""
    if len(tokenizer) < SMALLEST_VOCABULARY:
        raise TokenizerError(
            f"the tokenizer of {source} has only {len(tokenizer)} tokens; its vocabulary files are"
            " missing"
        )


def build_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer with RoBERTa's special tokens, for models trained from scratch.

    Args:
        words: texts whose words form the vocabulary; at least `SMALLEST_VOCABULARY` tokens are
            needed to load it again.
    """
    split = sorted(set(" ".join(words).lower().split()))
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *split))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
