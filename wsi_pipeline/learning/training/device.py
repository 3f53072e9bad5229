"""The device that trains, set to give the same numbers for the same seed."""

import os

import torch

from wsi_pipeline.inference.device import choose_device


def training_device(name: str) -> torch.device:
    """The device that 'auto', 'cpu', 'cuda' or 'cuda:1' names. Raises UsageError when it is not there."""
    # Read by cuBLAS when it starts: without it, its sums may differ from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = choose_device(name)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        # Warns where an operation has no such form (pooling to a fixed size, backwards, as in VGG16).
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Nothing of ours reads what it has not written: filling new memory first would only cost time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        # float32 means float32, not TF32: what the card says of bfloat16 is measured against it.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return device
