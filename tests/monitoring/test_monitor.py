"""What `monitor` says of a folder of maps: real maps, whose summaries are then changed as other slides would be."""

import csv
import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_slide
from models import brightness_model
from shapely.geometry import box, mapping
from test_infer import section

from wsi_pipeline.base.errors import UsageError
from wsi_pipeline.base.files import out_path, read_whole
from wsi_pipeline.base.geometry import Size
from wsi_pipeline.cli import export_map
from wsi_pipeline.cli.monitor import main
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.monitoring import runs
from wsi_pipeline.monitoring.against_card import MIN_SLIDES
from wsi_pipeline.monitoring.figures import monitor
from wsi_pipeline.monitoring.runs import parse_since
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.results.run_folder import begin_report
from wsi_pipeline.slides.catalog import list_slides
from wsi_pipeline.tiling.artefacts import ArtefactOptions
from wsi_pipeline.viewer.review import Review

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run folder, `s`, and its slide."""
    folder = tmp_path_factory.mktemp("mapped")
    model = brightness_model()
    model.card.metrics.update(
        reliability=[{"from": i / 15, "to": (i + 1) / 15, "patches": 100} for i in range(15)],
        val={"idc_share": 0.5, "recall": 0.8, "precision": 0.8},
    )
    slide = write_slide(folder / "s.tiff", section(), mpp=(4.0, 4.0), factors=(1, 4))
    config = InferConfig(quality=ArtefactOptions(check_blur=False))
    infer_slide(slide, folder / "out", config, Classifier([model], torch.device("cpu"), ClassifyOptions()))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def add_slide(mapped: Path, out: Path, name: str, change: Change = lambda summary: None) -> Path:
    shutil.copytree(mapped / "out/s", out / name, ignore=shutil.ignore_patterns("*.zarr", "*.pdf"))
    summary = json.loads((out / name / "summary.json").read_text())
    change(summary)
    (out / name / "summary.json").write_text(json.dumps(summary))
    return out / name


def on(day: str) -> Change:
    return lambda summary: summary.update(finished=f"{day}T10:00:00+00:00")


def of_model(sha256: str, day: str) -> Change:
    def change(summary: dict[str, Any]) -> None:
        summary["map_recipe"]["models"][0]["sha256"] = sha256
        on(day)(summary)

    return change


def review_of(folder: Path, map_key: str | None = None) -> Callable[..., None]:
    """Changes of the folder's review, made as the page makes them."""
    summary = json.loads((folder / "summary.json").read_text())
    review = Review(folder, Size(*summary["size0"]), (0.0, 0.0), map_key or summary["map_key"])

    def put(geometry: object, verdict: str, name: str = "IDC", source: str | None = None) -> None:
        properties = {"class": name, "verdict": verdict, "note": "", "source_region": source}
        feature = {"type": "Feature", "geometry": geometry, "properties": properties}
        revision = review.state()["revision"]
        review.change({"action": "put", "reviewer": "Dr. A", "revision": revision, "feature": feature})

    return put


