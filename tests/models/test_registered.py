"""The registry keeps models as they were approved, and every command finds them there by name and version."""

from pathlib import Path

import pytest
from conftest import write_slide
from test_infer import section
from torch import nn

import wsi_pipeline as wp
from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.cli import models as command
from wsi_pipeline.learning.training.pretrained import pretrained_files, start_from
from wsi_pipeline.models.architectures.registry import build_network
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.model import load_model, save_model
from wsi_pipeline.pipeline.export import exported_map
from wsi_pipeline.results.exports.pdf import report_info_of
from wsi_pipeline.results.figures.report_words import info_rows


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry with mine@1.0 and mine@1.1."""
    folder = tmp_path / "registry"
    monkeypatch.setenv("WSI_MODELS", str(folder))
    for version, auroc in (("1.0", 0.75), ("1.1", 0.875)):
        card = ModelCard(
            name="mine",
            architecture="residual_cnn",
            architecture_options={"widths": [4, 4], "blocks": [1, 1]},
            patch_px=50,
            mpp=4.0,
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            metrics={"val": {"auroc": auroc}},
            training={
                "val": {"patients": 12, "patches": 300},
                "config": {"split": {"val_patients": [version]}},
            },
        )
        network: nn.Module = build_network("residual_cnn", classes=2, widths=(4, 4), blocks=(1, 1))
        file = tmp_path / f"{version}.safetensors"
        save_model(file, network, card)
        assert command.main(["add", str(file), f"mine@{version}", "--approved-by", "Dr. A"]) == 0
    return folder


def test_a_model_is_found_by_name_and_version_wherever_a_model_is_taken(registry: Path) -> None:
    new, old = load_model("mine@1.1"), load_model("mine@1.0")
    assert new.card.metrics["val"]["auroc"] == 0.875
    assert new.sha256 != old.sha256
    assert pretrained_files(start_from("mine@1.1")["pretrained"]) == [registry / "mine/1.1/model.safetensors"]


def test_the_version_stands_in_summary_report_and_pdf_and_decides_them_but_not_the_map(
    registry: Path, tmp_path: Path
) -> None:
    slide = write_slide(tmp_path / "a.tiff", section(), mpp=(4.0, 4.0), factors=(1, 4))
    by_file = registry.parent / "1.0.safetensors"

    def mapped(model: str | Path) -> tuple[dict, list[tuple[str, str]]]:
        result = wp.infer_slide(slide, tmp_path / "out", model=model, device="cpu")
        exported = exported_map(result, ("pdf",))
        rows = info_rows(report_info_of(exported), exported.finished)
        assert (result.folder / "report.pdf").stat().st_size > 10_000
        return result.summary, rows

    before, rows = mapped(by_file)
    assert before["registered"] == [None]
    assert "Registry" not in dict(rows)
    named, rows = mapped("mine@1.0")
    assert named["registered"] == ["mine@1.0"]
    assert dict(rows)["Registry"] == "mine@1.0"
    assert dict(rows)["Model"] == f"mine ({named['map_recipe']['models'][0]['sha256'][:12]})"
    assert named["map_key"] == before["map_key"]
    assert named["report_key"] != before["report_key"]
    again, _ = mapped(by_file)
    assert (again["report_key"], again["registered"]) == (before["report_key"], [None])


def test_what_was_approved_never_changes(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_model("mine@1.0").sha256
    again = registry.parent / "1.1.safetensors"
    assert command.main(["add", str(again), "mine@1.0", "--approved-by", "Dr. B"]) == 2
    assert "never changes; give it another version" in capsys.readouterr().err
    assert load_model("mine@1.0").sha256 == before
    card = registry / "mine/1.0/model.json"
    card.write_text(card.read_text().replace('"threshold": 0.5', '"threshold": 0.1'))
    with pytest.raises(ModelError, match=r"model.json: found SHA-256 .* as approved by Dr. A: damaged"):
        load_model("mine@1.0")
    assert command.main(["list"]) == 1  # and says the other one all the same
    spoken = capsys.readouterr()
    assert "mine@1.1" in spoken.out
    assert spoken.err.count("\n") == 1


def test_list_show_and_compare_say_what_the_cards_do(
    registry: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert command.main(["list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], *row[-2:]) for row in rows[1:]] == [
        ("idc_default", "0.970", "29"),
        ("mine@1.0", "0.750", "12"),
        ("mine@1.1", "0.875", "12"),
    ]
    assert command.main(["show", "mine@1.1"]) == 0
    said = capsys.readouterr().out
    assert "by Dr. A" in said
    assert said.count("not known") >= 2  # neither cross-validation nor robustness on such a card
    assert command.main(["show", "idc_default"]) == 0
    said = capsys.readouterr().out
    assert "on 201 patients, 5 folds of 5" in said
    assert "of 25 changes, blur of 2 px costs most" in said
    assert command.main(["compare", "mine@1.0", "mine@1.1"]) == 0
    said = capsys.readouterr().out
    assert ["auroc", "0.750", "0.875"] in [line.split() for line in said.splitlines()]
    assert "evaluate-model --model mine@1.1 --against mine@1.0 --data PATCHES" in said
    assert "the measures are of different validation patches" in said  # as many, and of other patients


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["show", "mine@2"], "holds mine@1.0, mine@1.1"),
        (["show", "yours"], "is not known"),
        (["show"], "found 0 names, expected 1"),
        (["add", "FILE", "../x@1", "--approved-by", "A"], "expected NAME@VERSION"),
        (["add", "FILE", "x@.."], "expected NAME@VERSION"),
        (["add", "FILE", "x@1.safetensors", "--approved-by", "A"], "expected NAME@VERSION"),
        (["add", "FILE", "x@1"], "expected --approved-by WHO"),
        (["add", "FILE", "x@1", "--approved-by", "A"], "FILE.safetensors: cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    registry: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    given = [str(registry / "FILE.safetensors") if word == "FILE" else word for word in arguments]
    assert command.main(given) == 2
    complaint = capsys.readouterr().err
    assert reason in complaint
    assert complaint.count("\n") == 1
    assert not (registry / "x").exists()
