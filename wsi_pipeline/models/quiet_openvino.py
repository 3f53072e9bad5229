"""OpenVINO, imported so that it tells nobody.

Its import sends an event to its makers, and writes a lasting id into the user's home, where the package
openvino-telemetry, which pip installs along, is found: https://docs.openvino.ai, "OpenVINO Telemetry". The documented
way out of it, `opt_in_out --opt_out`, writes into the home too and counts for every program. Where that package is not
installed OpenVINO takes a stub in its place: so it is out of sight while OpenVINO is imported, for this process alone.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

TELEMETRY = "openvino_telemetry"


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """While the block runs, the telemetry package cannot be imported."""
    known = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # Python's way to say: there is none
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]
        if known is not None:
            sys.modules[TELEMETRY] = known


with _without_telemetry():
    import openvino as openvino
    from openvino import opset13 as ops
    from openvino.frontend import FrontEndManager as FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder as TorchScriptPythonDecoder

__all__ = ["FrontEndManager", "TorchScriptPythonDecoder", "openvino", "ops"]
