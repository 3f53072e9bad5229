"""infer-slide as a process of its own: with sockets forbidden, and with Python's -O."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import write_slide
from test_infer import section

ROOT = Path(__file__).resolve().parents[2]

# Python tells this hook of every name looked up and every socket that reaches out, whoever asks: openvino's makers are
# told in a thread that keeps errors to itself, so what was tried is written down too. A socket that is only made
# reaches nobody: asyncio, which zarr runs, wakes itself by a pair of them.
FORBID = """
import sys
def forbid(event, arguments):
    if event.startswith("socket.") and event not in ("socket.gethostname", "socket.__new__"):
        with open(sys.argv[1], "a") as file:
            print(event, arguments, file=file)
        raise OSError("sockets are forbidden here")
sys.addaudithook(forbid)
"""
INFER = "from wsi_pipeline.cli.infer_slide import main; sys.exit(main(sys.argv[2:]))"


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "a.tiff"
    return write_slide(path, section(500, 600), mpp=(4.0, 4.0), factors=(1,))


def run(code: str, home: Path, *arguments: object, options: tuple[str, ...] = ()) -> str:
    """What a Python in an empty home says while it runs the code; it must end well."""
    home.mkdir(exist_ok=True)
    unset = {
        "CI",
        "GITHUB_ACTIONS",
        "TF_BUILD",
        "JENKINS_URL",
        "PYTHONOPTIMIZE",
    }  # where telemetry is off by itself
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *options, "-c", code, *map(str, arguments)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def quiet(slide: Path) -> Path:
    """A folder in which infer-slide ran with sockets forbidden: `home`, `out`, and in `tried` what it tried."""
    folder = slide.parent
    run(FORBID + INFER, folder / "home", folder / "tried", slide, "--out", folder / "out")
    return folder


def test_infer_slide_opens_no_socket_and_leaves_nothing_in_the_home(quiet: Path) -> None:
    assert not (quiet / "tried").exists(), (quiet / "tried").read_text()
    assert not (quiet / "home/intel").exists()
    assert (quiet / "out/a/summary.json").exists()


def test_openvino_itself_would_open_one(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("openvino_telemetry")
    home, tried = tmp_path / "home", tmp_path / "tried"
    run(FORBID + "import openvino", home, tried)
    assert tried.exists() or (home / "intel").exists()
    # Imported for us, it does not; and whoever wants its telemetry afterwards has it.
    tried.unlink(missing_ok=True)
    quietly = "import wsi_pipeline.models.quiet_openvino, openvino, openvino_telemetry"
    run(FORBID + quietly, tmp_path / "other", tried)
    assert not tried.exists()
    assert not (tmp_path / "other/intel").exists()


def test_without_asserts_the_map_is_the_same(slide: Path, quiet: Path, tmp_path: Path) -> None:
    again = "import sys;" + INFER
    for _ in ("a new store", "one that is there"):
        run(again, tmp_path / "home", "", slide, "--out", tmp_path / "out", options=("-O",))
    with_asserts, without = (
        zarr.open_array(out / "a/slide.zarr/heatmap/0", mode="r")[...]
        for out in (quiet / "out", tmp_path / "out")
    )
    assert np.isfinite(with_asserts).any()
    assert np.array_equal(with_asserts, without, equal_nan=True)


def test_windows_is_said_to_be_unsupported_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; sys.platform = 'win32'\n"
        "try:\n    import wsi_pipeline\nexcept ImportError as error:\n    print(error)"
    )
    assert "does not run on Windows; use it on Linux" in run(code, tmp_path / "home")
