"""A dependency tree as plain lists: spaCy's analysis in a form that rules can read, and change, quickly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spacy.attrs import DEP, HEAD, TAG
from spacy.tokens import Doc

from sgpipe.stages.grammar.tokens import Token

NOUN_TAGS = frozenset({"NN", "NNS", "NNP", "NNPS"})
VERB_TAGS = frozenset({"VB", "VBD", "VBG", "VBN", "VBP", "VBZ"})
AUXILIARIES = frozenset({"aux", "auxpass"})


@dataclass(slots=True)
class Tree:
    """Parallel lists over the tokens of one caption; the head of a root is the root itself."""

    texts: list[str]
    tags: list[str]
    deps: list[str]
    heads: list[int]
    children: list[list[int]]

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def of(cls, doc: Doc, tokens: Sequence[Token]) -> Tree:
        """The tree of a parsed document whose words are the tokens'."""
        strings = doc.vocab.strings
        rows = doc.to_array([TAG, DEP, HEAD]).astype("int64").tolist()
        return cls.build(
            [token.text for token in tokens],
            [strings[tag & 0xFFFFFFFFFFFFFFFF] for tag, _, _ in rows],
            [strings[dep & 0xFFFFFFFFFFFFFFFF] for _, dep, _ in rows],
            [index + offset for index, (_, _, offset) in enumerate(rows)],
        )

    @classmethod
    def build(cls, texts: list[str], tags: list[str], deps: list[str], heads: list[int]) -> Tree:
        children: list[list[int]] = [[] for _ in texts]
        for index, head in enumerate(heads):
            if head != index:
                children[head].append(index)
        return cls(texts, tags, deps, heads, children)

    def attach(self, index: int, head: int, dep: str) -> None:
        """Hang token `index` (with all below it) under `head`; `head == index` makes it a root.

        A move below itself would cut it off from the tree, so nothing is moved then.
        """
        if head != index and index in self.ancestors(head):
            return
        old = self.heads[index]
        if old != index:
            self.children[old].remove(index)
        self.heads[index], self.deps[index] = head, dep
        if head != index:
            self.children[head].append(index)
            self.children[head].sort()

    def replace(self, old: int, new: int) -> None:
        """Put `new` where `old` hangs, and `old` nowhere (the caller attaches it again)."""
        head = self.heads[old]
        self.attach(new, new if head == old else head, self.deps[old])

    def dependents(self, index: int, *deps: str) -> list[int]:
        """Children of a token with one of the given labels, in order."""
        return [child for child in self.children[index] if self.deps[child] in deps]

    def ancestors(self, index: int) -> Iterator[int]:
        """Heads above a token, nearest first."""
        while self.heads[index] != index:
            index = self.heads[index]
            yield index

    def is_noun(self, index: int) -> bool:
        return self.tags[index] in NOUN_TAGS

    def is_verb(self, index: int) -> bool:
        return self.tags[index] in VERB_TAGS and self.deps[index] not in AUXILIARIES
