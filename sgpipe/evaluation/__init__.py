"""Predictions made elsewhere, in the files that the field exchanges, given to the evaluators of `rlip_model`."""
