"""Label texts to features: tokenizers, the RoBERTa label encoder, and a cache of encoded labels."""

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
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, RobertaConfig
from transformers import RobertaModel as Roberta
from transformers.models.roberta.modeling_roberta import RobertaLayer

NO_OBJECTS = "no objects"
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SMALLEST_VOCABULARY = 16
MOST_TEXTS = 128  # encoded at a time
FEWEST_TEXTS = 8  # per thread: of fewer rows, matrix products round in another way
SMALLEST_DEVIATION = 1e-3


@dataclass(frozen=True)
class LabelFeatures:
    """Encoded labels: objects, "no objects" the last of them, then relations.

    features `[batch or 1, labels, label_dim]`; masked `[batch or 1, labels]`, True for labels that the label
    layers don't look at, or None. Labels encoded for inference are never masked.
    """

    features: Tensor
    num_objects: int
    masked: Tensor | None = None


def masked_by_sum(features: Tensor) -> Tensor:
    """The published training's mask: meant for zero padding, it hides every label whose features don't sum to
    more than 0. `[..., labels, dim]` to `[..., labels]`."""
    return ~(features.sum(-1) > 0)


class PooledLayer(RobertaLayer):
    """The last layer of a RoBERTa of which only the pooler is read: it computes the first tokens only."""

    @classmethod
    def of(cls, layer: nn.Module, config: RobertaConfig) -> PooledLayer:
        """With the parameters of `layer`."""
        with torch.device("meta"):
            pooled = cls(config)
        pooled.load_state_dict(layer.state_dict(keep_vars=True), assign=True)
        return pooled

    def forward(self, states: Tensor, mask: Tensor | None = None, *others: object, **options: object) -> Tensor:
        """`[labels, tokens, dim]` to `[labels, 1, dim]`.

        Args:
            mask: `[labels, 1, tokens, tokens]`, as `scaled_dot_product_attention` takes it.
            others, options: what transformers hands to every layer and only decoders use.
        """
        attention, first = self.attention.self, states[:, :1]
        query, key, value = (
            projection(part).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
            for projection, part in ((attention.query, first), (attention.key, states), (attention.value, states))
        )
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
        """Encode labels, those of equal length together, so that nothing is spent on padding.

        Args:
            input_ids: `[labels, tokens]`, padded at the right.
            attention_mask: `[labels, tokens]`, 1 for tokens.

        Returns:
            `[labels, dim]`.
        """
        lengths = attention_mask.sum(1).tolist()
        order, pooled = [], []
        for length in sorted(set(lengths)):
            rows = [row for row, of_row in enumerate(lengths) if of_row == length]
            order += rows
            pooled.append(self.encode_equal_lengths(input_ids[rows, :length]))
        return torch.cat(pooled)[torch.tensor(order).argsort().to(input_ids.device)]

    def encode_equal_lengths(self, input_ids: Tensor) -> Tensor:
        """`[labels, tokens]` without padding to `[labels, dim]`."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) + self.first_position
        output = self.roberta(
            input_ids=input_ids,
            position_ids=positions.expand_as(input_ids),
            token_type_ids=torch.zeros_like(input_ids),
        )
        return output.pooler_output


@torch.no_grad()
def spread(encoder: LabelEncoder, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Set the pooler of a new label encoder so that these texts start far apart, each feature with mean 0 and
    deviation 1 before the activation.

    Random weights give all texts nearly the same features, of which no network learns to tell labels apart.
    """
    seen: list[Tensor] = []
    pooler = encoder.roberta.pooler
    assert pooler is not None
    dense = pooler.dense
    handle = dense.register_forward_hook(lambda module, inputs, output: seen.append(output))
    was_training = encoder.training
    encoder.eval()
    try:
        LabelCache(encoder, tokenizer, len(texts)).encode(texts)
    finally:
        handle.remove()
        encoder.train(was_training)
    features = torch.cat(seen).unique(dim=0)  # batches are filled up with repeats
    deviation = features.std(0, correction=0).clamp(min=SMALLEST_DEVIATION)
    dense.weight.div_(deviation.unsqueeze(1))
    dense.bias.sub_(features.mean(0)).div_(deviation)


class LabelCache:
    """Features of label texts, encoded once; forgets those not used for longest.

    Texts of one length are encoded together. On a CPU a text's features do not depend on the texts it is encoded
    with as long as these are not too few, so that few are filled up with repeats; elsewhere all batches are filled.
    """

    def __init__(self, encoder: LabelEncoder, tokenizer: PreTrainedTokenizerBase, capacity: int) -> None:
        self.encoder, self.tokenizer, self.capacity = encoder, tokenizer, capacity
        self.features: OrderedDict[str, Tensor] = OrderedDict()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """`[texts, dim]`, in the encoder's own precision even under autocast; equal texts are encoded once."""
        found = {text: self.features[text] for text in texts if text in self.features}
        new = [text for text in dict.fromkeys(texts) if text not in found]
        with torch.autocast(self.encoder.roberta.device.type, enabled=False):
            found.update(self._encode_new(new))
        for text in found:
            self.features[text] = found[text]
            self.features.move_to_end(text)
        while len(self.features) > self.capacity:
            self.features.popitem(last=False)
        return torch.stack([found[text] for text in texts])

    def _encode_new(self, texts: Sequence[str]) -> dict[str, Tensor]:
        by_length: dict[int, list[tuple[str, list[int]]]] = {}
        limit = self.encoder.roberta.config.max_position_embeddings - self.encoder.first_position
        for text in texts:
            tokens = self.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
            by_length.setdefault(len(tokens), []).append((text, tokens))
        device = self.encoder.roberta.device
        fewest = FEWEST_TEXTS * torch.get_num_threads() if device.type == "cpu" else MOST_TEXTS
        encoded: dict[str, Tensor] = {}
        for items in by_length.values():
            for start in range(0, len(items), MOST_TEXTS):
                batch = items[start : start + MOST_TEXTS]
                filled = [tokens for _, tokens in batch] + [batch[0][1]] * (fewest - len(batch))
                features = self.encoder.encode_equal_lengths(torch.tensor(filled, device=device))
                encoded.update(zip([text for text, _ in batch], features.unbind(), strict=False))
        return encoded


class TokenizerError(ValueError):
    """A tokenizer that cannot be loaded, or knows no words."""


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id.

    Raises:
        TokenizerError: there is none, or only its special tokens came back (which happens, silently, when the
            vocabulary files are missing).
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError, KeyError, TypeError) as reason:
        first_line = str(reason).strip().split("\n")[0]
        raise TokenizerError(f"no tokenizer in {name}: {first_line}") from reason
    check_tokenizer(tokenizer, str(name))
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raise `TokenizerError` if the tokenizer knows hardly more than its special tokens."""
    if len(tokenizer) < SMALLEST_VOCABULARY:
        raise TokenizerError(
            f"the tokenizer of {source} knows only {len(tokenizer)} tokens; its vocabulary files are missing"
        )


def build_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with RoBERTa's special tokens, for models trained from scratch.

    Args:
        words: texts whose words make up the vocabulary; at least enough for `SMALLEST_VOCABULARY` tokens.
    """
    split = sorted({word for text in words for word in text.lower().split()})
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *split))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
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
