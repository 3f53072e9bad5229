"""Models made ready on a device: uint8 patches in, probabilities of IDC out."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError, ModelError
from wsi_pipeline.inference.engines.batching import Pending
from wsi_pipeline.inference.engines.options import ClassifyOptions as ClassifyOptions
from wsi_pipeline.models.stain import colours_of, normalise_stain, stain_tables
from wsi_pipeline.models.stain_methods import ColourTable

if TYPE_CHECKING:  # torch takes seconds to import: it waits until something is classified
    from concurrent.futures import Future

    import torch

    from wsi_pipeline.inference.engines.choice import Chosen
    from wsi_pipeline.inference.engines.cuda_engine import CudaEngine
    from wsi_pipeline.models.architectures.slide_condition import SlideHead
    from wsi_pipeline.models.card import ModelCard
    from wsi_pipeline.models.model import Model
    from wsi_pipeline.models.slide_input import SlideInput


@dataclass(frozen=True, eq=False)
class PatchScores:
    """What is known of patches once they are computed."""

    scores: NDArray[np.float32]
    """[n], 0 to 1, of IDC; of several networks the mean."""

    spread: NDArray[np.float32] | None = None
    """[n], of several networks: the standard deviation (population), 0 to 0.5."""

    others: NDArray[np.float32] | None = None
    """[n, other classes], 0 to 1, in the card's order, where they are kept."""


class PendingScores:
    """Scores that are being computed, by one network or several."""

    def __init__(self, members: Sequence[Pending], classes: Sequence[str] = ()):
        """classes: where the network gives the probability of each, their names."""
        self._members, self._classes = members, classes

    def result(self) -> PatchScores:
        """Once they are there."""
        each = [member.result() for member in self._members]
        if not self._classes:
            return PatchScores(*mean_and_spread(each))
        idc, found = self._classes.index("idc"), each[0].reshape(-1, len(self._classes))
        return PatchScores(found[:, idc], None, np.delete(found, idc, axis=1))

    @property
    def unfinished(self) -> "list[Future[NDArray[np.float32]]]":
        """Its batches that are still to be computed."""
        return [batch for member in self._members for batch in member.unfinished]

    @property
    def batches(self) -> int:
        """How many it is made of."""
        return sum(member.batches for member in self._members)

    def done(self) -> bool:
        """Whether all scores are there."""
        return not self.unfinished

    def cancel(self) -> None:
        """Leave what has not begun."""
        for member in self._members:
            member.cancel()


