"""Sources: annotation files in, records out, without decoding any image."""
