"""Datasets in the hub's form: Parquet files with an image and its boxes in each row, read without unpacking them."""
