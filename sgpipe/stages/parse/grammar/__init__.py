"""The grammar of captions: rules that extract relations from a spaCy dependency tree, which is
first repaired.

The approach follows the rule-based parsers behind SPICE (Schuster et al. 2015, Anderson et al.
2016); the conventions (no attributes, "of" as "has", "in a shirt" as "wearing") are those of
FACTUAL (Li et al. 2023).
"""
