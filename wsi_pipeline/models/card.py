"""The card of a model: what its network is, what it sees, and what its numbers mean."""

from typing import Annotated, Any

from wsi_pipeline.base.options import Field, options
from wsi_pipeline.models.architectures.registry import build_network as build_network
from wsi_pipeline.models.context import ContextCard, LogOddsShift, Temperature
from wsi_pipeline.models.stain_methods import StainMethod, of_numbers

Rgb = tuple[float, float, float]
# Of RGB on the scale 0 to 1, and of optical densities, which are 2.41 at most: others make nonsense of every pixel.
_Mean = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(ge=1e-4, le=10)]
_Density = Annotated[float, Field(ge=0, le=10)]
# What people read of a card is drawn on pages and pictures.
_Text = Annotated[str, Field(max_length=10_000)]
# A network of larger patches than this is none of ours: it would fill the memory.
MOST_PATCH_PX = 4096


@options
class Stain:
    """Colour of the training patches in optical density, -log10((RGB + 1) / 256), to notice other stains."""

    od_mean: tuple[_Density, _Density, _Density] = (0.0, 0.0, 0.0)
    """Mean over all training patches, R, G, B."""

    od_std: tuple[_Density, _Density, _Density] = (0.0, 0.0, 0.0)
    """Standard deviation, over patches, of each patch's own mean."""

    od_patient_std: tuple[_Density, _Density, _Density] = (0.0, 0.0, 0.0)
    """Standard deviation, over patients, of each patient's own mean: how far a usual slide lies off."""

    reference: tuple[float, ...] = ()
    """What Macenko's or Reinhard's method found in the training patches (models/stain_methods.py); none of the gain."""


@options
class ModelCard:
    """All that must be known of a network to use its numbers."""

    name: Annotated[str, Field(max_length=200)]
    """What people call it."""

    architecture: str
    """A name of models/architectures/registry.py."""

    architecture_options: dict[str, Any]
    """What it is built with; `classes` is added from below."""

    patch_px: Annotated[int, Field(gt=0, le=MOST_PATCH_PX)]
    """Side of the square that it sees, at `mpp`."""

    mpp: Annotated[float, Field(ge=0.01, le=100)]
    """um per pixel of a patch."""

    classes: tuple[str, ...] = ("not_idc", "idc")
    """Order of the logits; 'idc' is the one that maps show."""

    mean: tuple[_Mean, _Mean, _Mean]
    """Normalisation of RGB on the scale 0 to 1: (value - mean) / std."""

    std: tuple[_Deviation, _Deviation, _Deviation]
    """As `mean`."""

    temperature: Temperature = 1.0
    """Calibration, fitted on the validation patients: logits are divided by it."""

    log_odds_shift: LogOddsShift = 0.0
    """Calibration, after the temperature: added to the log odds of IDC."""

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A patch counts as IDC from this calibrated probability on. Chosen on the validation patients."""

    bf16: bool = False
    """Whether bfloat16 autocast keeps the probabilities within the tolerance of the training's config."""

    training: dict[str, Any] = Field(default_factory=dict)
    """Where it comes from: data, splits, patients and patches a side, commit, config."""

    metrics: dict[str, Any] = Field(default_factory=dict)
    """What it reached on the validation patients, over patches and by patient."""

    context: ContextCard | None = None
    """The step that sees each patch among its neighbours; none: maps show each patch alone."""

    stain: Stain = Field(default_factory=Stain)
    """What its training patches look like."""

    stain_normalisation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How far each slide's stain is brought to that before the network sees it (stain.py): 0 not at all, 1 all the
    way."""

    stain_method: StainMethod = "gain"
    """How: each channel's density multiplied (gain), or by Macenko's or Reinhard's method (models/stain_methods.py)."""

    licence: _Text = ""
    """Under which the weights may be used."""

    intended_use: _Text = ""
    """For whom and for what, in words."""

    limits: _Text = ""
    """What it was not measured on, and where it errs, in words."""

    weights_sha256: str = ""
    """SHA-256 of the weights file; filled in when the model is saved."""

    @property
    def is_package(self) -> bool:
        """Whether it describes a package of other people's (packages.py), which nobody calibrated here."""
        return "package" in self.training

    def __post_init__(self) -> None:
        if self.stain_method != "gain" and self.stain_normalisation:
            of_numbers(self.stain_method, self.stain.reference)
        if "idc" not in self.classes:
            raise ValueError(f"no class 'idc' among {self.classes}")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"found classes {self.classes}, expected each once")
