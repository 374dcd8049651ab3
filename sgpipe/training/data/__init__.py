"""Read shards as a stream of training batches, in constant memory."""
