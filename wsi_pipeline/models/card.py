"""The card of a model: what its network is, what it sees, and what its numbers mean."""

from typing import Annotated, Any

from wsi_pipeline.base.options import Field, options
from wsi_pipeline.models.architectures.registry import build_network as build_network
from wsi_pipeline.models.context import ContextCard

Rgb = tuple[float, float, float]


@options
class Stain:
    """Colour of the training patches in optical density, -log10((RGB + 1) / 256), to notice other stains."""

    # Mean over all training patches, R, G, B.
    od_mean: Rgb = (0.0, 0.0, 0.0)
    # Standard deviation, over patches, of each patch's own mean.
    od_std: Rgb = (0.0, 0.0, 0.0)
    # Standard deviation, over patients, of each patient's own mean: how far a usual slide lies off.
    od_patient_std: Rgb = (0.0, 0.0, 0.0)


@options
class ModelCard:
    """All that must be known of a network to use its numbers."""

    # What people call it.
    name: str
    # A name of the zoo (models/zoo.py) and what it is built with; `classes` is added from below.
    architecture: str
    architecture_options: dict[str, Any]
    # The square it sees, in pixels a side, at this scale in um/px.
    patch_px: Annotated[int, Field(gt=0)]
    mpp: Annotated[float, Field(gt=0)]
    # Order of the logits; 'idc' is the one that maps show.
    classes: tuple[str, ...] = ("not_idc", "idc")
    # Normalisation of RGB on the scale 0 to 1: (value - mean) / std.
    mean: Rgb
    std: Rgb
    # Calibration, fitted on the validation patients: logits are divided by the temperature, then the log odds
    # of IDC shifted.
    temperature: Annotated[float, Field(gt=0)] = 1.0
    log_odds_shift: float = 0.0
    # A patch counts as IDC from this calibrated probability on. Chosen on the validation patients.
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    # Whether bfloat16 autocast keeps the probabilities within the tolerance of the training's config.
    bf16: bool = False
    # Where it comes from: data, splits, patients and patches a side, commit, config.
    training: dict[str, Any] = Field(default_factory=dict)
    # What it reached on the validation patients, over patches and by patient.
    metrics: dict[str, Any] = Field(default_factory=dict)
    # The step that judges each patch among its neighbours; none: maps show each patch alone.
    context: ContextCard | None = None
    # What its training patches look like.
    stain: Stain = Field(default_factory=Stain)
    # How far each slide's stain is brought to that before the network sees it (stain.py): 0 not at all, 1 all the way.
    stain_normalisation: Annotated[float, Field(ge=0, le=1)] = 0.0
    licence: str = ""
    intended_use: str = ""
    limits: str = ""
    # SHA-256 of the weights file; filled in when the model is saved.
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        if "idc" not in self.classes:
            raise ValueError(f"no class 'idc' among {self.classes}")
