import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.base.errors import ConfigError
from wsi_pipeline.base.options import Field, options, options_from_dict, options_to_dict
from wsi_pipeline.pipeline.config import InferConfig, TileConfig, TileGridOptions, load_config
from wsi_pipeline.tiling.grid import GridOptions
from wsi_pipeline.tiling.tissue import TissueOptions

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

grids = st.builds(
    GridOptions,
    patch_px=st.none() | st.integers(1, 1000),
    stride_px=st.none() | st.integers(1, 1000),
    mpp=st.none() | st.floats(0.05, 20),
    min_tissue=st.floats(0.01, 1),
    max_rejected=st.floats(0.01, 1),
    block_px=st.integers(256, 10_000),
)


@given(st.builds(InferConfig, grid=grids, max_unreadable=st.floats(0, 1)))
def test_dumping_and_loading_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, config: InferConfig
) -> None:
    path = tmp_path_factory.mktemp("config") / "infer.yaml"
    path.write_text(yaml.safe_dump(options_to_dict(config)))
    assert load_config(InferConfig, path) == config


@given(grids)
def test_options_survive_as_plain_values(grid: GridOptions) -> None:
    assert options_from_dict(GridOptions, options_to_dict(grid), "here") == grid


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("grid: {patch_pixels: 50}", r"unknown key 'grid\.patch_pixels' \(known here: patch_px, "),
        ("gird: {}", "unknown key 'gird'"),
        ("grid: {patch_px: -3}", r"'grid\.patch_px': found -3, expected.*greater than 0"),
        ("grid: {patch_px: '50'}", r"'grid\.patch_px': found '50', expected.*integer"),
        ("grid: {min_tissue: 2}", r"'grid\.min_tissue': found 2"),
        ("grid: [1]", "'grid': found"),
        ("- 1", "the whole file"),
        ("grid: {mpp: 2026-01-01}", "no option can have"),
        ("a: [", "no YAML"),
        (
            "grid: {block_px: 512}\ntissue: {}\ngrid: {stride_px: 25}",
            "'grid' is given twice, in lines 1 and 3, of which only one",
        ),
        ("grid: {mpp: 4.0, patch_px: 50, mpp: 0.25}", "'mpp' is given twice, in lines 1 and 1"),
        (
            "annotations: {idc_classes: [no]}",
            "takes off, no and false for false: put the word in quotes, 'off'",
        ),
    ],
)
def test_a_wrong_config_names_file_key_and_what_was_found(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_config(TileConfig, path)
    assert "wrong.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        load_config(TileConfig, tmp_path / "gone.yaml")


def test_an_empty_config_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    assert load_config(InferConfig, tmp_path / "empty.yaml") == InferConfig()


def test_the_shipped_configs_say_what_the_commands_do_by_default() -> None:
    assert load_config(TileConfig, CONFIGS / "tile_40x.yaml") == TileConfig()
    assert load_config(InferConfig, CONFIGS / "infer.yaml") == InferConfig()


def test_the_idc_config_differs_in_the_grid_alone() -> None:
    idc = load_config(TileConfig, CONFIGS / "tile_idc.yaml")
    assert idc == TileConfig(grid=TileGridOptions(patch_px=50, mpp=4.0, min_tissue=0.1))


def test_a_grid_said_in_part_keeps_its_scale(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("grid: {min_tissue: 0.3}")
    grid = load_config(TileConfig, tmp_path / "part.yaml").grid
    assert (grid.patch_px, grid.mpp, grid.min_tissue) == (50, 0.25, 0.3)


def test_options_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        TissueOptions().mpp = 3  # type: ignore[misc]


def test_off_without_quotes_is_yamls_false_and_the_message_says_how_to_write_it(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for word in ("off", "no", "false"):
        path.write_text(f"classify: {{dense: {word}}}\n")
        with pytest.raises(
            ConfigError, match=r"'classify\.dense': found False.*put the word in quotes, 'off'"
        ):
            load_config(InferConfig, path)
    path.write_text("classify: {dense: on}\n")
    with pytest.raises(ConfigError, match="takes on, yes and true for true"):
        load_config(InferConfig, path)
    path.write_text("classify: {dense: 'off'}\ncontext: off\n")
    config = load_config(InferConfig, path)
    assert (config.classify.dense, config.context) == ("off", False)


def test_a_key_merged_from_an_anchor_may_be_given_again(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("grid: &g {block_px: 512}\n")
    assert load_config(InferConfig, path).grid.block_px == 512
    path.write_text("tissue: &t {mpp: 8.0}\ngrid: {<<: *t, mpp: 4.0, patch_px: 50}\n")
    config = load_config(TileConfig, path)
    assert (config.tissue.mpp, config.grid.mpp) == (8.0, 4.0)


@options
class Inner:
    a: int = 1


@options
class Outer:
    inner: Inner | None = None
    several: tuple[Inner, ...] = ()
    named: dict[str, Annotated[Inner, Field(description="")]] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"inner": {"b": 1}}, "inner.b"),
        ({"several": [{}, {"b": 1}]}, "several.1.b"),
        ({"named": {"x": {"b": 1}}}, "named.x.b"),
    ],
)
def test_keys_known_within_what_may_be_none_or_many_are_named(values: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=rf"^here: unknown key '{re.escape(place)}' \(known here: a\)$"):
        options_from_dict(Outer, values, "here")
