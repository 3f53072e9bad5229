"""Masks as annotations: the classes and places that their makers meant, or a refusal."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.slides.annotations.cell_labels import labels_of_drawn
from wsi_pipeline.slides.annotations.coverage import Cells
from wsi_pipeline.slides.annotations.files import labels_beside
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions
from wsi_pipeline.slides.annotations.masks import LabelMask, mask_share, read_mask

SIZE0, MPP0 = Size(800, 400), (0.5, 0.5)
# Of 8 x 4 pixels, each 100 x 100 level-0 pixels.
VALUES = np.full((4, 8), 255, np.uint8)
VALUES[:2, :3], VALUES[2:, 5:] = 1, 0


def read(path: Path, options: AnnotationOptions | None = None) -> LabelMask:
    return read_mask(path, options or AnnotationOptions(), SIZE0, MPP0)


def saved(path: Path, values: np.ndarray = VALUES) -> Path:
    Image.fromarray(values).save(path)
    return path


def labels(mask: LabelMask, cells: Cells | None = None) -> np.ndarray:
    return labels_of_drawn(mask, cells or Cells(Plane(100, 100), 8, 4), AnnotationOptions())


@pytest.mark.parametrize("name", ["a_mask.png", "a_mask.tif"])
def test_a_mask_of_the_slides_shape_labels_what_its_values_say(tmp_path: Path, name: str) -> None:
    assert np.array_equal(labels(read(saved(tmp_path / name))), VALUES)


def test_cells_are_labelled_by_what_covers_half_of_them_at_any_scale(tmp_path: Path) -> None:
    mask = read(saved(tmp_path / "a_mask.png"))
    rng = np.random.default_rng(0)
    cells = Cells(Plane(1.0, 1.0, 13.0, 7.0), 5, 3, side=90.0, stride=130.0)
    fine = np.kron(VALUES == 1, np.ones((100, 100)))
    expected = [
        [fine[7 + r * 130 : 97 + r * 130, 13 + c * 130 : 103 + c * 130].mean() for c in range(5)]
        for r in range(3)
    ]
    assert np.allclose(mask_share(mask.idc, mask.plane, cells), expected, atol=1e-5)
    big = np.kron(VALUES, np.ones((25, 25), np.uint8))
    assert np.array_equal(labels(read(saved(tmp_path / "b_mask.png", big))), VALUES)
    noise = rng.integers(0, 2, (40, 80)).astype(np.uint8)
    half = labels(read(saved(tmp_path / "c_mask.png", noise)))
    assert np.array_equal(half == 1, noise.reshape(4, 10, 8, 10).mean(axis=(1, 3)) >= 0.5)


def test_a_scale_places_a_mask_of_a_part_and_one_that_is_too_large_is_refused(tmp_path: Path) -> None:
    part = saved(tmp_path / "a_mask.png", VALUES[:2, :3])
    with pytest.raises(DataError, match="expected a mask of the whole slide, or its scale"):
        read(part)
    mask = read(part, AnnotationOptions(mask_mpp=50.0))
    assert "covers a part" in mask.warnings[0]
    found = labels(mask)
    assert (found[:2, :3] == 1).all()
    assert (np.delete(found.ravel(), np.flatnonzero((found == 1).ravel())) == 255).all()
    with pytest.raises(DataError, match=r"3 x 2 px at 400 um, 2400 x 1600 px of the slide's 800 x 400"):
        read(part, AnnotationOptions(mask_mpp=400.0))


def test_a_tiff_says_its_scale_in_pixels_per_centimetre(tmp_path: Path) -> None:
    path = tmp_path / "a_mask.tif"
    tifffile.imwrite(path, VALUES[:2, :3], resolution=(200, 200), resolutionunit="CENTIMETER")  # 50 um
    assert (labels(read(path))[:2, :3] == 1).all()


def test_of_a_pyramid_a_level_that_fits_into_memory_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a_mask.tif"
    big = np.kron(VALUES, np.ones((20, 20), np.uint8))
    with tifffile.TiffWriter(path) as file:
        file.write(big, subifds=1, tile=(16, 16), resolution=(4000, 4000), resolutionunit="CENTIMETER")
        file.write(big[::2, ::2], subfiletype=1, tile=(16, 16))
    monkeypatch.setattr("wsi_pipeline.slides.annotations.masks.MOST_PIXELS", 5000)
    mask = read(path)
    assert mask.idc.shape == (40, 80)
    assert np.array_equal(labels(mask), VALUES)
    monkeypatch.setattr("wsi_pipeline.slides.annotations.masks.MOST_PIXELS", 500)
    with pytest.raises(DataError, match="save it reduced"):
        read(path)


def test_values_have_the_classes_that_the_config_names_and_others_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a_mask.png", np.where(VALUES == 1, 7, VALUES).astype(np.uint8))
    with pytest.raises(DataError, match="found the values 7, of which the config knows nothing"):
        read(path)
    options = AnnotationOptions(mask_classes={0: "Vessel", 7: "Tumor: IDC", 255: "Ignore"})
    mask = read(path, options)
    assert mask.idc.sum() == 6
    assert not mask.not_idc.any()
    assert "6 pixels of 0 (Vessel) passed over" in mask.warnings[0]


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_what_is_no_grey_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a_mask.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as a mask"):
        read(path)
    with pytest.raises(DataError, match="expected a grey picture"):
        read(saved(path, np.zeros((4, 8, 3), np.uint8)))


def test_labels_beside_a_slide_are_outlines_or_a_mask_and_two_files_are_refused(tmp_path: Path) -> None:
    assert labels_beside(tmp_path, Path("s.svs"), "s") is None
    mask = saved(tmp_path / "s_mask.tif")
    assert labels_beside(tmp_path, Path("s.svs"), "s") == mask
    (tmp_path / "s.geojson").write_text("[]")
    with pytest.raises(DataError, match=r"s.geojson and s_mask.tif"):
        labels_beside(tmp_path, Path("s.svs"), "s")
