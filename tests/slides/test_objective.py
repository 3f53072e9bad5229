from pathlib import Path

import pytest
import tifffile
from conftest import noise

from wsi_pipeline.base.errors import ScaleError
from wsi_pipeline.slides.slide import open_slide


@pytest.mark.parametrize(
    ("power", "hint"), [("0", ""), ("40", "a 40x objective, often 0.25 um/px"), ("x", "")]
)
def test_a_file_without_scale_is_refused_whatever_objective_it_names(
    tmp_path: Path, power: str, hint: str
) -> None:
    path = tmp_path / "a.svs"
    description = f"Aperio Image Library v11.2.1\r\n512x512 [0,0 512x512] (256x256)|AppMag = {power}"
    tifffile.imwrite(
        path, noise(512, 512), tile=(256, 256), photometric="rgb", description=description, metadata=None
    )
    with pytest.raises(ScaleError, match="does not say its scale") as refused:
        open_slide(path)
    assert hint in str(refused.value)
    assert ("objective" in str(refused.value)) == bool(hint)
