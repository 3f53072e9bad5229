"""Types that several packages share."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

RgbImage: TypeAlias = NDArray[np.uint8]
"""[row, column, RGB]."""

Mask: TypeAlias = NDArray[np.bool_]
"""[row, column]."""

FloatMap: TypeAlias = NDArray[np.float32]
"""[row, column]; NaN where there is no value."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with how much is done, and how much there is in all."""
