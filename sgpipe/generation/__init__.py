"""`sgpipe generate`: from a recipe to shards of labelled images."""
