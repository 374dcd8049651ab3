"""Exports: a run in formats that other programs read. `sgpipe import` reads them back."""
