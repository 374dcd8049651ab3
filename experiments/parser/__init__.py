"""How the learned parser of captions is trained."""
