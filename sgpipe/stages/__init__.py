"""Stages: records in, records out. A stage knows nothing about Ray."""