def region_of(folder: Path) -> Any:
    (region, *_) = json.loads((folder / "regions.geojson").read_text())["features"]
    return region["geometry"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_days_and_models_are_kept_apart_and_a_page_is_written(mapped, out, capsys):
    add_slide(mapped, out, "a", of_model("a" * 64, "2026-01-02"))
    add_slide(mapped, out, "b", of_model("a" * 64, "2026-01-02"))
    add_slide(mapped, out, "c", of_model("a" * 64, "2026-01-03"))
    add_slide(mapped, out, "d", of_model("b" * 64, "2026-01-03"))
    assert main([str(out)]) == 0
    days = rows_of(out / "monitor_days.csv")
    assert [(row["day"], row["model_key"][0], row["slides"]) for row in days] == [
        ("2026-01-02", "a", "2"),
        ("2026-01-03", "a", "1"),
        ("2026-01-03", "b", "1"),
    ]
    summary = json.loads((out / "a/summary.json").read_text())
    scored = summary["counts"]["cells"]["scored"]
    assert float(days[0]["positive_share"]) == pytest.approx(summary["scores"]["positive"] / scored)
    assert float(days[0]["idc_share"]) == pytest.approx(summary["idc_share"], abs=1e-3)
    assert float(days[0]["tissue_share"]) == pytest.approx(summary["tissue_mm2"] / (1600 * 1200 * 16e-6))
    page = (out / "monitor.html").read_text()
    assert page.count("Against the card: brightness") == 2
    assert "http" not in page.replace("http://www.w3.org", "")
    assert str(out / "monitor.html") in capsys.readouterr().out


def test_scores_far_from_the_card_are_beyond_the_limit_in_plain_words_from_five_slides_on(
    mapped, out, capsys
):
    def low(summary: dict[str, Any]) -> None:
        scored = summary["counts"]["cells"]["scored"]
        summary["scores"].update(counts=[scored] + [0] * 14, positive=0, expected_wrong=0.01)

    for number in range(MIN_SLIDES - 1):
        add_slide(mapped, out, f"s{number}", low)
    assert main([str(out)]) == 0
    assert "beyond" not in capsys.readouterr().out
    add_slide(mapped, out, "last", low)
    assert main([str(out)]) == 0
    said = capsys.readouterr().out
    # All in the first of fifteen bins that the card fills evenly.
    assert f"distance of scores {14 / 15:.3f} (at most 0.2): the model scores these slides otherwise" in said
    assert "share of positive cells 0.000 (0.250 to 1.000): far less of the tissue is called IDC" in said
    (own,) = json.loads((out / "monitor.json").read_text())["models"]
    states = {each["measure"]: each["state"] for each in own["against_card"]}
    assert states["expected share of wrong cells"] == "within"
    assert states["share of slides stained otherwise"] == "not known"


def test_slides_are_ranked_by_how_far_they_are_beyond_a_limit_with_the_reason(mapped, out):
    def stained(spreads: float) -> Change:
        return lambda summary: summary.update(stain={"spreads": spreads, "hue_fold": 1.0, "swapped": False})

    add_slide(mapped, out, "usual", stained(1.0))
    add_slide(mapped, out, "far", stained(5.0))
    add_slide(mapped, out, "farther", stained(7.5))
    add_slide(mapped, out, "odd", lambda summary: summary.update(slide_condition={"distance": [1.5]}))
    add_slide(mapped, out, "unsure", lambda summary: summary["scores"].update(expected_wrong=0.75))
    for name in ("usual", "far", "farther", "odd"):
        summary = json.loads((out / name / "summary.json").read_text())
        summary["scores"]["expected_wrong"] = 0.05
        (out / name / "summary.json").write_text(json.dumps(summary))
    found = monitor(out, None).first
    # 0.2 of the validation patches are wrong: the fifth of IDC that is missed, and as many false ones.
    assert [(each.slide.name, round(each.times, 2)) for each in found] == [
        ("farther", 3.0),
        ("unsure", 2.5),
        ("far", 2.0),
        ("odd", 1.5),
    ]
    assert found[0].reasons == ("far from training: its stain is 7.5 spreads off (at most 2.5)",)
    assert found[1].reasons == ("uncertain: 75% of its cells are expected to be wrong (at most 30%)",)


def test_areas_that_map_and_reviewer_agree_on_and_those_of_one_alone(mapped, out):
    folder = add_slide(mapped, out, "a")
    put = review_of(folder)
    region = region_of(folder)
    put(region, "accepted", source="IDC 1")
    put(mapping(box(0, 0, 50, 100)), "added")  # glass: the map calls it nothing
    put(mapping(box(0, 100, 50, 200)), "added", name="Normal")
    (slide,) = monitor(out, None).runs.slides
    review = slide.review
    assert review.verdicts == {"accepted": 1, "added": 1, "other class": 1}
    assert review.agreed_mm2 == pytest.approx(slide.idc_mm2, rel=0.02)
    assert review.added_mm2 == pytest.approx(50 * 100 * 16e-6)
    assert review.taken_mm2 == 0
    assert (review.idc_outlines, review.not_idc_outlines) == (2, 1)
    assert sum(review.corrections.values()) == 1
    other = add_slide(mapped, out, "b")
    review_of(other)(region, "rejected", source="IDC 1")
    slide = monitor(out, None).runs.slides[-1]
    assert slide.review.corrected_share == 1
    assert [each.slide.name for each in monitor(out, None).first if "corrected" in each.reasons[0]] == ["b"]


def test_a_redrawn_region_is_compared_with_the_one_it_replaces(mapped, out):
    folder = add_slide(mapped, out, "a")
    x0, y0, x1, y1 = (200, 200, 500, 500)  # inside the bright half, which the map calls IDC
    review_of(folder)(mapping(box(x0, y0, x1, y1)), "redrawn", source="IDC 1")
    (slide,) = monitor(out, None).runs.slides
    area = (x1 - x0) * (y1 - y0) * 16e-6
    assert slide.review.agreed_mm2 == pytest.approx(area)
    assert slide.review.taken_mm2 == pytest.approx(slide.idc_mm2 - area, rel=0.02)
    assert slide.review.added_mm2 == 0


def test_outlines_of_an_earlier_map_are_named_and_in_no_figure(mapped, out):
    folder = add_slide(mapped, out, "a")
    review_of(folder, map_key="another")(region_of(folder), "rejected")
    found = monitor(out, None)
    review = found.runs.slides[0].review
    assert (review.earlier, review.verdicts, review.corrected_share) == (1, {}, None)
    assert any("outlines of an earlier map of this slide: 1;" in line for line in found.runs.problems)
    assert found.days[0].corrections == 0


def test_what_cannot_be_read_is_named_and_the_rest_is_counted(mapped, out, capsys):
    folder = add_slide(mapped, out, "whole")
    review_of(folder)(region_of(folder), "accepted")
    with (folder / "review.jsonl").open("ab") as file:
        file.write(b'{"revision": 2, "acti')
    (add_slide(mapped, out, "cut") / "summary.json").write_text('{"slide": "x", "map_re')
    add_slide(mapped, out, "odd", lambda summary: summary.update(idc_mm2="much"))
    add_slide(mapped, out, "old", lambda summary: summary.pop("scores") and None)
    (add_slide(mapped, out, "begun") / "summary.json").unlink()
    (out / "notes").mkdir()
    (out / ".batch/events").mkdir(parents=True)
    failed = {"event": "slide", "slide": "bad", "status": "failed", "reason": "it is empty"}
    failed |= {"finished": "2026-01-05T01:00:00+00:00"}
    (out / ".batch/events/one.jsonl").write_text(json.dumps(failed) + '\n{"event": "slide"}\n{"eve')
    assert main([str(out)]) == 0
    said = capsys.readouterr().err
    for line in (
        "whole/review.jsonl: lines that are no whole change: 1, the first is line 2",
        "cut/summary.json: cannot be read (JSONDecodeError",
        "odd/summary.json: cannot be read (ValueError",
        "old/summary.json: of an earlier version, which kept no scores",
        "begun: begun, and no map yet",
        "notes: no run folder",
        ".batch/events/one.jsonl: lines that are no whole event: 2, the first is line 2",
    ):
        assert f"warning: {line}" in said
        assert line in (out / "monitor.html").read_text()
    values = json.loads((out / "monitor.json").read_text())
    assert {row["slide"] for row in values["slides"]} == {"old", "whole"}
    (fallen,) = values["failed"]
    assert (fallen["name"], fallen["day"], fallen["reason"]) == ("bad", "2026-01-05", "it is empty")
    assert not fallen["mapped_since"]


def test_a_store_is_watched_as_a_folder_is(s3, mapped, out, capsys):
    for name in ("a", "b"):
        folder = add_slide(mapped, out, name)
    review_of(folder)(region_of(folder), "rejected", source="IDC 1")
    there = out_path("s3://maps/watched")
    there.fs.put(str(out), there.path, recursive=True)
    assert main([str(out)]) == 0
    here = capsys.readouterr()
    assert main([str(there)]) == 0
    said = capsys.readouterr()
    assert "s3://maps/watched is an object store: copy it to a folder" in said.out
    assert said.err == here.err
    for name in ("monitor_days.csv", "monitor_slides.csv"):
        assert read_whole(there / name) == (out / name).read_bytes()
    pages = [read_whole(there / "monitor.html").decode(), (out / "monitor.html").read_text()]
    assert pages[0].count("<img ") == pages[1].count("<img ")
    assert 'alt="b\n' in pages[0]  # the picture of a slide to look at first
    assert "<h1>Monitor: watched" in pages[0]


@pytest.mark.parametrize("command", [main, lambda out: export_map.main([*out, "--exports", "asap"])])
def test_a_store_that_does_not_let_us_in_is_a_line(command, s3, monkeypatch, capsys):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        assert command(["s3://maps/refused"]) == 1
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
    said = capsys.readouterr().err
    assert "s3://maps/refused" in said
    assert said.endswith("cannot be read: Forbidden; see to the store, its address and your credentials\n")


def test_a_map_that_a_run_draws_again_just_then_is_not_finished(mapped, out, monkeypatch, capsys):
    for name in ("a", "b"):
        add_slide(mapped, out, name)

    def begun_again(path: Path) -> bytes:
        if path == out / "b/summary.json":
            begin_report(out / "b")
        return read_whole(path)

    monkeypatch.setattr(runs, "read_whole", begun_again)
    assert main([str(out)]) == 0
    said = capsys.readouterr()
    assert "warning: b: not finished: a run is at work on it, or was stopped" in said.err
    assert ": 1 slide\n" in said.out


def test_a_line_of_a_review_that_is_cut_off_is_warned_of_once(mapped, out, caplog, capsys):
    folder = add_slide(mapped, out, "a")
    review_of(folder)(region_of(folder), "accepted")
    with (folder / "review.jsonl").open("ab") as file:
        file.write(b'{"revision": 2, "acti')
    assert main([str(out)]) == 0
    assert capsys.readouterr().err.count("lines that are no whole change") == 1
    assert not caplog.records


def test_the_list_of_reviewed_slides_holds_no_formula_and_is_read_as_it_was_meant(mapped, out):
    folder = add_slide(mapped, out, "a")
    review_of(folder)(region_of(folder), "accepted")
    done = {"event": "slide", "slide": "a", "status": "done", "patient": "=1+1"}
    done |= {"finished": "2026-01-05T01:00:00+00:00"}
    other = done | {"status": "failed", "refused": True, "patient": "of another slide of that name"}
    (out / ".batch/events").mkdir(parents=True)
    (out / ".batch/events/one.jsonl").write_text(f"{json.dumps(done)}\n{json.dumps(other)}\n")
    assert main([str(out)]) == 0
    (row,) = rows_of(out / "monitor_reviewed.csv")
    assert row["patient"] == "'=1+1"
    (entry,) = list_slides([out / "monitor_reviewed.csv"])
    assert (entry.name, entry.patient) == ("a", "=1+1")


def test_of_a_package_no_training_is_said_to_go_on(mapped, out):
    def of_package(summary: dict[str, Any]) -> None:
        summary["map_recipe"]["models"][0]["card"]["architecture"] = "package of resnet34"

    folder = add_slide(mapped, out, "a", of_package)
    review_of(folder)(region_of(folder), "accepted")
    found = monitor(out, None).retraining
    assert found.lines == ()
    assert "a package of other people's cannot be trained on" in found.notes[-1]


def test_since_leaves_older_maps_out_and_counts_them(mapped, out, capsys):
    add_slide(mapped, out, "old", on("2026-01-01"))
    add_slide(mapped, out, "new", on("2026-02-01"))
    found = monitor(out, date(2026, 2, 1))
    assert ([slide.name for slide in found.runs.slides], found.runs.before) == (["new"], 1)
    assert main([str(out), "--since", "2026-03-01"]) == 2
    assert "found 2 older maps; expected maps of infer-slide since 2026-03-01" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "why"),
    [("yesterday", "expected a day as"), ("2026-13-01", "expected a day"), ("2026-05-02", "future")],
)
def test_a_day_that_is_none_or_lies_in_the_future_is_refused(text, why):
    with pytest.raises(UsageError, match=why):
        parse_since(text, date(2026, 5, 1))
    assert parse_since("2026-05-01", date(2026, 5, 1)) == date(2026, 5, 1)


def test_no_folder_and_no_run_are_two_errors(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "found no run folder; expected maps of infer-slide" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
