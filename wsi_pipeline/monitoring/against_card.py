"""By which rules the figures of a model's maps are compared with its card: each figure, its limit, and what it means.

A figure is compared over several slides, since one slide differs from the validation patches by whose it is: a slide
without tumour has few high scores and is no fault. Of fewer than `MIN_SLIDES` the figure is shown, and nothing
concluded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from wsi_pipeline.inference.stain_check import MAX_HUE_FOLD, MAX_SPREADS
from wsi_pipeline.models.score_distance import in_bins_of, score_distance
from wsi_pipeline.monitoring.runs import MappedSlide, Validation

MIN_SLIDES = 5
# Largest gap between the cumulative shares of scores: one cell in five scores otherwise.
MAX_SCORE_DISTANCE = 0.2
# How many times the card's share of positive patches, or a part of it.
MAX_POSITIVE_FOLD = 2.0
# How many times the share of wrong patches that was measured on the card's validation patches.
MAX_WRONG_FOLD = 1.5
# Where the card does not say how many were wrong.
MAX_WRONG = 0.15
# A slide further than this from the training slides, in units of the farthest usual one of them.
MAX_CONDITION_DISTANCE = 1.0
# Of the slides, how many may be beyond a limit of one slide.
MAX_FAR_SHARE = 0.2
# Of the area that reviewers or the map call IDC, what only one of them does.
MAX_CORRECTED_SHARE = 0.25

State = Literal["within", "beyond", "too few slides", "not known"]


@dataclass(frozen=True)
class Comparison:
    """One figure of a model's maps beside what the card, or a limit of ours, expects."""

    measure: str
    found: float | None
    expected: str
    limit: str
    state: State
    slides: int
    """Of how many slides it is."""

    words: str
    """What it means, in a sentence."""


def compare(slides: Sequence[MappedSlide]) -> list[Comparison]:
    """All figures of maps of one model."""
    return [
        _scores(slides),
        _positive(slides),
        _wrong(slides),
        _stain(slides),
        _condition(slides),
        _reviews(slides),
    ]


def distance_of(slides: Sequence[MappedSlide]) -> float | None:
    """How far the slides' scores together lie from those of the card's validation patches, 0 to 1; None: not known."""
    counts, validation = pooled_scores(slides)
    if validation is None or not sum(counts):
        return None
    expected = [row["patches"] for row in validation.reliability]
    return score_distance(in_bins_of(validation.reliability, counts), expected)


def pooled_scores(slides: Sequence[MappedSlide]) -> tuple[list[int], Validation | None]:
    """Cells by score of the slides that can be compared with the card, and what the card says; None: of none."""
    comparable = [slide for slide in slides if slide.validation and slide.counts]
    rows = [slide.counts for slide in comparable if slide.counts]
    counts = [sum(column) for column in zip(*rows, strict=True)]
    return counts, comparable[-1].validation if comparable else None


def pooled_positive(slides: Sequence[MappedSlide]) -> float | None:
    """Share of positive cells, each patch alone, of all slides together."""
    known = [slide for slide in slides if slide.positive is not None]
    scored = sum(slide.scored for slide in known)
    return sum(slide.positive or 0 for slide in known) / scored if scored else None


def pooled_corrected(slides: Sequence[MappedSlide]) -> float | None:
    """Of the area that either calls IDC, what only the map or only the reviewers do; of all slides together."""
    reviews = [slide.review for slide in slides if slide.review]
    apart = sum(review.taken_mm2 + review.added_mm2 for review in reviews)
    whole = apart + sum(review.agreed_mm2 for review in reviews)
    return apart / whole if whole else None


def is_far_by_stain(slide: MappedSlide) -> bool:
    """As infer-slide warns of it."""
    return slide.swapped or (slide.spreads or 0) > MAX_SPREADS or (slide.hue_fold or 1) > MAX_HUE_FOLD


def wrong_limit(slide: MappedSlide) -> float:
    """From which expected share of wrong cells on a slide counts as uncertain."""
    known = slide.validation and slide.validation.wrong
    return MAX_WRONG_FOLD * known if known else MAX_WRONG


def _scores(slides: Sequence[MappedSlide]) -> Comparison:
    known = [slide for slide in slides if slide.validation and slide.counts and slide.scored]
    found = distance_of(known)
    why = "; ".join(sorted({slide.not_compared for slide in slides if slide.not_compared}))
    state = _state(found, len(known), found is not None and found > MAX_SCORE_DISTANCE)
    words = {
        "beyond": "the model scores these slides otherwise than its validation patches: other tissue or other slides, "
        "or less or more tumour than there. Its threshold and its probabilities were not measured on such",
        "within": "the model scores these slides as it scored its validation patches",
    }
    return Comparison(
        "distance of scores",
        found,
        "0, the validation patches",
        f"at most {MAX_SCORE_DISTANCE:g}",
        state,
        len(known),
        words.get(state, _unknown(state, why)),
    )


