"""From a network's logits to calibrated probabilities of IDC: a temperature and a shift of the log odds.

Temperature scaling as of Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. In numpy, and bit for bit
the same wherever a row stands; `model.calibrated` is its like on tensors.
"""

from functools import reduce

import numpy as np
from numpy.typing import NDArray


def log_odds(logits: NDArray[np.floating], idc: int) -> NDArray[np.float64]:
    """Log odds, float [N], of the class `idc` against all others, of logits [N, classes]."""
    exact = logits.astype(np.float64)
    others = [exact[:, i] for i in range(exact.shape[1]) if i != idc]
    return np.asarray(exact[:, idc] - reduce(np.logaddexp, others))


def class_probabilities(
    logits: NDArray[np.floating], temperature: float, log_odds_shift: float, idc: int
) -> NDArray[np.float64]:
    """Probability of each class, float [N, classes], 0 to 1 and 1 in sum, of logits [N, classes], in their order.

    That of IDC is calibrated; the others share what it leaves as the softmax of their logits says.
    """
    scaled = logits.astype(np.float64) / temperature
    others = [scaled[:, i] for i in range(scaled.shape[1]) if i != idc]
    mapped = probability(logits, temperature, log_odds_shift, idc)
    shares = np.exp(scaled - reduce(np.logaddexp, others)[:, None]) * (1 - mapped)[:, None]
    shares[:, idc] = mapped
    return np.asarray(shares)


def probability(
    logits: NDArray[np.floating], temperature: float, log_odds_shift: float, idc: int
) -> NDArray[np.float64]:
    """Calibrated probability of IDC, float [N], 0 to 1, of logits [N, classes]."""
    odds = log_odds(logits / np.float64(temperature), idc) + log_odds_shift
    return np.asarray(np.exp(-np.logaddexp(0, -odds)))
