"""The parser by rules: a spaCy dependency parse, and the rules of `grammar`."""

from __future__ import annotations

from collections.abc import Iterable

from sgpipe.recipe import ParseConfig
from sgpipe.records import Triplet
from sgpipe.stages.parse.grammar.entities import head_noun, phrase
from sgpipe.stages.parse.grammar.relations import relations
from sgpipe.stages.parse.grammar.repair import repair
from sgpipe.stages.parse.grammar.tree import Tree
from sgpipe.stages.parse.spacy_model import analyse, load_model


class RuleParser:
    """Parses captions by rules. The triplets of a caption do not depend on the captions parsed with it."""

    def __init__(self, config: ParseConfig) -> None:
        """
        Raises:
            UserError: the spaCy model is not installed, or has no tagger and dependency parser.
        """
        self._batch_size = config.batch_size
        self._nlp = load_model(config.model)

    def parse(self, captions: Iterable[str]) -> list[list[Triplet]]:
        """The triplets of each caption, in word order, with `caption` 0."""
        return [triplets(Tree.of(doc, tokens)) for tokens, doc in analyse(self._nlp, captions, self._batch_size)]


def triplets(tree: Tree) -> list[Triplet]:
    """The triplets of a dependency tree, with `caption` 0. The tree is repaired in place."""
    repair(tree)
    return [
        Triplet(
            subject=phrase(tree, relation.subject),
            predicate=relation.predicate,
            object=phrase(tree, relation.object),
            subject_head=head_noun(tree, relation.subject),
            object_head=head_noun(tree, relation.object),
            predicate_lemma=relation.lemma,
            caption=0,
        )
        for relation in relations(tree)
    ]
