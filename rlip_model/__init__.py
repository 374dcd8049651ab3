"""The RLIPv2 network in plain PyTorch: no Ray, no Parquet, no command line."""