class Member:
    """One model of a classifier: its engine on the device, and the stain of the slide at hand."""

    def __init__(self, model: "Model", device: "torch.device", options: ClassifyOptions):
        from wsi_pipeline.inference.engines.choice import Engines
        from wsi_pipeline.models.slide_input import UNKNOWN_SLIDE

        self.model = model
        self.device = device
        self.slide: SlideInput = UNKNOWN_SLIDE
        """What the network is given of the slide at hand."""
        self.distance: float | None = None
        """How far the slide lies from those trained on, 1 being as far as they go; None: unknown."""
        self.colours: ColourTable | None = None
        """What brings the slide's colours to the training data's before any engine sees them, where its card asks for
        Macenko's or Reinhard's method."""
        self.left_as_is = ""
        """Why the slide's stain is not normalised by such a method; empty where it is, or none is asked for."""
        self._engines = Engines(model, device, options)
        self._others: dict[str, Engines] = {}
        """Engines of precisions that the options do not lead to, by that precision, kept from slide to slide."""
        self._sample: NDArray[np.uint8] | None = None
        self._chosen: Chosen | None = None

    @property
    def chosen(self) -> "Chosen":
        """The engine that computes it, chosen when it is first asked for."""
        if self._chosen is None:
            self._chosen = self._engines.choose(self._sample, self.slide)
        return self._chosen

    @property
    def precision(self) -> str:
        """What it is computed in: 'fp32', 'fp16', 'bf16' or 'int8'."""
        return self.chosen.runner.engine.precision

    def adapted(
        self, densities: NDArray[np.floating], sample: NDArray[np.uint8] | None, head: "SlideHead | None"
    ) -> "Member":
        """This member for one slide; as `Classifier.adapted`."""
        from wsi_pipeline.models.slide_input import SlideInput

        card, adapted = self.model.card, copy(self)
        tables, adapted.colours, adapted.left_as_is = None, None, ""
        if card.stain_method == "gain" or not card.stain_normalisation:
            tables = stain_tables(densities, card.stain, card.stain_normalisation)
        else:
            adapted._find_colours(sample)
        if sample is not None:
            sample = normalise_stain(sample, adapted.colours)
        if head is None and sample is not None:
            head, adapted.distance = self._head_of(normalise_stain(sample, tables))
        adapted.slide = SlideInput(tables, head)
        if sample is not None:
            adapted._sample, adapted._chosen = sample, None
        return adapted

    def hearing(self, densities: NDArray[np.floating], sample: NDArray[np.uint8]) -> "Member":
        """This member for patches of one slide; as `Classifier.hearing`."""
        from wsi_pipeline.models.slide_input import SlideInput

        told = self.adapted(densities, sample, None)
        told._sample, told._chosen = self._sample, self._chosen
        told.slide, told.colours = SlideInput(None, told.slide.head), None
        return told

    def _find_colours(self, sample: NDArray[np.uint8] | None) -> None:
        """How the slide of these patches is normalised by a method that is asked of pixels, or why it is not."""
        card = self.model.card
        if sample is None or not len(sample):
            self.left_as_is = "no patch of the slide is at hand to measure it on"
            return
        try:
            found = colours_of(sample, card.stain, card.stain_normalisation, card.stain_method)
        except DataError as error:
            self.left_as_is = str(error)
            return
        assert isinstance(found, ColourTable)
        self.colours = found

    def _head_of(self, patches: NDArray[np.uint8]) -> "tuple[SlideHead | None, float | None]":
        """The last layer for the slide of these patches, stain-normalised, and its distance from those trained on.

        In float32 whatever the engine: what the network is given of the slide does not hang on it.
        """
        from wsi_pipeline.models.architectures.slide_condition import SlideConditioned
        from wsi_pipeline.models.logits import evaluate

        network = self.model.network
        if not isinstance(network, SlideConditioned) or not len(patches):
            return None, None
        device = next(network.parameters()).device
        features = evaluate(network, self.model.card, patches, device, features=True)
        return network.head_of(features), network.distance_of(features)

    def in_precision(self, precision: str) -> "Member":
        """This member computed in that precision. Raises ModelError that says why it cannot be."""
        if self.precision == precision:
            return self
        other = copy(self)
        if precision not in self._others:
            self._others[precision] = self._engines.in_precision(precision)
        other._engines, other._chosen = self._others[precision], None
        if other.precision != precision:
            refused = "; ".join(other.chosen.refused) or "no engine was found that does"
            raise ModelError(
                f"model '{self.model.card.name}' cannot be computed in {precision} here: {refused}"
            )
        return other

    def start(self, patches: NDArray[np.uint8]) -> Pending:
        """Begin on uint8 patches [n, patch_px, patch_px, 3]; what comes is as its engine gives it."""
        return self.chosen.runner.start(normalise_stain(patches, self.colours), self.slide)

    def scores(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [n], 0 to 1, of uint8 patches [n, patch_px, patch_px, 3]."""
        found, classes = self.start(patches).result(), self.model.card.classes
        return found if found.ndim == 1 else found[:, classes.index("idc")]


class Classifier:
    """One model, or several of one patch size and scale, on a device: uint8 patches in, probabilities of IDC out.

    Of several, the probability is their mean, and their standard deviation says how far they are apart.
    """

    def __init__(self, models: "Sequence[Model]", device: "torch.device", options: ClassifyOptions):
        self.device = device
        if len(models) > 1:
            options = replace(options, other_classes=False)
        self.options = options
        # In an order of their own: whoever names them in another one gets the same map, bit by bit.
        in_order = sorted(models, key=lambda model: (model.sha256, model.card.name))
        self.members = tuple(Member(model, device, options) for model in in_order)

    @property
    def models(self) -> "tuple[Model, ...]":
        """Its models, by their weights' SHA-256: the order in which they were given decides nothing."""
        return tuple(member.model for member in self.members)

    @property
    def card(self) -> "ModelCard":
        """The card of its first model; patch size and scale are those of all."""
        return self.members[0].model.card

    @property
    def other_classes(self) -> tuple[str, ...]:
        """Classes beside IDC whose probability comes along, in the card's order; none of two classes."""
        kept = self.options.other_classes and len(self.card.classes) > 2
        return tuple(name for name in self.card.classes if name != "idc") if kept else ()

    @property
    def precision(self) -> str:
        """What its models are computed in: 'fp32', 'fp16', 'bf16', 'int8', or several of these."""
        return ", ".join(sorted({member.precision for member in self.members}))

    @property
    def precisions(self) -> tuple[str, ...]:
        """What each of its models is computed in."""
        return tuple(member.precision for member in self.members)

    @property
    def engine_info(self) -> list[dict[str, Any]]:
        """How each of its models is computed, for summary.json."""
        return [member.chosen.info for member in self.members]

    @property
    def batches_in_flight(self) -> int:
        """Batches to have begun, so that the device never waits."""
        return sum(member.chosen.runner.max_in_flight for member in self.members)

    @property
    def device_engines(self) -> "list[tuple[CudaEngine, SlideInput]]":
        """Its engines, each with what it is given of the slide, where all take whole blocks on a GPU; else none."""
        from wsi_pipeline.inference.engines.cuda_engine import CudaEngine

        if any(member.colours for member in self.members):  # such a table is of the host
            return []
        engines = [(member.chosen.runner.engine, member.slide) for member in self.members]
        found = [(engine, slide) for engine, slide in engines if isinstance(engine, CudaEngine)]
        return found if len(found) == len(engines) else []

    def adapted(
        self,
        densities: NDArray[np.floating],
        sample: NDArray[np.uint8] | None = None,
        heads: "Sequence[SlideHead | None] | None" = None,
    ) -> "Classifier":
        """This classifier for one slide, whose patches have these optical densities, float [n, 3].

        Brings the slide's stain towards each model's training data as far as its card says (models/stain.py). On
        `sample`, uint8 [n, S, S, 3], patches of the slide as they are, the engines are checked (engines/choice.py), and
        networks that hear of their slide hear of it by them (models/architectures/slide_condition.py), unless `heads`
        say, of each model, what they heard before.
        """
        adapted = copy(self)
        known = heads or [None] * len(self.members)
        adapted.members = tuple(
            member.adapted(densities, sample, head) for member, head in zip(self.members, known, strict=True)
        )
        return adapted

    def hearing(self, densities: NDArray[np.floating], sample: NDArray[np.uint8]) -> "Classifier":
        """This classifier for patches of one slide whose stain is normalised already.

        `sample`, uint8 [n, S, S, 3], are patches of it as they are, `densities` as for `adapted`.
        """
        adapted = copy(self)
        adapted.members = tuple(member.hearing(densities, sample) for member in self.members)
        return adapted

    def in_precisions(self, precisions: Sequence[str]) -> "Classifier":
        """This classifier with each model computed in that precision. Raises ModelError that says why it cannot be."""
        other = copy(self)
        other.members = tuple(
            member.in_precision(precision) for member, precision in zip(self.members, precisions, strict=True)
        )
        return other

    def start(self, patches: NDArray[np.uint8]) -> PendingScores:
        """Begin on patches, uint8 [n, patch_px, patch_px, 3], which must stay as they are until they are scored."""
        for member in self.members:
            # Before any computes: while torch.fx follows one network, those on other threads fail.
            _ = member.chosen
        classes = self.card.classes if self.other_classes else ()
        return PendingScores([member.start(patches) for member in self.members], classes)

    def scores(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [n], 0 to 1, of uint8 patches [n, patch_px, patch_px, 3]."""
        return self.start(patches).result().scores

    def scores_and_spread(
        self, patches: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Scores as `scores`, and of several models the standard deviation (population), float32 [n], 0 to 0.5."""
        found = self.start(patches).result()
        return found.scores, found.spread


def mean_and_spread(
    each: Sequence[NDArray[np.float32]],
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Mean and standard deviation (population) over members, each float32 [n]; one alone has no deviation."""
    if len(each) == 1:
        return each[0], None
    exact = np.stack(each).astype(np.float64)  # [members, n]
    return exact.mean(axis=0).astype(np.float32), exact.std(axis=0).astype(np.float32)
