"""Storage: the folder or object store of a run, its shards and its manifest."""
