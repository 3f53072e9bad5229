"""What a deployed model needs watching for, as Prometheus reads it: requests, and what maps and pictures say."""

import math
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from wsi_pipeline.models.score_distance import bin_of, score_distance

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SPREADS = (0.5, 1, 1.5, 2, 3, 4, 6, 10)
SCORES = tuple(i / 10 for i in range(1, 11))


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        register: dict[str, Any] = {"registry": self._registry, "namespace": "wsi_pipeline"}
        self.requests = Counter("requests", "answers, by route and status", ("route", "status"), **register)
        self.seconds = Histogram(
            "request_seconds", "seconds an answer took, by route", ("route",), buckets=SECONDS, **register
        )
        self.predictions = Counter("predictions", "pictures and places scored", ("model",), **register)
        self.positive = Counter(
            "predictions_positive", "of them, at or above the model's threshold", ("model",), **register
        )
        self.scores = Histogram(
            "prediction_score", "probabilities given", ("model",), buckets=SCORES, **register
        )
        self.stains = Histogram(
            "prediction_stain_spreads",
            "distance of a picture's stain from the card, in spreads",
            ("model",),
            buckets=SPREADS,
            **register,
        )
        self._distance = Gauge(
            "prediction_score_distance",
            "largest difference between cumulative shares of the scores given and of the validation patches' (0 to 1)",
            ("model",),
            **register,
        )
        self._given: dict[str, list[float]] = {}
        self._slides = Gauge("slides", "slides in OUT, by status", ("status",), **register)
        self._share = Gauge("slide_idc_share", "mean share of IDC in tissue over slides done", **register)
        self._warned = Gauge("slides_warned", "slides done with a warning", **register)
        self._stain = Gauge(
            "slide_stain_spreads", "largest distance of a slide's stain from the card, in spreads", **register
        )
        self._mean_stain = Gauge(
            "slide_stain_spreads_mean", "mean distance of slides' stain from the card, in spreads", **register
        )
        self.cache_bytes = Gauge("tile_cache_bytes", "bytes of tiles kept", **register)

    def scored(self, answer: dict[str, Any], reliability: Sequence[dict[str, Any]] | None) -> None:
        """A prediction was given; `reliability` is what the card says of the validation patches' scores."""
        model, value = str(answer["model"]), float(answer["probability"])
        self.predictions.labels(model).inc()
        self.scores.labels(model).observe(value)
        # Present, at 0, before the first positive one.
        self.positive.labels(model).inc(value >= float(answer["threshold"]))
        if (stain := answer.get("stain")) is not None:
            self.stains.labels(model).observe(float(stain["spreads"]))
        if reliability:
            given = self._given.setdefault(model, [0.0] * len(reliability))
            given[bin_of(value, reliability)] += 1
            self._distance.labels(model).set(score_distance(given, [row["patches"] for row in reliability]))

    def text(self, slides: list[dict[str, Any]], cache_bytes: int) -> bytes:
        """All figures, with those of the slides as the list shows them."""
        for status in ("done", "failed", "running", "unfinished", "broken"):
            self._slides.labels(status).set(sum(slide["status"] == status for slide in slides))
        shares = [slide["share"] for slide in slides if slide["share"] is not None]
        self._share.set(sum(shares) / len(shares) if shares else math.nan)
        self._warned.set(sum(bool(slide["warnings"]) for slide in slides))
        spreads = [slide["stain_spreads"] for slide in slides if slide.get("stain_spreads") is not None]
        self._stain.set(max(spreads, default=math.nan))
        self._mean_stain.set(sum(spreads) / len(spreads) if spreads else math.nan)
        self.cache_bytes.set(cache_bytes)
        return generate_latest(self._registry)
