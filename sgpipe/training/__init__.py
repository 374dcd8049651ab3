"""Train a network on shards (`sgpipe train`)."""
