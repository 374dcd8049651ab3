"""Stages: records in, records out. A stage knows nothing of Ray."""
