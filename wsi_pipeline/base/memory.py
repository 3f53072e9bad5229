"""Memory that the C library keeps."""

import ctypes
from contextlib import suppress


def release_free_memory() -> None:
    """Give freed memory back to the system, which the C library else keeps beside what is needed next."""
    with suppress(AttributeError, OSError, TypeError):  # not GNU's C library
        ctypes.CDLL(None).malloc_trim(0)
