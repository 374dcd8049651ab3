"""Train and evaluate the miniworld models that are packaged with sgpipe."""
