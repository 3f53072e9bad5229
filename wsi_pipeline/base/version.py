"""The version of this package, as it was installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("wsi_pipeline")
except PackageNotFoundError:  # a source tree on the path, never installed
    VERSION = "0+unknown"
