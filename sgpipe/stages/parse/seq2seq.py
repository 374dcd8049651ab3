"""The parser by a sequence-to-sequence model that writes `( subject , predicate , object ) , ( …
)`.

Such are the T5 models of FACTUAL (Li et al., Findings of ACL 2023). As matrix products round by
their number of rows, a caption is parsed alone on a CPU, and on a GPU in a group of a fixed size,
with equally many tokens.
"""

import re
from collections.abc import Iterable
from itertools import groupby, islice
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from sgpipe.errors import UserError
from sgpipe.files.model_cache import local_model
from sgpipe.recipe import ParseConfig
from sgpipe.stages.checkpoint import check_vocabulary, load_part, load_weights, read_config
from sgpipe.stages.parse.grammar.tree import clean
from sgpipe.stages.parse.rules import Parsed, Parser, Texts, analyse, ground, load_model
from sgpipe.utils.devices import pick_device
from sgpipe.utils.gpu import enough_memory

PREFIX = "Generate Scene Graph: "  # of the published models
_MAX_TOKENS = 256  # of a graph
_GPU_GROUP = 128
_PIECE = re.compile(r"\(([^()]*)\)")


class Seq2SeqParser(Parser):
    """Parses captions with a sequence-to-sequence model; names and heads are found as the rules
    find them.
    """

    device: torch.device

    def __init__(self, config: ParseConfig) -> None:
        """Load the model.

        Raises:
            UserError: there is no such model, it is of another kind, or its files are missing or
                damaged.
        """
        self._batch_size = config.batch_size
        if config.model is None:
            raise UserError(
                "parse.model is not set: parse.parser=seq2seq needs the name of a model"
            )
        self.device = pick_device(config.device, config.resources.gpus, "parse.device")
        source = local_model(config.model)
        kind = read_config(source, "parser").get("model_type")
        if kind not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
            raise UserError(
                f"parser {source!r} is a {kind}, not a sequence-to-sequence language model"
            )
        model: Any = load_weights(AutoModelForSeq2SeqLM, source, "parser", dtype=torch.float32)
        self._tokenizer: Any = load_part(AutoTokenizer, source, "parser")
        vocabulary = model.config.vocab_size  # models pad it to 128
        check_vocabulary(f"parser {source!r}", len(self._tokenizer), (vocabulary - 256, vocabulary))
        self._nlp = load_model()
        self._model = model.eval().to(self.device)
        # The checkpoint may sample, which would give a caption other triplets every time.
        self._generation = GenerationConfig.from_model_config(self._model.config)
        beams = self._model.generation_config.num_beams or 1
        self._generation.update(
            do_sample=False, num_beams=beams, max_new_tokens=_MAX_TOKENS, max_length=None
        )

    def read(self, captions: Iterable[str]) -> list[Parsed]:
        """Return the triplets of each caption, in the order of the model, with `caption` 0. No
        mentions.
        """
        captions = list(captions)
        written = zip(
            analyse(self._nlp, captions, self._batch_size), self._graphs(captions), strict=True
        )
        return [(ground(tree, read_graph(graph)), []) for (tree, _), graph in written]

    @torch.inference_mode()
    def _graphs(self, captions: list[str]) -> list[str]:
        rows = [self._tokenizer(PREFIX + clean(caption))["input_ids"] for caption in captions]
        size = _GPU_GROUP if self.device.type == "cuda" else 1
        graphs: dict[int, str] = {}
        by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        for _, of_length in groupby(by_length, lambda index: len(rows[index])):
            while group := list(islice(of_length, size)):
                padded = [rows[index] for index in [*group, *[group[-1]] * (size - len(group))]]
                ids = torch.tensor(padded, device=self.device)
                inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                with enough_memory(
                    self.device, "raise parse.resources.gpus so that fewer actors share the GPU"
                ):
                    written = self._model.generate(**inputs, generation_config=self._generation)
                texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
                graphs.update(zip(group, texts, strict=False))
        return [graphs[index] for index in range(len(captions))]


def read_graph(text: str) -> list[Texts]:
    """Return the triplets that a model has written; what is not a triplet is left out, and the rest
    stays.
    """
    pieces = ([part.strip() for part in piece.split(",")] for piece in _PIECE.findall(text))
    return [(piece[0], piece[1], piece[2]) for piece in pieces if len(piece) == 3 and all(piece)]
