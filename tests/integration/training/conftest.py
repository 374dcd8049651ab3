"""The fixtures of the unit tests of trainings."""

from tests.sgpipe.conftest import drawn_run, one_torch_thread, trained_tagger

__all__ = ["drawn_run", "one_torch_thread", "trained_tagger"]
