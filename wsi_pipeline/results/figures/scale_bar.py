"""How long a scale bar is."""

import math


def round_length(longest: float) -> float:
    """The longest of 1, 2 and 5 times a power of ten up to `longest`.

    >>> round_length(3.7), round_length(0.1), round_length(0.99)
    (2.0, 0.1, 0.5)
    """
    power = 10.0 ** math.floor(math.log10(longest))
    return max(power * step for step in (1, 2, 5) if power * step <= longest * (1 + 1e-9))


def length_text(length_mm: float) -> str:
    """The length in the unit that people read.

    >>> length_text(2.0), length_text(0.2)
    ('2 mm', '200 µm')
    """
    return f"{length_mm:g} mm" if length_mm >= 1 else f"{length_mm * 1000:g} µm"