def _positive(slides: Sequence[MappedSlide]) -> Comparison:
    known = [slide for slide in slides if slide.validation and slide.positive is not None]
    expected = known[-1].validation.positive if known and known[-1].validation else None
    found = pooled_positive(known)
    low, high = (expected / MAX_POSITIVE_FOLD, expected * MAX_POSITIVE_FOLD) if expected else (0.0, 1.0)
    compared = found if expected else None
    state = _state(compared, len(known), compared is not None and not low <= compared <= high)
    more = "more" if (found or 0) > (expected or 0) else "less"
    words = {
        "beyond": f"far {more} of the tissue is called IDC than of the validation patches: other patients, or a model "
        f"that calls {more} than it should. Look at the slides first listed, and let some be reviewed",
        "within": "about as much is called IDC as of the validation patches",
    }
    return Comparison(
        "share of positive cells",
        found,
        "not known" if expected is None else f"{expected:.3f}",
        f"{low:.3f} to {high:.3f}" if expected else "none",
        state,
        len(known),
        words.get(
            state, _unknown(state, "the card does not say how much of its validation patches is positive")
        ),
    )


def _wrong(slides: Sequence[MappedSlide]) -> Comparison:
    known = [slide for slide in slides if slide.expected_wrong is not None and slide.scored]
    cells = sum(slide.scored for slide in known)
    found = sum((slide.expected_wrong or 0) * slide.scored for slide in known) / cells if cells else None
    limit = wrong_limit(known[-1]) if known else MAX_WRONG
    measured = known[-1].validation.wrong if known and known[-1].validation else None
    state = _state(found, len(known), found is not None and found > limit)
    words = {
        "beyond": "many cells lie near the threshold: by its own probabilities the model errs more often here than it "
        "did on its validation patches",
        "within": "the model is about as sure as on its validation patches",
    }
    return Comparison(
        "expected share of wrong cells",
        found,
        "not known" if measured is None else f"{measured:.3f}, measured",
        f"at most {limit:.3f}",
        state,
        len(known),
        words.get(state, _unknown(state, "no summary says it")),
    )


def _stain(slides: Sequence[MappedSlide]) -> Comparison:
    known = [slide for slide in slides if slide.spreads is not None]
    middle = (
        f"; the median slide is {median(slide.spreads or 0 for slide in known):.1f} spreads off"
        if known
        else ""
    )
    words = {
        "beyond": f"another stain, scanner or lamp than the training slides had{middle}",
        "within": f"stained as the training slides{middle}",
    }
    return _far_slides(
        "share of slides stained otherwise",
        [is_far_by_stain(slide) for slide in known],
        f"a slide: at most {MAX_SPREADS:g} spreads among training patients, {MAX_HUE_FOLD:g}-fold hue",
        words,
        "the card does not know its stain",
    )


def _condition(slides: Sequence[MappedSlide]) -> Comparison:
    distances = [slide.distance for slide in slides if slide.distance is not None]
    words = {
        "beyond": "these slides look unlike the training slides as the network sees them",
        "within": "these slides look like the training slides as the network sees them",
    }
    return _far_slides(
        "share of slides that look otherwise",
        [distance > MAX_CONDITION_DISTANCE for distance in distances],
        f"a slide: at most {MAX_CONDITION_DISTANCE:g} times as far as the farthest usual training slide",
        words,
        "this network does not hear what a slide looks like",
    )


def _far_slides(
    measure: str, far: Sequence[bool], expected: str, words: Mapping[str, str], why_unknown: str
) -> Comparison:
    """How many of the slides are far from training: `far`, of each that is known. `words`: by state."""
    share = sum(far) / len(far) if far else None
    state = _state(share, len(far), share is not None and share > MAX_FAR_SHARE)
    limit = f"at most {MAX_FAR_SHARE:g} of the slides"
    return Comparison(
        measure, share, expected, limit, state, len(far), words.get(state, _unknown(state, why_unknown))
    )


def _reviews(slides: Sequence[MappedSlide]) -> Comparison:
    known = [slide for slide in slides if slide.review and slide.review.corrected_share is not None]
    found = pooled_corrected(known)
    state = _state(found, len(known), found is not None and found > MAX_CORRECTED_SHARE)
    words = {
        "beyond": "reviewers and the map disagree on much of what either calls IDC: train on these reviews",
        "within": "reviewers mostly agree with the map",
    }
    return Comparison(
        "share of IDC area corrected by reviewers",
        found,
        "0, full agreement",
        f"at most {MAX_CORRECTED_SHARE:g}",
        state,
        len(known),
        words.get(state, _unknown(state, "nobody reviewed a map of it")),
    )


def _state(found: float | None, slides: int, is_beyond: bool) -> State:
    if found is None:
        return "not known"
    if slides < MIN_SLIDES:
        return "too few slides"
    return "beyond" if is_beyond else "within"


def _unknown(state: State, why: str) -> str:
    if state == "too few slides":
        return f"of fewer than {MIN_SLIDES} slides it depends on whose they are"
    return why or "no cell was scored"
