"""The public names: what `import wsi_pipeline` offers, and what it costs."""

import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import wsi_pipeline as wp
from wsi_pipeline.base import errors

CALLS = {"infer_slide", "load_model", "open_result", "open_slide", "tile_slide"}
VALUES = {
    "Box",
    "Model",
    "Plane",
    "Result",
    "ResultField",
    "ResultHotSpot",
    "ResultRegion",
    "Size",
    "Slide",
    "Status",
}
OPTIONS = {
    *(
        "AnnotationOptions",
        "ArtefactOptions",
        "ClassifyOptions",
        "DelineateOptions",
        "ExportOptions",
        "FieldOptions",
    ),
    *("GridOptions", "InferConfig", "TileConfig", "TileGridOptions", "TissueOptions"),
}


def error_names() -> set[str]:
    return {name for name, value in vars(errors).items() if inspect.isclass(value)}


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_package_offers_its_calls_values_options_and_errors_and_nothing_else() -> None:
    assert set(dir(wp)) == {"__version__"} | CALLS | VALUES | OPTIONS | error_names()
    assert set(wp.__all__) == set(dir(wp)) - {"__version__"}


def test_no_other_public_name_leaks_into_a_fresh_import() -> None:
    out = run_python("import wsi_pipeline as wp; print([n for n in vars(wp) if not n.startswith('_')])")
    assert out.strip() == "[]"


def test_every_error_is_offered() -> None:
    for name in error_names():
        assert name in wp.__all__, f"{name}: add it to wsi_pipeline/__init__.py"
        assert getattr(wp, name) is getattr(errors, name)


def test_every_class_of_options_that_a_config_holds_is_offered() -> None:
    todo, seen = [wp.TileConfig, wp.InferConfig], set()
    while todo:
        cls = todo.pop()
        seen.add(cls.__name__)
        for hint in get_type_hints(cls).values():
            todo += [t for t in (hint, *get_args(hint)) if dataclasses.is_dataclass(t)]
    assert seen == OPTIONS


def test_what_type_checkers_see_is_what_there_is() -> None:
    tree = ast.parse(Path(wp.__file__).read_text(encoding="utf-8"))
    found = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("wsi_pipeline")
        for alias in node.names
    }
    assert found == {name: f"wsi_pipeline.{wp._MODULES[name]}.{name}" for name in wp.__all__}


def test_importing_it_loads_nothing_and_takes_no_time() -> None:
    code = (
        "import sys, time; before = set(sys.modules); began = time.perf_counter(); import wsi_pipeline; "
        "print(time.perf_counter() - began); print(*sorted(set(sys.modules) - before))"
    )
    runs = [run_python(code).splitlines() for _ in range(3)]
    assert min(float(seconds) for seconds, _ in runs) < 0.1
    loaded = {name.partition(".")[0] for name in runs[0][1].split()}
    assert "wsi_pipeline" in loaded
    assert not loaded & {"numpy", "torch", "zarr", "openslide", "shapely", "matplotlib", "pydantic", "yaml"}


def test_tiling_and_opening_load_no_torch() -> None:
    out = run_python(
        "import sys, wsi_pipeline as wp; wp.tile_slide, wp.open_result, wp.open_slide, wp.infer_slide, wp.InferConfig; "
        "print('torch' in sys.modules)"
    )
    assert out.strip() == "False"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'infer_slides'"):
        _ = wp.infer_slides  # type: ignore[attr-defined]


def test_every_public_name_says_what_it_is() -> None:
    for name in CALLS | VALUES | OPTIONS | error_names():
        assert inspect.getdoc(getattr(wp, name)), f"{name}: no docstring"
    for name in CALLS:
        doc = inspect.getdoc(getattr(wp, name)) or ""
        assert "Example::" in doc, f"{name}: no example"
        assert "Raises" in doc or name == "tile_slide", f"{name}: no errors"
