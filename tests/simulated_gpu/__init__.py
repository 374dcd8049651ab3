"""A simulated GPU for tests: devices, dtypes and waits are those of a GPU, the numbers those of the
CPU.
"""
