"""All commands answer, speak and end alike."""

import configparser
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import noise, write_slide
from PIL import Image

import wsi_pipeline
from wsi_pipeline.base.errors import JobError, ModelError, OutputError
from wsi_pipeline.cli.common import command_parser, run_command

ROOT = Path(__file__).parents[2]
# What a command needs to be parsed, and a config that it reads first of all, or a picture that it reads.
COMMANDS = {
    "tile-slides": ["slide.tiff", "--out", "out", "--config", "FIFO"],
    "infer-slide": ["slide.tiff", "--out", "out", "--config", "FIFO"],
    "train-model": ["--data", "data", "--out", "out", "--config", "FIFO"],
    "tune-model": ["--data", "data", "--out", "out", "--config", "FIFO"],
    "train-context": ["--model", "idc_default", "--slides", "data", "--out", "out", "--config", "FIFO"],
    "evaluate-model": ["--data", "data", "--out", "out", "--config", "FIFO"],
    "explore-patches": ["data", "--config", "FIFO"],
    "classify-images": ["data"],
    "export-map": ["run", "--exports", "asap"],
    "view-slides": ["maps"],
    "models": ["list"],
    "monitor": ["maps"],
}
COMPUTES = COMMANDS.keys() - {"tile-slides", "explore-patches", "export-map", "models", "monitor"}
# Packages that take longer to import than --help may take.
SLOW = (
    *("torch", "torchvision", "openvino", "optuna", "zarr", "numcodecs", "dask", "distributed", "matplotlib"),
    *("shapely", "scipy", "skimage", "numpy", "pydantic", "PIL", "openslide", "tifffile", "jinja2", "tqdm"),
)


def module_of(command: str) -> str:
    return f"wsi_pipeline.cli.{command.replace('-', '_')}"


def start(
    command: str, *arguments: object, unbuffered: bool = False, **streams: object
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module_of(command), *map(str, arguments)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},  # type: ignore[call-overload]
        text=True,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1" if unbuffered else ""},
    )


