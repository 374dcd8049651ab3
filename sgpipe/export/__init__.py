"""Exports: the shards of a run in the forms that other programs read. `sgpipe import` reads them back."""
