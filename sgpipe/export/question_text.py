"""Class names and predicates as the sentences of `--to instructions` need them."""

import re
import unicodedata
from functools import lru_cache
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.utils.config_file import Config, explained, merged, read_yaml
from sgpipe.utils.lemmas import (
    gerund,
    is_participle,
    is_verb,
    lemmas,
    plural,
    verb_lemma,
    without_auxiliaries,
)

_PACKAGED = Path(__file__).with_name("instructions.yaml")
_LONGEST_NAME = 100
_UNPRINTED = re.compile(r"[^\w\s'\u2019\".,&/()+%-]|_")
_START = re.compile(r"(^|(?<=[a-z\])][.?!] ))[a-z]")
_VOWEL = re.compile(r"(?!uni|use|uri|ute|eu|one\b)[aeiou]|hour|honou?r|heir")


class Phrases(Config):
    """The content of `instructions.yaml`, which explains it."""

    fields: dict[str, list[str]]
    templates: dict[str, list[dict[str, str]]]
    none_of_these: str
    plurals: dict[str, str]
    plural_only: frozenset[str]
    uncountable: frozenset[str]
    rewritten: dict[str, str | None]
    stative: dict[str, tuple[str, str]]
    not_verbs: frozenset[str]


def load_phrases(file: Path | None = None) -> Phrases:
    """Return the packaged phrases; what a file names replaces theirs.

    Raises:
        UserError: the file is not usable.
    """
    packaged = read_yaml(_PACKAGED)
    with explained(Phrases, f"{file}: "):
        phrases = Phrases.model_validate(merged(packaged, read_yaml(file) if file else {}))
    for form, listed in phrases.templates.items():
        if form not in packaged["templates"] or not listed:
            raise UserError(
                f"{file}: {form}: expected templates of {', '.join(packaged['templates'])}"
            )
        texts = packaged["templates"][form][0]
        known = packaged["fields"][form]
        for template in listed:
            without_fields = re.sub(
                rf"{{{{|}}}}|{{({'|'.join(known)})}}", "", " ".join(template.values())
            )
            if template.keys() != texts.keys() or {*"{}"} & {*without_fields}:
                expected = (
                    f"{' and '.join(texts)}, with the fields {', '.join(sorted(known))} as they are"
                )
                raise UserError(f"{file}: {form}: expected {expected}; got {template}")
    return phrases


def filled(text: str, fields: dict[str, str]) -> str:
    """Return a text of a template with its fields, each sentence beginning with a capital."""
    return _START.sub(lambda start: start[0].upper(), text.format_map(fields))


@lru_cache(1 << 16)
def plain_name(name: str) -> str:
    """Return a class name or predicate as a text that no chat template takes for one of its tokens,
    "" if none is left: `<image>` becomes "image", "holding_hands" "holding hands"; of the signs,
    only those of ordinary writing stay.
    """
    text = " ".join(_UNPRINTED.sub(" ", unicodedata.normalize("NFKC", name)).split()).strip(
        " /&.,+%-"
    )
    return text if len(text) <= _LONGEST_NAME and any(map(str.isalnum, text)) else ""


class English:
    """Class names and predicates as sentences need them."""

    def __init__(self, phrases: Phrases) -> None:
        self.phrases = phrases
        self.noun = lru_cache(1 << 16)(self._noun)
        self.predicate = lru_cache(1 << 16)(self._predicate)

    def _noun(self, name: str) -> tuple[str, str, bool]:
        """Return a class name with its article, its plural ("": it is not counted), and whether it
        is one itself.
        """
        lowered = name.lower()
        if lowered in self.phrases.uncountable:
            return name, "", False
        *first_words, last = name.split()
        if self._is_plural(last):
            return name, name, True
        plural_name = " ".join([*first_words, self._plural(last)])
        article = "an" if _VOWEL.match(lowered) else "a"
        return f"{article} {name}", self.phrases.plurals.get(lowered, plural_name), False

    def _is_plural(self, word: str) -> bool:
        noun = word.lower()
        if noun in self.phrases.plural_only:
            return True
        if not _is_word(word) or word.isupper() or noun.endswith(("ss", "us", "is")):
            return False
        has_singular = lemmas(noun, "NOUN")[0] != noun
        return has_singular or (noun.endswith("s") and plural(noun) == noun)

    def _plural(self, word: str) -> str:
        """Return the plural of a noun; "cabinet/shelf" are cabinets/shelves."""
        parts = word.lower().split("/")
        if word.isupper() or not all(map(_is_word, parts)):
            return f"{word}s"
        text = "/".join(self.phrases.plurals.get(part, plural(part)) for part in parts)
        return text.capitalize() if word[0].isupper() else text

    def _predicate(self, predicate: str, is_many: bool = False) -> dict[str, str] | None:
        """Return the fields of a predicate, `is_many` subjects having it; None: nobody could
        answer.
        """
        text = " ".join(without_auxiliaries(predicate))
        words = (self.phrases.rewritten.get(text, text) or "").split()
        if not words:
            return None
        first, *further = words
        if first in self.phrases.stative:
            base, singular = (" ".join([verb, *further]) for verb in self.phrases.stative[first])
            auxiliary = "do" if is_many else "does"
            verb = base if is_many else singular
            that = f"that {verb}"
        else:
            base = " ".join([self._after_is(first), *further])
            singular = f"is {base}"
            auxiliary = "are" if is_many else "is"
            verb = f"{auxiliary} {base}"
            that = base
        return {
            "predicate": predicate,
            "is": auxiliary,
            "verb": base,
            "is_verb": verb,
            "one_verb": singular,
            "that_verb": that,
        }

    def _after_is(self, word: str) -> str:
        """Return the form of a verb that can follow "is", as "riding" and "made" can."""
        if word in self.phrases.not_verbs or not is_verb(word):
            return word
        is_inflected = verb_lemma(word) != word
        if is_inflected and (word.endswith("ing") or is_participle(word)):
            return word
        return gerund(word)


def _is_word(text: str) -> bool:
    return text.isascii() and text.isalpha()
