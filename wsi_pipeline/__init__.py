"""Whole breast slides in, maps of invasive ductal carcinoma (IDC) out."""

import sys
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("wsi_pipeline")
except PackageNotFoundError:  # a source tree on the path, never installed
    __version__ = "0+unknown"

if sys.platform == "win32":
    # It locks with fcntl, and brings folders to the disk: neither is there. Better no result than half of one.
    raise ImportError("wsi_pipeline does not run on Windows; use it on Linux, for example in WSL")