def test_every_command_of_the_package_is_here() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].split("\n")
    scripts = dict(line.split(" = ") for line in lines if line)
    assert scripts == {command: f"{module_of(command)}:main" for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_wrong_arguments_are_answered_before_anything_slow_is_imported(command: str) -> None:
    code = f"""
import sys
from {module_of(command)} import main
for arguments, wanted in (["--help"], 0), (["--version"], 0), (["--no-such-argument"], 2):
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == wanted, end.code
print("imported:", sorted(set({SLOW}) & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "imported: []"
    assert f"{command} {wsi_pipeline.__version__}\n" in run.stdout
    assert f"usage: {command} " in run.stdout
    example = run.stdout.partition("\nexample:\n")[2]
    assert example.startswith(f"  {command} ")
    assert "../" not in run.stdout
    assert "-v, --verbose" in run.stdout
    assert ("--device D" in run.stdout) == (command in COMPUTES)
    assert f"{command}: error: " in run.stderr


def test_a_model_that_is_none_is_refused_before_torch_is_imported() -> None:
    calls = {
        "infer-slide": ["a.svs", "--out", "out", "--model", "mien"],
        "evaluate-model": ["--data", "idc", "--out", "out", "--against", "mien"],
        "classify-images": ["a.png", "--model", "mien"],
        "train-model": ["--config", "a", "--data", "b", "--out", "out", "--from", "mien"],
        "train-context": ["--model", "mien", "--slides", "b", "--out", "out"],
        "models": ["show", "mien"],
    }
    code = f"""
import importlib, sys
for module, arguments in {[(module_of(name), given) for name, given in calls.items()]}:
    assert importlib.import_module(module).main(arguments) == 2, module
print("torch" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
    assert run.stderr.count("error: model 'mien' is not known; expected a shipped name (idc_default)") == len(
        calls
    )


@pytest.mark.parametrize("command", ["train-model", "tune-model"])
def test_the_folder_of_patches_is_asked_for_and_never_assumed(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(module_of(command)).main(["--config", "a.yaml", "--out", "out"])
    assert "the following arguments are required: --data" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(COMPUTES))
def test_a_gpu_that_is_not_there_is_refused_alike_by_every_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_slide(tmp_path / "slide.tiff", noise(600, 600), mpp=(4.0, 4.0))
    (tmp_path / "data").mkdir()
    Image.fromarray(noise(50, 50)).save(tmp_path / "data/picture.png")
    (tmp_path / "config.yaml").write_text("{}" if command != "tune-model" else "seed: {tune: {choices: [1]}}")
    arguments = ["config.yaml" if word == "FIFO" else word for word in COMMANDS[command]]
    main: Callable[[list[str]], int] = importlib.import_module(module_of(command)).main
    assert main([*arguments, "--device", "cuda:77"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: --device cuda:77: this machine has ")
    assert complaint.count("\n") == 1
    assert not (tmp_path / "out").exists()


@contextmanager
def fifo(path: Path) -> Iterator[Callable[[], int]]:
    """A file that keeps its reader waiting; the call waits for the reader."""
    os.mkfifo(path)
    held: list[int] = []

    def wait() -> int:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                held.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:  # nobody has it open to read
                time.sleep(0.02)
            else:
                return held[0]
        raise TimeoutError(path)

    try:
        yield wait
    finally:
        for handle in held:
            os.close(handle)


@pytest.mark.parametrize("command", [command for command, words in COMMANDS.items() if "FIFO" in words])
def test_ctrl_c_ends_every_command_with_130_and_one_line(command: str, tmp_path: Path) -> None:
    write_slide(tmp_path / "slide.tiff", noise(600, 600), mpp=(4.0, 4.0))
    (tmp_path / "data").mkdir()
    with fifo(tmp_path / "waits.png") as wait:
        arguments = [str(tmp_path / "waits.png") if word == "FIFO" else word for word in COMMANDS[command]]
        run = start(command, *arguments, cwd=tmp_path)
        wait()
        time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        run.wait(timeout=20)
    said, complaint = run.communicate(timeout=20)
    assert run.returncode == 130, complaint
    assert complaint.startswith("interrupted")
    assert complaint.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not said


def test_ctrl_c_among_pictures_keeps_the_rows_that_are_done(tmp_path: Path) -> None:
    Image.fromarray(noise(2000, 2000)).save(tmp_path / "0.png")
    for number in range(1, 100):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    run = start("classify-images", tmp_path, "--mpp", "4", unbuffered=True)
    assert run.stdout is not None
    head = run.stdout.readline()
    run.send_signal(signal.SIGINT)
    said, complaint = run.communicate(timeout=60)
    assert run.returncode == 130, complaint
    assert complaint.splitlines()[-1].startswith("interrupted")
    assert all(line.count(",") == head.count(",") for line in said.splitlines())
    assert said.count("\n") < 100


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ModelError("m.json: no card"), 2, "error: m.json: no card\n"),
        (JobError("the scheduler is gone"), 1, "error: the scheduler is gone\n"),
        (OutputError("a.png: cannot be written"), 1, "error: a.png: cannot be written\n"),
        (PermissionError(13, "Permission denied", "a.csv"), 1, "error: a.csv: Permission denied\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on\n"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(_: object) -> int:
        raise error

    parser = command_parser("some-command", "Does it.", "  some-command")
    before = signal.getsignal(signal.SIGINT)
    try:
        assert run_command(parser, work, [], after_stop="the same command goes on") == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == line


def test_of_several_processes_the_first_speaks_for_all_and_the_others_of_what_only_they_met(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = command_parser("some-command", "Does it.", "  some-command")
    for error, said in (
        (ModelError("no card"), ""),
        (OutputError("a.png: cannot be written"), "process 2: error: a.png: cannot be written\n"),
    ):

        def work(_: object, error: Exception = error) -> int:
            raise error

        assert run_command(parser, work, [], process=2) > 0
        assert capsys.readouterr().err == said


def labelled(folder: Path, count: int) -> Path:
    """A set of labelled patches."""
    for patient in "ab":
        for label in "01":
            (folder / patient / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((50, 50, 3), 10 * number, np.uint8)
                name = f"{patient}_idx5_x{50 * number + 1}_y1_class{label}.png"
                Image.fromarray(pixels).save(folder / patient / label / name)
    return folder


STOPPED = "stopped: what it says cannot be written to stdout: No space left on device\n"
LOST = "error: what it says cannot be written to stdout: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize(
    ("command", "unbuffered", "complaint"),
    [
        ("explore-patches", False, LOST),
        ("explore-patches", True, STOPPED),
        ("--help", False, LOST),
        ("--help", True, LOST),
    ],
)
def test_a_full_stdout_is_a_line_and_no_traceback(
    command: str, unbuffered: bool, complaint: str, tmp_path: Path
) -> None:
    if command == "explore-patches":
        arguments: list[object] = [labelled(tmp_path / "set", 3), "--out", tmp_path / "out.html"]
    else:
        command, arguments = "train-model", ["--help"]
    with Path("/dev/full").open("w") as full:
        run = start(command, *arguments, unbuffered=unbuffered, stdout=full)
        assert run.communicate()[1] == complaint
    assert run.returncode == 1


@pytest.mark.parametrize("how", ["closed", "no reader"])
def test_a_command_whose_output_nobody_reads_does_its_work(how: str, tmp_path: Path) -> None:
    data, out = labelled(tmp_path / "set", 3), tmp_path / "out.html"
    if how == "closed":
        command = f"exec {sys.executable} -m {module_of('explore-patches')} {data} --out {out} >&-"
        run = subprocess.Popen(["sh", "-c", command], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    else:
        run = start("explore-patches", data, "--out", out)
        assert run.stdout
        run.stdout.close()
    assert run.stderr
    assert run.stderr.read() == ""
    assert run.wait() == 0
    assert out.stat().st_size > 10_000
