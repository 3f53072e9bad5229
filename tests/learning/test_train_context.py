"""Training the context step: it learns what neighbours tell, and never from the patients it is evaluated on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import write_slide
from models import brightness_model
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.special import expit, logit

from wsi_pipeline.base.errors import ConfigError, DataError
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.cli.train_context import main
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.learning.datasets import SplitOptions
from wsi_pipeline.learning.datasets.labelled_slides import LabelledSlide, read_scored, score_slide, turned
from wsi_pipeline.learning.training.context import (
    ContextTrainOptions,
    fit_and_evaluate,
    in_patches,
    split_slides,
    train_context,
)
from wsi_pipeline.models.context import RingOptions
from wsi_pipeline.models.model import build_network, load_model, save_model
from wsi_pipeline.pipeline.config import InferConfig, load_config
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions

PATCH_UM = 200.0
SMALL = ContextTrainOptions(
    kind="rings",
    rings=RingOptions(sigmas=(1.0, 2.5), spread_sigmas=(1.0,), base_sigma=1.0),
    draws=2,
    members=1,
    hidden=6,
    steps=120,
    batch_size=512,
    folds=2,
)


def as_yaml(options: ContextTrainOptions) -> str:
    return yaml.safe_dump(options_to_dict(options))


def mount(seed: int) -> LabelledSlide:
    """Smooth regions of IDC, of which each patch alone tells little."""
    random = np.random.default_rng(seed)
    idc = gaussian_filter(random.normal(size=(30, 36)), 3) > 0.03
    alone = expit(np.where(idc, 1.0, -1.0) + random.normal(0, 2, (2, 30, 36))).astype(np.float32)
    alone[:, random.random(idc.shape) < 0.1] = np.nan
    labels = idc.astype(np.uint8)
    labels[:2] = 255
    return LabelledSlide(str(seed), alone, labels)


MOUNTS = [mount(seed) for seed in range(6)]


def test_the_step_learns_more_than_a_plain_mean_and_is_calibrated():
    step, metrics = fit_and_evaluate(SMALL, MOUNTS[:4], MOUNTS[4:], 0.5, PATCH_UM)
    for side in ("crossfitted", "val"):
        found = metrics[side]
        assert found["context"]["auroc"] > found["gaussian"]["auroc"] > found["alone"]["auroc"] + 0.05
        assert found["context"]["ece"] < min(0.1, found["gaussian"]["ece"])
    assert metrics["thresholds"]["context"] == step.card.threshold
    assert set(metrics["dice_by_slide"]) == {"4", "5"}


def test_a_gaussian_learns_nothing_but_its_calibration():
    step, metrics = fit_and_evaluate(replace(SMALL, kind="gaussian"), MOUNTS[:4], MOUNTS[4:], 0.5, PATCH_UM)
    assert (step.card.kind, dict(step.weights)) == ("gaussian", {})
    for side in ("crossfitted", "val"):
        found = metrics[side]
        assert found["context"]["auroc"] > found["alone"]["auroc"] + 0.05
        assert found["context"]["auroc"] == pytest.approx(found["gaussian"]["auroc"], abs=0.02)
    assert metrics["crossfitted"]["context"]["ece"] < 0.05


def test_a_gaussian_of_probabilities_ranks_as_the_plain_mean_does():
    rings = replace(SMALL.rings, base_of="probability", base_sigma=SMALL.compared_sigma)
    options = replace(SMALL, kind="gaussian", rings=rings)
    step, metrics = fit_and_evaluate(options, MOUNTS[:4], MOUNTS[4:], 0.5, PATCH_UM)
    assert step.card.options.base_of == "probability"
    for side in ("crossfitted", "val"):
        found = metrics[side]
        assert found["context"]["auroc"] == pytest.approx(found["gaussian"]["auroc"], abs=1e-3)
        assert found["context"]["ece"] <= found["gaussian"]["ece"] + 0.01


def test_calibration_is_of_scores_by_networks_that_had_not_seen_the_slides():
    options = replace(SMALL, kind="gaussian")

    def surer(slide: LabelledSlide) -> LabelledSlide:
        """As a network scores what it has learned by heart."""
        known = expit(3 * logit(slide.patch_probability.astype(np.float64)))
        return replace(slide, patch_probability=known.astype(np.float32))

    heart = [surer(slide) for slide in MOUNTS[:4]]
    by_heart, _ = fit_and_evaluate(options, heart, MOUNTS[4:], 0.5, PATCH_UM)
    unseen, measured = fit_and_evaluate(options, heart, MOUNTS[4:], 0.5, PATCH_UM, held_out=MOUNTS[:4])
    as_unseen, expected = fit_and_evaluate(options, MOUNTS[:4], MOUNTS[4:], 0.5, PATCH_UM)
    assert unseen.card == as_unseen.card
    assert measured == expected
    assert by_heart.card.temperature > 1.5 * unseen.card.temperature
    assert measured["val"]["context"]["ece"] < 0.05


def test_the_same_seed_gives_the_same_step_and_the_evaluated_patients_do_not_matter():
    first, _ = fit_and_evaluate(SMALL, MOUNTS[:3], MOUNTS[4:5], 0.5, PATCH_UM)
    again, _ = fit_and_evaluate(SMALL, MOUNTS[:3], MOUNTS[5:], 0.3, PATCH_UM)
    assert first.card == again.card
    assert all(np.array_equal(first.weights[name], again.weights[name]) for name in first.weights)


def test_widths_in_micrometres_are_those_in_patches_of_the_model():
    rings = replace(SMALL.rings, sigmas=(100.0, 200.0, 500.0), spread_sigmas=(250.0,), base_sigma=150.0)
    in_um = replace(SMALL, widths="um", rings=rings, compared_sigma=200.0)
    of_patches = replace(SMALL.rings, sigmas=(0.5, 1.0, 2.5), spread_sigmas=(1.25,), base_sigma=0.75)
    options = replace(SMALL, rings=of_patches)
    found, measured = fit_and_evaluate(in_um, MOUNTS[:3], MOUNTS[4:5], 0.5, PATCH_UM)
    step, expected = fit_and_evaluate(options, MOUNTS[:3], MOUNTS[4:5], 0.5, PATCH_UM)
    assert found.card == step.card
    assert found.card.options == of_patches
    assert measured == expected
    # The same widths are sixteen times as many patches of 12.5 um.
    finer = in_patches(in_um, PATCH_UM / 16)
    assert finer.rings.sigmas == pytest.approx([8, 16, 40])
    assert finer.compared_sigma == pytest.approx(16)


@pytest.mark.parametrize(
    ("widths", "base", "patch_um", "says"),
    [
        (
            "um",
            1.0,
            200.0,
            "found 1 um, 1 um, for patches of 200 um; expected 33.3 to 10,000 um: .* widths: patches",
        ),
        ("um", 1.0, 12.5, "expected 2.08 to 10,000 um"),
        ("patches", 200.0, 200.0, "found 200 patches, 40000 um, .* widths: um"),
        ("patches", 0.1, 12.5, "narrower reaches no neighbour"),
    ],
)
def test_widths_in_the_other_unit_are_refused_before_a_slide_is_scored(widths, base, patch_um, says):
    options = replace(SMALL, widths=widths, rings=replace(SMALL.rings, base_sigma=base))
    with pytest.raises(ConfigError, match=f"rings.base_sigma: .*{says}"):
        in_patches(options, patch_um)


def test_mounts_are_split_by_patient_and_what_is_unknown_is_refused(tmp_path: Path):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("patient,split\na,train\nb,extra\nc,val\nd,test\n")
    assert split_slides(list("abcd"), SplitOptions(), manifest) == (["a", "b"], ["c"])
    named = SplitOptions(val_patients=("b",))
    assert split_slides(list("abc"), named, None) == (["a", "c"], ["b"])
    with pytest.raises(DataError, match="found no patient x"):
        split_slides(["a", "x"], SplitOptions(), manifest)
    with pytest.raises(DataError, match="1 slide to train on and 0 to evaluate on"):
        split_slides(["a"], SplitOptions(), None)
    with pytest.raises(DataError, match="both sides"):
        split_slides(list("abc"), SplitOptions(train=("train", "val"), val=("val",)), manifest)
    with pytest.raises(DataError, match="columns patient and split"):
        split_slides(["a"], SplitOptions(), tmp_path / "none.csv")


def write_labelled_slides(folder: Path) -> None:
    """Slides a, b and c of 6 x 8 patches, the right half of each IDC, and a manifest that keeps c apart."""
    random = np.random.default_rng(0)
    for name in "abc":
        image = random.integers(0, 60, (300, 400, 3)) + np.array([150, 70, 130])
        write_slide(folder / f"{name}.tiff", image.astype(np.uint8), mpp=(4.0, 4.0), factors=(1,))
        labels = np.zeros((300, 400), np.uint8)
        labels[:, 200:] = 1
        Image.fromarray(labels).save(folder / f"{name}_labels.png")
    (folder / "manifest.csv").write_text("patient,split\na,train\nb,train\nc,val\n")


def test_the_command_gives_a_model_its_step_and_says_in_a_line_what_is_missing(tmp_path: Path, capsys):
    network = build_network("residual_cnn", widths=[4, 8], blocks=[1, 1], squeeze=2)
    card = replace(
        brightness_model().card,
        name="small",
        architecture="residual_cnn",
        architecture_options={"widths": [4, 8], "blocks": [1, 1], "squeeze": 2},
    )
    save_model(tmp_path / "small.safetensors", network, card)
    write_labelled_slides(tmp_path)
    (tmp_path / "small.yaml").write_text(as_yaml(replace(SMALL, steps=5, views=2, limits="some")))
    command = ["--model", str(tmp_path / "small.safetensors"), "--slides", str(tmp_path), "--device", "cpu"]
    command += ["--config", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "--manifest" in capsys.readouterr().err
    assert main([*command, "--manifest", str(tmp_path / "manifest.csv")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out/small.safetensors")
    before, after = load_model(tmp_path / "small.safetensors"), load_model(tmp_path / "out/small.safetensors")
    assert after.context is not None
    assert after.card.context.training["train"]["slides"] == ["a", "b"]
    assert after.card.context.training["val"]["slides"] == ["c"]
    assert after.card.context.training["base"] == before.sha256
    assert (before.card.limits, after.card.limits) == ("", "some")
    state = after.network.state_dict()
    assert all(torch.equal(state[name], values) for name, values in before.network.state_dict().items())
    assert after.card.context.training["calibrated_on"] == "the training slides as scored by this network"


def write_scored(folder: Path, slide: LabelledSlide) -> None:
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{slide.patient}.npz", probability=slide.patch_probability, labels=slide.labels)


def test_scores_of_other_networks_are_read_or_refused_in_a_line(tmp_path: Path):
    write_scored(tmp_path / "scores", MOUNTS[0])
    found = read_scored(tmp_path / "scores", "0")
    assert np.array_equal(found.patch_probability, MOUNTS[0].patch_probability, equal_nan=True)
    assert np.array_equal(found.labels, MOUNTS[0].labels)
    with pytest.raises(DataError, match=r"1\.npz: cannot be read .* one such file for each slide"):
        read_scored(tmp_path / "scores", "1")
    (tmp_path / "scores/1.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match=r"1\.npz: cannot be read"):
        read_scored(tmp_path / "scores", "1")
    probability, labels = MOUNTS[0].patch_probability, MOUNTS[0].labels
    for wrong in (
        {"probability": probability[0], "labels": labels},
        {"probability": probability, "labels": labels[1:]},
        {"probability": probability * 2, "labels": labels},
        {"probability": probability, "labels": labels.astype(float)},
        {"probability": np.array([["a"]]), "labels": labels},
        {"probability": probability},
    ):
        np.savez(tmp_path / "scores/1.npz", **wrong)
        with pytest.raises(DataError, match="expected"):
            read_scored(tmp_path / "scores", "1")


def test_scores_of_other_cells_than_the_slides_are_refused(tmp_path: Path):
    write_labelled_slides(tmp_path)
    for name in "ab":
        write_scored(tmp_path / "scores", replace(MOUNTS[0], patient=name))
    classifier = Classifier([brightness_model()], torch.device("cpu"), ClassifyOptions())
    options = replace(SMALL, kind="gaussian")
    with pytest.raises(DataError, match=r"a\.npz: found .* expected a grid of 6 x 8, 24 cells of IDC"):
        train_context(
            options, classifier, tmp_path, tmp_path / "manifest.csv", tmp_path, unseen=tmp_path / "scores"
        )
    unlabelled = replace(MOUNTS[0], labels=np.full_like(MOUNTS[0].labels, 255))
    write_scored(tmp_path / "scores", replace(unlabelled, patient="a"))
    with pytest.raises(DataError, match="found no labelled cell that is scored"):
        read_scored(tmp_path / "scores", "a")


def test_small_perceptrons_are_not_calibrated_on_scores_of_other_networks(tmp_path: Path):
    classifier = Classifier([brightness_model()], torch.device("cpu"), ClassifyOptions())
    with pytest.raises(ConfigError, match="expected kind gaussian"):
        train_context(SMALL, classifier, tmp_path, None, tmp_path / "out", unseen=tmp_path)


def test_a_mount_is_scored_as_its_map_is_and_labelled_by_the_picture_beside_it(tmp_path: Path):
    from wsi_pipeline.inference.device import choose_device

    random = np.random.default_rng(0)
    image = (random.integers(0, 60, (600, 700, 3)) + np.array([150, 70, 130])).astype(np.uint8)
    write_slide(tmp_path / "p1.tiff", image, mpp=(4.0, 4.0), factors=(1,))
    labels = np.full((600, 700), 255, np.uint8)
    labels[100:200, 50:150] = 1
    labels[200:300, 50:150] = 0
    Image.fromarray(labels).save(tmp_path / "p1_labels.png")
    slide, known = tmp_path / "p1.tiff", tmp_path / "p1_labels.png"
    classifier = Classifier([brightness_model()], choose_device("cpu"), ClassifyOptions())
    scored = score_slide(slide, known, classifier, InferConfig(), AnnotationOptions(), views=3)
    assert scored.patch_probability.shape == (3, 12, 14)
    assert (scored.labels[2:4, 1:3] == 1).all()
    assert (scored.labels[4:6, 1:3] == 0).all()
    assert (scored.labels != 255).sum() == 8
    for px in (300, 1200):  # labels are of the whole slide, at any scale
        Image.fromarray(labels).resize((px * 7 // 6, px), Image.Resampling.NEAREST).save(known)
        again = score_slide(slide, known, classifier, InferConfig(), AnnotationOptions(), views=1)
        assert np.array_equal(again.labels, scored.labels)
    bright = image.reshape(12, 50, 14, 50, 3).mean(axis=(1, 3, 4)) / 255
    here = ~np.isnan(scored.patch_probability[0])
    assert here.sum() > 100
    for view in scored.patch_probability:  # brightness is the same however a patch is turned
        assert np.abs(view - bright)[here].max() < 1e-3


def test_the_eight_views_of_a_patch_differ():
    patches = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), np.uint8)
    views = {turned(patches, view).tobytes() for view in range(8)}
    assert len(views) == 8
    assert np.array_equal(turned(patches, 0), patches)


def test_the_config_of_the_shipped_step_is_one(tmp_path: Path):
    path = Path(__file__).parents[2] / "configs/default_model/context.yaml"
    said = load_config(ContextTrainOptions, path)
    assert said.limits
    assert said.rings == RingOptions(base_of="probability")
    assert replace(said, limits="", views=8, rings=RingOptions()) == ContextTrainOptions()
    again = tmp_path / "again.yaml"
    again.write_text(as_yaml(SMALL))
    assert load_config(ContextTrainOptions, again) == SMALL
