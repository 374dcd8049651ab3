"""Making and measuring the models of the miniworld that ship with sgpipe."""
