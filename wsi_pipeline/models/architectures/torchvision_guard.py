"""torchvision, also where its compiled operators do not load (a build made for another torch).

    from wsi_pipeline.models.architectures.torchvision_guard import torchvision

`import torchvision` says what its operators `nms` and `qnms` do without data, and fails where the compiled
library has not declared them. Declaring the two makes the rest usable; calling them stays an error.
"""

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# Declarations live as long as this object does.
_declarations = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]


def declare_missing() -> list[str]:
    """The operators that were missing and are declared now; empty where torchvision is whole."""
    missing = [name for name in ("nms", "qnms") if not hasattr(torch.ops.torchvision, name)]
    for name in missing:
        _declarations.define(name + _SIGNATURE)  # type: ignore[no-untyped-call]
    return missing


try:
    import torchvision
except RuntimeError as error:
    # Only after a failed import: declared before it, the two would clash with the compiled library's own.
    if not ("torchvision::" in str(error) and declare_missing()):
        raise
    import torchvision

__all__ = ["declare_missing", "torchvision"]
