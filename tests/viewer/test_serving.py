"""view-slides ends when it is told to."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'viewer'")


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_the_server_without_a_traceback_also_twice(tmp_path: Path, times: int) -> None:
    command = [sys.executable, "-m", "wsi_pipeline.cli.view_slides", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split(" at ")[1].strip()
        with urlopen(f"{address}healthz", timeout=60) as answer:
            assert answer.status == 200
        for _ in range(times):
            server.send_signal(signal.SIGINT)
            time.sleep(0.05)  # else both are one
        _, complaint = server.communicate(timeout=60)
    assert "Traceback" not in complaint
    assert server.returncode in (0, 130), complaint
