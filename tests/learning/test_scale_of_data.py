"""An export carries its scale, and no command takes patches of one scale for those of another."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise
from models import brightness_model
from PIL import Image

from wsi_pipeline.base.errors import DataError, ScaleError, UsageError
from wsi_pipeline.base.files import write_json
from wsi_pipeline.base.images import png_bytes
from wsi_pipeline.cli import classify_images, evaluate_model, explore_patches, train_model
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.inference.images import FailedImage, ImageScore, score_images
from wsi_pipeline.learning.datasets import SplitOptions, load_side, load_split
from wsi_pipeline.learning.datasets.layouts import list_images
from wsi_pipeline.models.card import Stain
from wsi_pipeline.models.model import load_model
from wsi_pipeline.pipeline.config import InferConfig, TileConfig, load_config
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.pipeline.tile import tile_slide
from wsi_pipeline.results.opened import open_result
from wsi_pipeline.tiling.export_info import EXPORT_FILE, ExportInfo
from wsi_pipeline.tiling.grid import GridOptions

PX = 8
SPLIT = SplitOptions(val_patients=("s2",))


def export(
    folder: Path, mpp: float, slide: str = "s1", says: str = "both", px: int = PX, each: int = 6
) -> Path:
    """What tile-slides leaves of a slide; its scale in `export.json`, in the PNGs, in both or nowhere."""
    place = folder / slide / "export" / slide
    for label in (0, 1):
        (place / str(label)).mkdir(parents=True)
        for i in range(each):
            rgb = noise(px, px, seed=i + label * each) // 2 + 120 * label
            data = png_bytes(Image.fromarray(rgb), mpp if says in ("both", "PNGs") else None)
            (place / str(label) / f"{slide}_x{i}_y0_class{label}.png").write_bytes(data)
    if says in ("both", "file"):
        info = ExportInfo(slide, f"content of {slide}", px, px, mpp, (0.3, 0.5, 0.3), 64)
        write_json(place / EXPORT_FILE, info.as_json())
    return place


def exports(folder: Path, mpp: float, **options) -> Path:
    export(folder, mpp, "s1", **options)
    export(folder, mpp, "s2", **options)
    return folder


@pytest.mark.parametrize(
    ("says", "words"), [("both", "4 um/px (export.json)"), ("PNGs", "4 um/px (the PNGs)")]
)
def test_the_scale_of_an_export_is_known_from_its_file_or_its_pngs(tmp_path, says, words):
    scale = list_images(exports(tmp_path, 4.0, says=says)).scale
    assert (scale.words, scale.width_px) == (words, PX)


def test_patches_sorted_into_class_folders_keep_their_scale(tmp_path):
    place = export(tmp_path / "from", 4.0)
    shutil.copytree(place / "0", tmp_path / "sorted/benign")
    shutil.copytree(place / "1", tmp_path / "sorted/malignant")
    listing = list_images(tmp_path / "sorted")
    assert (listing.layout, listing.scale.words) == ("class folders", "4 um/px (the PNGs)")


def test_a_screens_dots_per_inch_are_no_scale(tmp_path):
    for name in ("benign", "malignant"):
        (tmp_path / name).mkdir()
        Image.fromarray(noise(PX, PX)).save(tmp_path / name / "a.png", dpi=(96, 96))
    assert list_images(tmp_path).scale is None


def test_two_scales_in_one_set_are_refused(tmp_path):
    export(tmp_path, 4.0, "s1")
    export(tmp_path, 0.25, "s2")
    with pytest.raises(DataError, match=r"two scales, 4 um/px .* and 0\.25"):
        list_images(tmp_path)


def test_of_part_of_a_set_the_scale_may_be_unknown_and_it_says_so(tmp_path):
    export(tmp_path, 4.0, "s1")
    export(tmp_path, 4.0, "s2", says="nowhere")
    assert list_images(tmp_path).scale.words == "4 um/px (export.json, of 12 of 24 images)"


@pytest.mark.parametrize(
    "text", ["{", '{"kind": "patches of tile-slides", "format": 99}', '{"kind": "patches of tile-slides"}']
)
def test_a_damaged_or_later_file_is_refused_and_another_programs_is_not_ours(tmp_path, text):
    place = export(tmp_path, 4.0)
    (place / EXPORT_FILE).write_text(text)
    with pytest.raises(DataError, match=r"export\.json: does not say"):
        list_images(tmp_path)
    (place / EXPORT_FILE).write_text('{"kind": "an app\'s settings"}')
    assert list_images(tmp_path).scale.words == "4 um/px (the PNGs)"


@pytest.mark.parametrize(("mpp", "fits"), [(4.0, True), (4.03, True), (4.05, False), (0.25, False)])
def test_patches_beyond_one_percent_of_the_scale_wanted_are_refused(tmp_path, mpp, fits):
    folder = exports(tmp_path / "data", 4.0)
    for load in (
        lambda: load_split(folder, PX, SPLIT, tmp_path / "cache", mpp=mpp),
        lambda: load_side(folder, PX, "all", SPLIT, tmp_path / "cache", mpp=mpp),
    ):
        if fits:
            load()
            continue
        with pytest.raises(ScaleError, match=rf"found patches of 4 um/px \(export\.json\), expected {mpp:g}"):
            load()


def test_squeezed_patches_are_of_the_scale_that_comes_out(tmp_path):
    folder = exports(tmp_path / "data", 4.0)
    squeezed = SplitOptions(val_patients=("s2",), resize=True)
    load_split(folder, PX // 2, squeezed, tmp_path / "cache", mpp=8.0)
    with pytest.raises(ScaleError, match="8 um/px"):
        load_split(folder, PX // 2, squeezed, tmp_path / "cache", mpp=4.0)


def config(folder: Path, mpp: float, px: int = PX) -> Path:
    path = folder / "train.yaml"
    path.write_text(
        f"name: t\narchitecture: plain_cnn\narchitecture_options: {{input_px: {px}, widths: [4], dense: 4}}\n"
        f"patch_px: {px}\nmpp: {mpp}\nepochs: 1\nbatch_size: 4\nbf16: false\nsplit: {{val_patients: [s2]}}\n"
    )
    return path


def test_training_refuses_another_scale_and_its_card_says_what_is_known(
    tmp_path, capsys, caplog, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def train(data: Path, mpp: float) -> int:
        given = ["--config", str(config(tmp_path, mpp)), "--data", str(data), "--out", str(tmp_path / "out")]
        return train_model.main([*given, "--device", "cpu"])

    data = exports(tmp_path / "data", 4.0)
    assert train(data, 0.25) == 2
    assert (
        "found patches of 4 um/px (export.json), expected 0.25, as the config says" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
    assert train(data, 4.0) == 0
    card = json.loads((tmp_path / "out/t.json").read_text())
    assert card["training"]["data_scale"] == "4 um/px (export.json)"
    shutil.rmtree(tmp_path / "out")
    caplog.set_level("INFO")
    assert train(exports(tmp_path / "plain", 4.0, says="nowhere"), 4.0) == 0
    card = json.loads((tmp_path / "out/t.json").read_text())
    assert card["training"]["data_scale"] == "not known, taken as the config's"
    assert "scale of the patches: not known, taken as the config's" in caplog.text


def test_a_model_is_not_evaluated_on_patches_of_another_scale(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def evaluate(data: Path, name: str) -> int:
        given = ["--model", "idc_default", "--data", str(data), "--split", "all"]
        return evaluate_model.main([*given, "--out", str(tmp_path / name), "--device", "cpu"])

    assert evaluate(exports(tmp_path / "fine", 0.25, px=50), "a") == 2
    assert (
        "found patches of 0.25 um/px (export.json), expected 4, as the model says" in capsys.readouterr().err
    )
    assert evaluate(exports(tmp_path / "right", 4.0, px=50), "b") == 0
    assert json.loads((tmp_path / "b/metrics.json").read_text())["data"]["scale"] == "4 um/px (export.json)"
    assert "Scale of the patches: 4 um/px (export.json)" in (tmp_path / "b/index.html").read_text()


def test_explore_patches_says_the_scale_and_that_a_config_has_another(tmp_path, capsys):
    data, page = exports(tmp_path / "data", 4.0), tmp_path / "page.html"
    assert explore_patches.main([str(data), "--out", str(page)]) == 0
    assert "scale of the images: 4 um/px (export.json)" in capsys.readouterr().out
    assert "Scale: 4 um/px (export.json)" in page.read_text()
    assert explore_patches.main([str(data), "--out", str(page), "--config", str(config(tmp_path, 0.25))]) == 0
    assert "Images of another scale: 24. found patches of 4 um/px" in capsys.readouterr().out


def coloured_model():
    """Brightness, after each slide's stain is brought to that of a card."""
    model = brightness_model(mpp=4.0)
    stain = Stain(od_mean=(0.2, 0.4, 0.2), od_std=(0.1,) * 3, od_patient_std=(0.1,) * 3)
    return replace(model, card=replace(model.card, stain=stain, stain_normalisation=0.7))


