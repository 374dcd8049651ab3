"""The word lists hold words in the form in which the rules look them up."""

import pytest

from sgpipe.stages.parse.grammar import lexicon
from sgpipe.stages.parse.grammar.lexicon import EXPRESSIONS, SPELLINGS, STAND_INS
from sgpipe.stages.parse.grammar.relations import singular
from sgpipe.utils.lemmas import gerund, verb_lemma

NOUNS = ("PEOPLE", "ANIMALS", "CLOTHES", "BODY_PARTS", "PLACES", "CONTAINERS_IN", "CONTAINERS_ON", "DEPICTIONS")
VERBS = ("ANIMATE_VERBS", "PASSIVE_STATES", "POSTURE_VERBS", "HOLDING_VERBS", "LOCATIVE_BY", "PERCEPTION")


@pytest.mark.parametrize("name", NOUNS)
def test_nouns_are_singular(name):
    assert [noun for noun in getattr(lexicon, name) if singular(noun) != noun] == []


@pytest.mark.parametrize("name", VERBS)
def test_verbs_are_lemmas(name):
    present_and_past = {"lay"}  # "lay" is also what somebody did who lies
    verbs = getattr(lexicon, name) - present_and_past
    assert [verb for verb in verbs if verb_lemma(verb) != verb] == []


def test_word_lists_do_not_overlap():
    assert not lexicon.PEOPLE & lexicon.ANIMALS
    assert not lexicon.CLOTHES & lexicon.BODY_PARTS
    assert not lexicon.GERUND_NOUNS & lexicon.ANIMATE_VERBS


def test_the_parser_sees_single_words():
    assert all(" " not in stand_in for stand_in, _ in EXPRESSIONS.values())
    assert all(" " not in word for word in (*SPELLINGS.values(), *STAND_INS.values(), *STAND_INS))


def test_stand_ins_keep_number():
    """A plural stands in for a plural, so that verbs still agree."""
    for word, stand_in in STAND_INS.items():
        if not word.endswith("ing") and word != "graze":
            assert (singular(word) == word) == (singular(stand_in) == stand_in), word


def test_no_result_is_replaced_again():
    assert not set(SPELLINGS.values()) & set(SPELLINGS)
    assert not set(STAND_INS.values()) & set(STAND_INS)


@pytest.mark.parametrize(
    ("form", "lemma", "present_participle"),
    [
        ("riding", "ride", "riding"),
        ("ridden", "ride", "riding"),
        ("sat", "sit", "sitting"),
        ("covered", "cover", "covering"),
        ("worn", "wear", "wearing"),
        ("skiing", "ski", "skiing"),
    ],
)
def test_forms_of_verbs(form, lemma, present_participle):
    assert verb_lemma(form) == lemma
    assert gerund(form) == present_participle
