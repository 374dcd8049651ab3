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
    """Return the packaged phrases; what a file names replaces theirs. Raises UserError: the file is
    not usable.
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
        words = name.split()
        last = name.split()[-1]
        if name.lower() in self.phrases.uncountable:
            return name, "", False
        noun = last.lower()
        is_word = last.isascii() and last.isalpha() and not last.isupper()
        is_many = noun in self.phrases.plural_only
        if is_word and not noun.endswith(("ss", "us", "is")):
            is_many |= lemmas(noun, "NOUN")[0] != noun or (
                noun.endswith("s") and plural(noun) == noun
            )
        if is_many:
            return name, name, True
        # "cabinet/shelf" are cabinets/shelves
        known = self.phrases.plurals
        parts = noun.split("/")
        is_word |= all(part.isascii() and part.isalpha() for part in parts) and not last.isupper()
        many = "/".join(known.get(part, plural(part)) for part in parts) if is_word else f"{last}s"
        many = " ".join([*words[:-1], many.capitalize() if is_word and last[0].isupper() else many])
        article = "an" if _VOWEL.match(name.lower()) else "a"
        return f"{article} {name}", known.get(name.lower(), many), False

    def _predicate(self, predicate: str, is_many: bool = False) -> dict[str, str] | None:
        """Return the fields of a predicate, `is_many` subjects having it; None: nobody could
        answer.
        """
        text = " ".join(without_auxiliaries(predicate))
        first, *rest = (self.phrases.rewritten.get(text, text) or "").split() or [""]
        if first in self.phrases.stative:
            base, one = (" ".join([verb, *rest]) for verb in self.phrases.stative[first])
            auxiliary, said = ("do", base) if is_many else ("does", one)
            that = f"that {said}"
        else:
            if first not in self.phrases.not_verbs and is_verb(
                first
            ):  # "riding" and "made" can follow "is"
                is_form = verb_lemma(first) != first and (
                    first.endswith("ing") or is_participle(first)
                )
                first = first if is_form else gerund(first)
            base = that = " ".join([first, *rest])
            auxiliary = "are" if is_many else "is"
            one = f"is {base}"
            said = f"{auxiliary} {base}"
        fields = {"predicate": predicate, "is": auxiliary, "verb": base, "is_verb": said}
        return fields | {"one_verb": one, "that_verb": that} if first else None
