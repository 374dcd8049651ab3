"""Labels: encoded once, the same whatever they are encoded with; tokenizers that know no words are
refused.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import RobertaConfig

from rlip_model.model import RTagger
from rlip_model.text import LabelCache, LabelEncoder, build_tokenizer, load_tokenizer

WORDS = "person dog horse on next to holding in front of a b c d e f g h i j k l"


def test_a_text_is_encoded_once_and_the_same_in_any_company(tagger: RTagger) -> None:
    many = [
        f"{a} {b}"
        for a in ("riding", "holding", "person", "dog")
        for b in ("on", "to", "of", "at", "in")
    ]
    reference = tagger.encode_texts(many)
    other = LabelCache(tagger.text_encoder, tagger.tokenizer, capacity=100)
    encoded: list[int] = []
    encode = tagger.text_encoder.encode_equal_lengths
    tagger.text_encoder.encode_equal_lengths = lambda ids: (encoded.append(len(ids)), encode(ids))[
        1
    ]
    for text, features in zip(reversed(many), reversed(reference), strict=True):
        assert torch.equal(other.encode([text, "person"])[0], features)
    calls = len(encoded)
    assert calls == len(many) + 1
    other.encode([*many, "person", *many])
    assert len(encoded) == calls


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_features_do_not_depend_on_how_many_are_encoded_together_at_full_width() -> None:
    """To the last bit, where matrices are as wide as in the published networks."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(WORDS.split())
    sizes = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "max_position_embeddings": 16}
    encoder = LabelEncoder(RobertaConfig(**sizes, type_vocab_size=1)).eval()
    texts = [f"{a} {b}" for a in WORDS.split() for b in "abcdefghij"][:140]
    together = LabelCache(encoder, tokenizer, 1000).encode(texts)
    for count in (1, 7, 8, 9, 13, 31, 64):
        few = LabelCache(encoder, tokenizer, 1000).encode(texts[-count:])
        assert torch.equal(few, together[-count:])


def test_the_cache_knows_no_autocast_and_no_earlier_weights(tagger: RTagger) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = tagger.encode_texts(["person", "dog"])
    fresh = LabelCache(tagger.text_encoder, tagger.tokenizer, capacity=5)
    assert torch.equal(under, fresh.encode(["person", "dog"]))
    before = tagger.encode_texts(["person"])
    state = {
        key: value * 1.5 if "text_encoder" in key else value
        for key, value in tagger.state_dict().items()
    }
    tagger.load_state_dict(state)
    assert not torch.equal(tagger.encode_texts(["person"]), before)


def test_built_tokenizer_survives_saving(tmp_path: Path) -> None:
    tokenizer = build_tokenizer([WORDS])
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    for text in ("Person next to dog", "unheard of"):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    start, *ids, end = loaded("person on dog")["input_ids"]
    assert (start, loaded.convert_ids_to_tokens(ids), end) == (0, ["person", "on", "dog"], 2)
    assert loaded("zebra")["input_ids"][1] == loaded.unk_token_id
