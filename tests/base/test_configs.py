from pathlib import Path

import pytest

from wsi_pipeline.base.configs import config_folder, config_names, find_config
from wsi_pipeline.base.errors import ConfigError
from wsi_pipeline.cli.explore_patches import load_patch_options
from wsi_pipeline.learning.training.context import ContextTrainOptions
from wsi_pipeline.learning.training.options import load_train_options, read_train_config
from wsi_pipeline.pipeline.config import InferConfig, TileConfig, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_every_shipped_config_has_a_name_and_loads_by_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # no folder configs/ here
    tiling = ("tile_40x", "tile_idc", "tile_idc_throughout")
    kinds: dict[str, type] = {"infer": InferConfig, **dict.fromkeys(tiling, TileConfig)}
    kinds["default_model/context"] = ContextTrainOptions
    names = config_names()
    assert {"tile_idc", "infer", "train/resnet18", "default_model/context"} <= set(names)
    for name in names:
        loaded = load_config(kinds[name], name) if name in kinds else load_train_options(name)
        file = config_folder() / f"{name}.yaml"
        assert loaded == (load_config(kinds[name], file) if name in kinds else load_train_options(file))


def test_every_command_that_takes_a_config_takes_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_config(TileConfig, "tile_idc").grid.mpp == 4
    assert load_config(TileConfig, "tile_idc_throughout").annotations.annotated_throughout
    assert read_train_config("train/resnet18")["name"] == "resnet18"
    split, patches = load_patch_options("train/resnet18")
    assert (split.val, patches) == (("val",), (50, 4.0))


def test_in_a_clone_the_names_are_those_of_the_folder_configs():
    assert config_folder() == CONFIGS
    assert find_config(Path("train/resnet18")) == CONFIGS / "train" / "resnet18.yaml"


def test_a_file_of_that_name_goes_before_the_shipped_config(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tile_idc").write_text("grid: {mpp: 2.0}")
    assert load_config(TileConfig, "tile_idc").grid.mpp == 2


@pytest.mark.parametrize("name", ["tile_idx", "train", "configs/tile_idc.yaml", "tile_idc.yaml", ""])
def test_an_unknown_name_lists_what_there_is(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"one of: .*tile_40x, tile_idc, .*train/resnet18") as caught:
        find_config(name)
    assert str(caught.value).startswith(name)
