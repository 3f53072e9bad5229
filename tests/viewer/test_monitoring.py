"""What Prometheus reads of a server, and the dashboard that shows it."""

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from test_infer import section

prometheus = pytest.importorskip("prometheus_client.parser", reason="needs the extra 'viewer'")
testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra 'viewer'")
from wsi_pipeline.models.score_distance import score_distance  # noqa: E402
from wsi_pipeline.viewer.access import Access  # noqa: E402
from wsi_pipeline.viewer.app import make_app  # noqa: E402
from wsi_pipeline.viewer.monitoring import Metrics  # noqa: E402
from wsi_pipeline.viewer.service import Viewer  # noqa: E402

DOCS = Path(__file__).resolve().parents[2] / "docs"
RELIABILITY = [{"from": 0.0, "to": 0.5, "patches": 80}, {"from": 0.5, "to": 1.0, "patches": 20}]


def values(text: str) -> dict[str, float]:
    """The newest value of each sample, by name; of several, their sum."""
    found: dict[str, float] = {}
    for family in prometheus.text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def answer(probability: float, spreads: float | None = None) -> dict:
    stain = None if spreads is None else {"spreads": spreads}
    return {"model": "m", "probability": probability, "threshold": 0.4, "stain": stain}


def test_the_dashboard_names_every_figure_there_is_and_no_other(tmp_path):
    (tmp_path / "out").mkdir()
    content = io.BytesIO()
    Image.fromarray(section()[:250, :250]).save(content, format="PNG")
    with testclient.TestClient(make_app(Viewer(tmp_path / "out", [], device="cpu"), Access())) as client:
        client.get("/api/slides")
        headers = {"X-Requested-With": "wsi-pipeline"}
        assert (
            client.post("/api/predict?mpp=4", content=content.getvalue(), headers=headers).status_code == 200
        )
        there = set(values(client.get("/metrics").text))
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        for name in re.findall(r"\bwsi_pipeline_\w+", target["expr"])
    }
    assert asked <= there, asked - there
    base = {re.sub(r"_(bucket|count|sum|total|created)$", "", name) for name in there}
    assert base == {re.sub(r"_(bucket|total)$", "", name) for name in asked}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_page_on_viewing_names_every_figure_of_the_dashboard():
    told = (DOCS / "viewing.md").read_text()
    for name in re.findall(r"\bwsi_pipeline_\w+", (DOCS / "grafana.json").read_text()):
        stem = re.sub(r"_(bucket|total|mean|positive_total|warned)$", "", name).removesuffix("_positive")
        assert stem in told, name


def test_scores_as_in_validation_are_near_and_others_far():
    assert score_distance([80, 20], [800, 200]) == 0
    assert score_distance([0, 5], [800, 200]) == pytest.approx(0.8)
    near, far = Metrics(), Metrics()
    for i in range(100):
        near.scored(answer(0.1 if i < 80 else 0.9), RELIABILITY)
        far.scored(answer(1.0, spreads=7.0), RELIABILITY)
    near, far = (values(metrics.text([], 0).decode()) for metrics in (near, far))
    assert near["wsi_pipeline_prediction_score_distance"] == pytest.approx(0)
    assert far["wsi_pipeline_prediction_score_distance"] == pytest.approx(0.8)
    assert (near["wsi_pipeline_predictions_positive_total"], near["wsi_pipeline_predictions_total"]) == (
        20,
        100,
    )
    assert far["wsi_pipeline_prediction_stain_spreads_sum"] == pytest.approx(700)


def test_the_stain_of_slides_is_watched_as_a_mean_and_at_its_farthest():
    slides = [
        {"status": "done", "share": 0.2, "warnings": [], "stain_spreads": spreads} for spreads in (1.0, 4.0)
    ]
    found = values(Metrics().text(slides, 0).decode())
    assert found["wsi_pipeline_slide_stain_spreads"] == 4
    assert found["wsi_pipeline_slide_stain_spreads_mean"] == 2.5
