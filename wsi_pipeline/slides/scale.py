"""The true scale of a slide: what its file says, or what a person gives; never a guess."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.base.errors import ScaleError

# No microscope samples below or above; what claims to is a wrong tag (DESIGN.md, section 2).
PLAUSIBLE_MPP = (0.05, 20.0)
# Square pixels are the rule, 5 % off is seen, 50 % is a wrong tag.
PLAUSIBLE_ANISOTROPY = 1.5


@dataclass(frozen=True)
class Scale:
    """Micrometres per level-0 pixel, and who says so."""

    mpp: tuple[float, float]
    """Along x and along y."""

    note: str = ""
    """A line that names the flag and what the file says; empty where the scale is the file's own."""

    @property
    def is_given(self) -> bool:
        """Whether a person gave it."""
        return bool(self.note)


def scale_of(
    path: Path, properties: Mapping[str, str], mpp: float | None, mpp_if_missing: float | None
) -> Scale:
    """The scale of the slide at `path` by OpenSlide's properties of it.

    `mpp`, um per level-0 pixel, overrides what they say, `mpp_if_missing` is taken where they say nothing. Raises
    ScaleError when the scale is unknown or implausible.
    """
    own = [properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    says = f"the file says {own[0]} x {own[1]} um per pixel" if all(own) else "the file does not say its own"
    if mpp is not None:
        return Scale(_plausible((mpp, mpp), "--mpp says", path), f"the scale is --mpp {mpp:g}: {says}")
    if mpp_if_missing is not None and not all(own):
        given = _plausible((mpp_if_missing, mpp_if_missing), "--mpp-if-missing says", path)
        return Scale(given, f"the scale is --mpp-if-missing {mpp_if_missing:g}: {says}")
    try:
        found = (float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"]))
    except (KeyError, ValueError):
        raise ScaleError(
            f"{path}: the file does not say its scale (um per pixel){_hint(properties)}; "
            f"give it with --mpp if you know it"
        ) from None
    return Scale(_plausible(found, "the file says", path))


def _plausible(mpp: tuple[float, float], says: str, path: Path) -> tuple[float, float]:
    """The same. Raises ScaleError for a scale that no microscope has."""
    low, high = PLAUSIBLE_MPP
    if not all(low <= value <= high for value in mpp):
        raise ScaleError(
            f"{path}: {says} {mpp[0]:g} x {mpp[1]:g} um per level-0 pixel; expected between {low} and "
            f"{high:g} (40x is about 0.25); give the true scale with --mpp"
        )
    if max(mpp) / min(mpp) > PLAUSIBLE_ANISOTROPY:
        raise ScaleError(
            f"{path}: {says} {mpp[0]:g} x {mpp[1]:g} um per level-0 pixel; expected pixels nearly "
            f"square; give the true scale with --mpp"
        )
    return mpp


def _hint(properties: Mapping[str, str]) -> str:
    """What the objective says of the scale; nothing where the file names none, or nonsense."""
    text = properties.get("openslide.objective-power", "")
    try:
        power = float(text)
    except ValueError:
        return ""
    sound = math.isfinite(power) and power > 0
    return f"; it names a {text}x objective, often {10 / power:g} um/px" if sound else ""
