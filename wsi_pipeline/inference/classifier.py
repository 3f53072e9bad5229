"""Models made ready on a device: uint8 patches in, probabilities of IDC out."""

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.inference.engines.batching import Pending
from wsi_pipeline.inference.engines.options import ClassifyOptions as ClassifyOptions
from wsi_pipeline.models.stain import Tables, stain_tables

if TYPE_CHECKING:  # torch takes seconds to import: it waits until something is classified
    import torch

    from wsi_pipeline.inference.engines.choice import Chosen
    from wsi_pipeline.models.model import Model


class PendingScores:
    """Scores that are being computed, by one network or several."""

    def __init__(self, members: Sequence[Pending]):
        self._members = members

    def result(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Once they are there: scores, float32 [n], 0 to 1, and of several networks their spread, float32 [n].

        Of several, the score is the mean, the spread the standard deviation (population), 0 to 0.5.
        """
        each = [member.result() for member in self._members]
        return (each[0], None) if len(each) == 1 else _mean_and_spread(np.stack(each))

    def cancel(self) -> None:
        """Leave what has not begun."""
        for member in self._members:
            member.cancel()


class Classifier:
    """A model on a device: uint8 patches in, probabilities of IDC out."""

    def __init__(self, model: "Model", device: "torch.device", options: ClassifyOptions):
        from wsi_pipeline.inference.engines.choice import Engines

        self.model = model
        self.device = device
        self._engines = Engines(model, device, options)
        self._sample: NDArray[np.uint8] | None = None
        self._tables: Tables | None = None
        self._chosen: Chosen | None = None

    @property
    def models(self) -> "tuple[Model, ...]":
        """The one model."""
        return (self.model,)

    @property
    def members(self) -> "tuple[Classifier, ...]":
        """Itself alone."""
        return (self,)

    @property
    def tables(self) -> Tables | None:
        """What brings the slide's stain to the training data's, uint8 [3, 256]; None: nothing does."""
        return self._tables

    @property
    def chosen(self) -> "Chosen":
        """The engine that computes it, chosen when it is first asked for."""
        if self._chosen is None:
            self._chosen = self._engines.choose(self._sample, self._tables)
        return self._chosen

    @property
    def precision(self) -> str:
        """What it is computed in: 'fp32', 'bf16' or 'int8'."""
        return self.chosen.lanes.engine.precision

    @property
    def engine_info(self) -> list[dict[str, Any]]:
        """How each of its models is computed, for summary.json."""
        return [self.chosen.info]

    @property
    def max_in_flight(self) -> int:
        """Patches to have begun, so that the device never waits."""
        return self.chosen.lanes.max_in_flight

    def adapted(
        self, densities: NDArray[np.floating], sample: NDArray[np.uint8] | None = None
    ) -> "Classifier":
        """This classifier for one slide, whose patches have these optical densities, float [n, 3].

        Brings the slide's stain towards that of the training data as far as the card says; see stain.py. On `sample`,
        uint8 [n, S, S, 3], patches of the slide as they are, its engine is checked (engines/choice.py).
        """
        card, adapted = self.model.card, copy(self)
        adapted._tables = stain_tables(densities, card.stain, card.stain_normalisation)
        if sample is not None:
            adapted._sample, adapted._chosen = sample, None
        return adapted

    def start(self, patches: NDArray[np.uint8]) -> PendingScores:
        """Begin on patches, uint8 [n, patch_px, patch_px, 3], which must stay as they are until they are scored."""
        return PendingScores([self.chosen.lanes.start(patches, self.tables)])

    def scores(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [n], 0 to 1, of uint8 patches [n, patch_px, patch_px, 3]."""
        return self.start(patches).result()[0]

    def scores_and_spread(self, patches: NDArray[np.uint8]) -> tuple[NDArray[np.float32], None]:
        """The scores; one model alone has no spread."""
        return self.scores(patches), None


class Ensemble:
    """Several models of one patch size and scale on a device: what they say in the mean, and how far apart."""

    def __init__(self, models: "Sequence[Model]", device: "torch.device", options: ClassifyOptions):
        self.device = device
        self._members = [Classifier(model, device, options) for model in models]

    @property
    def models(self) -> "tuple[Model, ...]":
        """The members, in the order given."""
        return tuple(member.model for member in self._members)

    @property
    def members(self) -> tuple[Classifier, ...]:
        """A classifier of each model."""
        return tuple(self._members)

    @property
    def precision(self) -> str:
        """The members' precision: 'fp32', 'bf16', or both."""
        return ", ".join(sorted({member.precision for member in self._members}))

    @property
    def engine_info(self) -> list[dict[str, Any]]:
        """How each of its models is computed, for summary.json."""
        return [info for member in self._members for info in member.engine_info]

    @property
    def max_in_flight(self) -> int:
        """Patches to have begun, so that the device never waits."""
        return max(member.max_in_flight for member in self._members)

    def adapted(self, densities: NDArray[np.floating], sample: NDArray[np.uint8] | None = None) -> "Ensemble":
        """This ensemble for one slide, each member as its own card says; as `Classifier.adapted`."""
        adapted = copy(self)
        adapted._members = [member.adapted(densities, sample) for member in self._members]
        return adapted

    def start(self, patches: NDArray[np.uint8]) -> PendingScores:
        """Begin on patches, uint8 [n, patch_px, patch_px, 3], which must stay as they are until they are scored."""
        return PendingScores([member.chosen.lanes.start(patches, member.tables) for member in self._members])

    def scores_and_spread(
        self, patches: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation (population) between the members' probabilities, both float32 [n].

        The mean lies in 0 to 1, the deviation in 0 to 0.5. `patches` are uint8 [n, patch_px, patch_px, 3].
        """
        scores, spread = self.start(patches).result()
        assert spread is not None  # of several
        return scores, spread


def classifier_of(
    models: "Sequence[Model]", device: "torch.device", options: ClassifyOptions
) -> Classifier | Ensemble:
    """The classifier of one model, or the ensemble of several."""
    return Classifier(models[0], device, options) if len(models) == 1 else Ensemble(models, device, options)


def _mean_and_spread(each: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Over members [members, n]: mean and standard deviation, both float32 [n]."""
    exact = each.astype(np.float64)
    return exact.mean(axis=0).astype(np.float32), exact.std(axis=0).astype(np.float32)
