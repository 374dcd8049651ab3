"""From shards to batches: what `sgpipe train` learns from, read as a stream in constant memory."""
