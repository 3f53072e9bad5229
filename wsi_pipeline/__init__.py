"""Whole breast slides in, maps of invasive ductal carcinoma (IDC) out."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("wsi_pipeline")
except PackageNotFoundError:  # a source tree on the path, never installed
    __version__ = "0+unknown"
