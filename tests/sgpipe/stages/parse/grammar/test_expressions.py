"""The tables the tokeniser folds with are consistent."""

from sgpipe.stages.parse.grammar.entities import singular
from sgpipe.stages.parse.grammar.expressions import EXPRESSIONS, SPELLINGS, STAND_INS


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