@pytest.fixture
def classifier() -> Classifier:
    return Classifier([coloured_model()], torch.device("cpu"), ClassifyOptions(precision="fp32"))


def scored(results) -> list[ImageScore]:
    results = list(results)
    assert all(isinstance(result, ImageScore) for result in results)
    return results


def test_pictures_of_another_scale_are_not_classified(classifier, tmp_path):
    [picture, *_] = sorted((export(tmp_path, 0.25, px=50) / "1").iterdir())
    for options, said in (
        ({}, r"found 0\.25 um/px \(export\.json\), expected the model's 4; give --mpp 0\.25"),
        ({"squeeze": True}, r"squeezed to 0\.25\), expected the model's 4"),
        ({"mpp": 1.0}, r"found 0\.25 um/px \(export\.json\), expected 1 as --mpp says"),
    ):
        [failed] = score_images([picture], classifier, **options)
        assert isinstance(failed, FailedImage)
        with pytest.raises(ScaleError, match=said):
            raise failed.error


def test_pictures_say_whose_stain_they_were_normalised_by(classifier, tmp_path, capsys):
    pictures = sorted((export(tmp_path / "e", 4.0, px=50) / "1").iterdir())
    plain = tmp_path / "plain"
    plain.mkdir()
    for picture in pictures:
        Image.open(picture).save(plain / picture.name)
    alone = sorted(plain.iterdir())
    of_slide, by_itself = scored(score_images(pictures, classifier)), scored(score_images(alone, classifier))
    together = scored(score_images(alone, classifier, one_slide=True))
    mixed = scored(score_images([*pictures, *alone], classifier, one_slide=True))
    assert {s.stain_from for s in of_slide} == {s.stain_from for s in mixed} == {"of the slide (export.json)"}
    assert {s.stain_from for s in by_itself} == {"of the picture by itself"}
    assert {s.stain_from for s in together} == {"of these 6 pictures"}
    means = [np.array([s.mean for s in scores]) for scores in (of_slide, by_itself, together)]
    assert np.abs(means[0] - means[1]).max() > 0.01
    assert np.abs(means[1] - means[2]).max() > 0.01
    assert [s.mean for s in mixed] == [*means[0], *means[0]]


