"""FACTUAL's captions with gold scene graphs, and which tokens of a caption its graph names.

FACTUAL (Li et al., ACL Findings 2023) writes a graph as "( subject , predicate , object ) , …",
with lemmatised predicates, and "is" for attributes.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.stages.parse.grammar import lexicon
from sgpipe.stages.parse.grammar.things import head_noun, singular
from sgpipe.stages.parse.grammar.tree import NOUN_TAGS, Tree, tokenise
from sgpipe.stages.parse.learned.parser import before_head
from sgpipe.utils.lemmas import verb_lemma

_TRIPLET = re.compile(r"\(\s*(.*?)\s*\)(?=\s*(?:,\s*\(|$))")
_AUXILIARIES = frozenset({"is", "are", "was", "were", "be", "been", "being", "am"})
_LEAST_SYNONYMS = 4
_LEAST_SHARE = 0.1
_LEAST_RENAMED = 3
_LEAST_RENAMED_SHARE = 0.5
Synonyms = Mapping[str, frozenset[str]]  # gold nouns for a caption's noun


@dataclass(frozen=True)
class GoldCaption:
    """A caption with its relations (subject, predicate, object), and the names of all things in its
    graph.
    """

    text: str
    relations: tuple[tuple[str, str, str], ...]
    names: tuple[str, ...]


def read_gold(path: Path, excluded: Iterable[str] = ()) -> list[GoldCaption]:
    """The captions of a CSV file of FACTUAL, gzipped or not, without those `excluded` (compared by
    their words).

    Raises:
        UserError: the file is missing, or not of this form.
    """
    without = {_key(caption) for caption in excluded}
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            rows = [(row["caption"], row["scene_graph"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not a CSV file with columns caption and scene_graph ({error})"
        ) from None
    return [_gold(caption, graph) for caption, graph in rows if _key(caption) not in without]


def captions_to_exclude(path: Path) -> list[str]:
    """The captions of a file of gold triplets by which parsers are judged."""
    return [item["caption"] for item in json.loads(path.read_text()).values()]


def _key(caption: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", caption.lower()))


def _gold(caption: str, graph: str) -> GoldCaption:
    relations = []
    names = []
    for match in _TRIPLET.finditer(graph.strip()):
        parts = [part.strip() for part in match[1].split(" , ")]
        names += parts[:1]
        if len(parts) == 3 and parts[1] != "is":
            names.append(parts[2])
            relations.append((parts[0], parts[1], parts[2]))
    return GoldCaption(caption, tuple(relations), tuple(dict.fromkeys(names)))


@dataclass(frozen=True)
class Aligned:
    """The gold relations of a caption by token: (subject, object) with predicates; the words of
    every named thing.
    """

    relations: Mapping[tuple[int, int], str]
    names: Mapping[int, frozenset[int]]  # by head: the tokens before it that belong to its name
    missing: int  # relations of things that no token names

    def shifted(self, moved: Mapping[int, int]) -> Aligned:
        """The same relations of tokens that are now elsewhere."""
        return Aligned(
            {(moved[i], moved[j]): predicate for (i, j), predicate in self.relations.items()},
            {
                moved[head]: frozenset(moved[word] for word in words)
                for head, words in self.names.items()
            },
            self.missing,
        )


def align(
    gold: GoldCaption, tree: Tree, rules: Mapping[tuple[int, int], str], synonyms: Synonyms
) -> Aligned:
    """Find the tokens that the gold graph names. Of several, those nearest to each other, or
    related by the rules.
    """
    nouns = [head_noun(tree, index) for index in range(len(tree))]
    texts = tree.texts
    relations: dict[tuple[int, int], str] = {}
    missing = 0
    for subject, predicate, thing in gold.relations:
        firsts = _heads(subject, tree, nouns, synonyms)
        seconds = _heads(thing, tree, nouns, synonyms)
        is_same_noun = name_words(subject)[-1:] == name_words(thing)[-1:]
        pairs = [
            (i, j)
            for i in firsts
            for j in seconds
            if (i != j or is_same_noun) and (i, j) not in relations
        ]
        if not pairs:
            missing += 1
            continue
        best = min(
            pairs, key=lambda pair: (pair not in rules, pair[0] == pair[1], abs(pair[0] - pair[1]))
        )
        relations[best] = normal_predicate(predicate)
    names: dict[int, frozenset[int]] = {}
    for name in gold.names:
        words = name_words(name)[:-1]
        for head in _heads(name, tree, nouns, synonyms):
            before = before_head(tree, head)
            written = frozenset(index for index in before if texts[index] in words)
            if head not in names or len(written) > len(names[head]):
                names[head] = written
    return Aligned(relations, names, missing)


def learn_synonyms(captions: Iterable[tuple[GoldCaption, Tree]]) -> Synonyms:
    """Gold nouns that annotators often write for another noun of the caption, such as "person" for
    "guy".
    """
    counts: Counter[tuple[str, str]] = Counter()
    free_captions: Counter[str] = Counter()
    for gold, tree in captions:
        nouns = {
            head_noun(tree, index) for index in range(len(tree)) if tree.tags[index] in NOUN_TAGS
        }
        named = {singular(words[-1]) for name in gold.names if (words := name_words(name))}
        missing = named - nouns
        free = nouns - named
        free_captions.update(free)
        if len(missing) == 1:
            counts.update((noun, next(iter(missing))) for noun in free)
    synonyms: dict[str, set[str]] = {}
    for (noun, written), count in counts.items():
        if count >= _LEAST_SYNONYMS and count >= _LEAST_SHARE * free_captions[noun]:
            synonyms.setdefault(noun, set()).add(written)
    return {noun: frozenset(written) for noun, written in synonyms.items()}


def learn_names(captions: Iterable[tuple[GoldCaption, Tree]]) -> dict[str, str]:
    """Nouns that annotators mostly replace, with their name for it: "guys" are "people", a "hotdog"
    is a "hot dog".
    """
    counts: Counter[tuple[str, str]] = Counter()
    occurrences: Counter[str] = Counter()
    for gold, tree in captions:
        nouns = {tree.texts[index] for index in range(len(tree)) if tree.is_noun(index)}
        occurrences.update(nouns)
        names = {_in_singular(words) for name in gold.names if (words := name_words(name))}
        named = {name.rsplit(" ", 1)[-1] for name in names}
        texts = {singular(text) for text in tree.texts}
        missing = [name for name in names if name.rsplit(" ", 1)[-1] not in texts]
        free = [noun for noun in nouns if singular(noun) not in named]
        if len(missing) == len(free) == 1:
            counts[free[0], missing[0]] += 1
    return {
        noun: name
        for (noun, name), count in sorted(counts.items())
        if count >= _LEAST_RENAMED and count >= _LEAST_RENAMED_SHARE * occurrences[noun]
    }


def _in_singular(words: list[str]) -> str:
    return " ".join([*words[:-1], singular(words[-1])])


def name_words(name: str) -> list[str]:
    """The words of a name as the tokeniser writes them, without leading determiners and numbers."""
    words = [token.text for token in tokenise(name)]
    while len(words) > 1 and (words[0] in lexicon.DETERMINERS or words[0].isdigit()):
        words = words[1:]
    return words


def normal_predicate(predicate: str) -> str:
    """A gold predicate without auxiliaries. Its verb is a lemma, where it is not yet; "lay" stays,
    and means "lie".
    """
    words = predicate.lower().split()
    while len(words) > 1 and words[0] in _AUXILIARIES:
        words = words[1:]
    if words and words[0] not in lexicon.PREPOSITIONS and words[0].endswith(("ing", "ed", "s")):
        words[0] = verb_lemma(words[0])
    return " ".join(words)


def _heads(name: str, tree: Tree, nouns: list[str], synonyms: Synonyms) -> list[int]:
    """The tokens that can be the head of a name, preferably with the other words of the name before
    them.
    """
    words = name_words(name)
    if not words:
        return []
    head = singular(words[-1])
    heads = [index for index, noun in enumerate(nouns) if noun == head]
    heads = heads or [index for index, noun in enumerate(nouns) if head in synonyms.get(noun, ())]
    texts = tree.texts
    full = [
        i
        for i in heads
        if words[:-1] and all(w in (texts[k] for k in before_head(tree, i)) for w in words[:-1])
    ]
    return full or heads
