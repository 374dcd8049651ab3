"""Bytes from anywhere: this disk, object stores, archives and the Hugging Face hub, and images by
their names there.
"""
