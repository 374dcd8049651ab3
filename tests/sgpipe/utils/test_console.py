import pytest

from sgpipe.utils.console import count


@pytest.mark.parametrize(
    ("number", "nouns", "text"),
    [
        (0, ("file",), "0 files"),
        (1, ("error row",), "1 error row"),
        (2000, ("error row",), "2,000 error rows"),
        (1, ("class", "classes"), "1 class"),
        (3, ("class", "classes"), "3 classes"),
    ],
)
def test_nouns_agree_with_their_number(number: int, nouns: tuple[str, ...], text: str) -> None:
    assert count(number, *nouns) == text
