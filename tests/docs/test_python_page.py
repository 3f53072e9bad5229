"""docs/python.md, the notebook and the examples of docstrings: each runs."""

import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_docs import ROOT, blocks

import wsi_pipeline as wp
from scripts.sample_slide.make_sample_slide import make_sample_slide

PAGE, NOTEBOOK = ROOT / "docs/python.md", ROOT / "docs/tour.ipynb"
MENTIONED = re.compile(r"`?wp\.([A-Za-z_]+)")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample slide where `make demo` puts a large one."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    make_sample_slide(folder / "sample.tiff", 2.0, 2.0)
    return folder


def run(code: str, folder: Path) -> str:
    """What the code prints, run in `folder`."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def examples() -> dict[str, str]:
    """The example in the docstring of each public name that has one."""
    docs = {name: inspect.getdoc(getattr(wp, name)) or "" for name in wp.__all__}
    return {
        name: textwrap.dedent(doc.partition("Example::\n")[2])
        for name, doc in docs.items()
        if "Example::" in doc
    }


@pytest.mark.slow
def test_the_page_runs_from_a_slide_to_a_plot(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "demo").symlink_to(demo)
    parts, skipped = [], []
    for language, text, above in blocks(PAGE):
        if language == "python":
            needed = re.search(r"pip install (\w+)", above)
            missing = needed and find_spec(needed[1]) is None
            (skipped if missing else parts).append(text)
    assert len(parts) + len(skipped) == len(re.findall(r"^```python$", PAGE.read_text(), re.M)) == 8
    out = run("\n".join(parts), tmp_path)
    assert (tmp_path / "map.png").stat().st_size > 5000
    assert (tmp_path / "piece.png").is_file()
    assert "IDC 1" in out
    assert "missing.tiff: no such file" in out


def test_a_plot_takes_ten_lines() -> None:
    first = next(text for language, text, _ in blocks(PAGE) if language == "python")
    assert len([line for line in first.splitlines() if line.strip()]) <= 10


@pytest.mark.slow
def test_the_notebook_runs_top_to_bottom(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "demo").symlink_to(demo)
    (tmp_path / "docs").mkdir()
    out = run("\n".join(code_cells()), tmp_path / "docs")
    assert "scored" in out
    assert (tmp_path / "maps/sample/report.png").is_file()


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert NOTEBOOK.stat().st_size < 20_000


@pytest.mark.slow
def test_the_examples_of_docstrings_run(demo: Path, tmp_path: Path) -> None:
    assert {"infer_slide", "tile_slide", "load_model", "open_slide", "open_result", "Result", "Slide"} == set(
        examples()
    )
    (tmp_path / "demo").symlink_to(demo)
    in_order = sorted(
        examples().items(), key=lambda item: item[0] != "infer_slide"
    )  # the others open its result
    run("import numpy as np\nimport wsi_pipeline as wp\n" + "\n".join(text for _, text in in_order), tmp_path)


def test_names_that_page_and_notebook_mention_are_public() -> None:
    text = PAGE.read_text(encoding="utf-8") + "\n".join(code_cells())
    for name in set(MENTIONED.findall(text)):
        assert name in wp.__all__, f"wp.{name}: no such public name"
    table = re.findall(r"^\| (`[^|]+) \|", PAGE.read_text(encoding="utf-8"), re.M)
    attributes = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    assert {"map", "regions", "summary"} <= attributes
    for name in attributes:
        assert hasattr(wp.Result, name) or name in ("folder", "name"), f"Result.{name}: no such attribute"