def test_one_slide_is_not_said_of_patches_of_two(classifier, tmp_path):
    exports(tmp_path, 4.0, px=50)
    with pytest.raises(UsageError, match=r"patches of 2 slides \(s1, s2\), expected pictures of one"):
        list(score_images(sorted(tmp_path.rglob("*.png")), classifier, one_slide=True))


def test_the_table_says_which_stain_and_scale_were_used(tmp_path, capsys):
    place = export(tmp_path / "e", 4.0, px=50)
    out = ["--json", str(tmp_path / "o.json"), "--csv", str(tmp_path / "o.csv")]
    assert classify_images.main([str(place / "1"), *out]) == 0
    said = capsys.readouterr().out
    assert "stain: of the slide (export.json)\nscale: export.json\n" in said
    [row, *_] = json.loads((tmp_path / "o.json").read_text())["images"]
    assert (row["stain_from"], row["scale_from"]) == ("of the slide (export.json)", "export.json")
    assert "of the slide (export.json),export.json" in (tmp_path / "o.csv").read_text()
    Image.fromarray(noise(50, 50)).save(tmp_path / "a.png")
    assert classify_images.main([str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr().out
    assert "stain: of the picture by itself\nscale: not known, taken as the model's\n" in said
    assert classify_images.main([str(tmp_path / "a.png"), "--one-slide"]) == 0
    assert "stain: of this 1 picture" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["breast_40x.svs", "cmu_1_small_region.svs"])
def test_exported_patches_get_the_probabilities_that_their_slides_map_has(shared, tmp_path, name):
    slide, config = shared / "data/slides" / name, InferConfig(grid=GridOptions(stride_px=50))
    shipped = Classifier([load_model("idc_default")], torch.device("cpu"), config.classify)
    result = open_result(infer_slide(slide, tmp_path / "maps", config, shipped).folder)
    tiles = tile_slide(slide, tmp_path / "tiles", load_config(TileConfig, "tile_idc"), export=True).folder
    pictures = sorted((tiles / "export" / slide.stem / "unlabelled").iterdir())
    assert len(pictures) == len(result.patches.x0)
    scores = scored(score_images(pictures, shipped))
    found = {score.path.stem: score.mean for score in scores}
    cell_px = 200 / result.summary["mpp"][0]
    of_map = {
        f"{slide.stem}_x{x}_y{y}": result.patch_map[round(y / cell_px), round(x / cell_px)]
        for x, y in zip(result.patches.x0.tolist(), result.patches.y0.tolist(), strict=True)
    }
    assert found == pytest.approx(of_map, abs=1e-3)
    alone = tmp_path / "alone"  # as it was: without the manifest each has a stain of its own
    shutil.copytree(pictures[0].parent, alone)
    apart = scored(score_images(sorted(alone.iterdir()), shipped))
    assert max(abs(score.mean - of_map[score.path.stem]) for score in apart) > 0.05
