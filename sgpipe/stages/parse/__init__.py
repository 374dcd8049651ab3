"""Turn captions into relation triplets."""
