"""Bad inputs of every kind, each with what must become of it, in one table."""
