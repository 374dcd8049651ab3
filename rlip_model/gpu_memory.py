"""Tell a full GPU from other errors."""

import torch

_OTHER_WORDS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of a GPU is full.

    PyTorch's allocator has an error of its own; CUDA, cuBLAS and cuDNN allocate memory beside it.
    """
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OTHER_WORDS)
    )
