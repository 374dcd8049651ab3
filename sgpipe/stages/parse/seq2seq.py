"""The parser by a sequence-to-sequence model that writes `( subject , predicate , object ) , ( … )`.

Such are the T5 models of FACTUAL (Li et al., Findings of ACL 2023). Matrix products round differently for different
numbers of rows, so on a CPU each caption is parsed alone, and its triplets are the same in every batch, bit for bit. On
a GPU captions with equally many tokens are parsed together, without padding, in groups of a fixed size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from sgpipe.errors import UserError
from sgpipe.files.model_cache import local_model
from sgpipe.recipe import ParseConfig
from sgpipe.records import Triplet
from sgpipe.stages.checkpoint import check_vocabulary, load_part, load_weights, quiet, read_config
from sgpipe.stages.parse.grammar.tree import Tree, clean
from sgpipe.stages.parse.rules import Texts, analyse, ground, load_model
from sgpipe.utils.devices import pick_device
from sgpipe.utils.gpu_memory import enough_memory

PREFIX = "Generate Scene Graph: "  # of the published models
_MAX_TOKENS = 256  # of a graph
_GPU_GROUP = 16
_PIECE = re.compile(r"\(([^()]*)\)")


class Seq2SeqParser:
    """Parses captions with a sequence-to-sequence model; names and heads are found as the rules find them."""

    def __init__(self, config: ParseConfig) -> None:
        """Raises UserError: there is no such model, it is of another kind, or its files are missing or damaged."""
        self._batch_size = config.batch_size
        self._device = pick_device(config.device, config.resources.gpus, "parse.device")
        source = named_model(config)
        with quiet():
            _check_config(source)
            self._model, self._tokenizer = _load(source)
        self._nlp = load_model()
        self._model.to(self._device)
        # The checkpoint may sample, which would give a caption other triplets every time.
        self._generation = GenerationConfig.from_model_config(self._model.config)
        self._generation.update(
            do_sample=False,
            num_beams=self._model.generation_config.num_beams or 1,
            max_new_tokens=_MAX_TOKENS,
            max_length=None,
        )

    def parse(self, captions: Iterable[str]) -> list[list[Triplet]]:
        """The triplets of each caption, in the order of the model, with `caption` 0."""
        captions = list(captions)
        trees = (Tree.of(doc, tokens) for tokens, doc in analyse(self._nlp, captions, self._batch_size))
        return [ground(tree, read_graph(graph)) for tree, graph in zip(trees, self._graphs(captions), strict=True)]

    def _graphs(self, captions: list[str]) -> list[str]:
        """What the model writes of each caption."""
        rows = [self._tokenizer(PREFIX + clean(caption))["input_ids"] for caption in captions]
        graphs: dict[int, str] = {}
        for group in self._groups(rows):
            with enough_memory(self._device, "raise parse.resources.gpus so that fewer actors share the GPU"):
                graphs.update(zip(group, self._generate([rows[index] for index in group]), strict=True))
        return [graphs[index] for index in range(len(captions))]

    def _groups(self, rows: list[list[int]]) -> Iterator[list[int]]:
        """The indices of captions that are parsed together."""
        size = _GPU_GROUP if self._device.type == "cuda" else 1
        for _, group in groupby(sorted(range(len(rows)), key=lambda index: len(rows[index])), lambda i: len(rows[i])):
            members = list(group)
            yield from (members[first : first + size] for first in range(0, len(members), size))

    @torch.inference_mode()
    def _generate(self, rows: list[list[int]]) -> list[str]:
        size = _GPU_GROUP if self._device.type == "cuda" else 1
        ids = torch.tensor([*rows, *[rows[-1]] * (size - len(rows))], device=self._device)
        written = self._model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=self._generation
        )
        texts: list[str] = self._tokenizer.batch_decode(written[: len(rows)], skip_special_tokens=True)
        return texts


def check_seq2seq(config: ParseConfig) -> None:
    """Raises UserError: there is no such model, or one of another kind, as far as its configuration tells."""
    with quiet():
        _check_config(named_model(config))


def named_model(config: ParseConfig) -> str:
    """The model's hub id, or its folder on this machine. Raises UserError: no model is named."""
    if config.model is None:
        raise UserError(f"parse.model is not set: parse.parser={config.parser} needs the name of a model")
    return local_model(config.model)


def read_graph(text: str) -> list[Texts]:
    """The triplets that a model has written; what is not a triplet is left out, and the rest stays."""
    pieces = ([part.strip() for part in piece.split(",")] for piece in _PIECE.findall(text))
    return [(piece[0], piece[1], piece[2]) for piece in pieces if len(piece) == 3 and all(piece)]


def _check_config(source: str) -> None:
    kind = read_config(source, "parser").get("model_type")
    if kind not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"parser {source!r} is a {kind}, not a sequence-to-sequence language model")


def _load(source: str) -> tuple[Any, Any]:
    model = load_weights(AutoModelForSeq2SeqLM, source, "parser", dtype=torch.float32)
    tokenizer = load_part(AutoTokenizer, source, "parser")
    vocabulary = model.config.vocab_size  # models pad it to 128
    check_vocabulary(f"parser {source!r}", len(tokenizer), (vocabulary - 256, vocabulary))
    return model.eval(), tokenizer
