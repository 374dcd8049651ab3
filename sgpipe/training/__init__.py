"""`sgpipe train`: from shards to a network."""
