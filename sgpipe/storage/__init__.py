"""Shards: Parquet files that exist only once the manifest lists them."""
