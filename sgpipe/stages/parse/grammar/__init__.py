"""The grammar of captions: rules that read relations off a spaCy dependency tree.

tokens (text to words) → spaCy → tree → repair (habitual misparses) → entities (noun phrases) and relations.
The ideas are those of the rule parsers behind SPICE (Schuster et al. 2015, Anderson et al. 2016); the
conventions (attributes left out, "of" as "has", "in a shirt" as "wearing") are those of FACTUAL (Li et al. 2023).
"""
