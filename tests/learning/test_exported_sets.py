"""What `tile-slides` exports, in each format, is what training reads: the same patches, labels, patients and scale."""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import shapely
import webdataset
from conftest import noise, write_outlines, write_slide
from PIL import Image

from wsi_pipeline.base.errors import DataError, OutputError
from wsi_pipeline.cli import tile_slides
from wsi_pipeline.learning.datasets import SplitOptions, load_split
from wsi_pipeline.learning.datasets.layouts import list_images
from wsi_pipeline.learning.datasets.load import load_side
from wsi_pipeline.pipeline.config import TileConfig, TileGridOptions
from wsi_pipeline.pipeline.run import RunOptions
from wsi_pipeline.pipeline.tile import tile_slide
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.tiling.export_draw import ExportFormat, ExportOptions
from wsi_pipeline.tiling.export_info import read_export

GRID = TileGridOptions(patch_px=20, mpp=0.5, min_tissue=0.5, block_px=256)
SPLIT = SplitOptions(val_share=0.5)
WIDTH, HEIGHT = 640, 400


def write(folder: Path, name: str, seed: int) -> Path:
    """A slide of coloured noise, with IDC outlined at its left and other tissue at its right."""
    rgb = (noise(HEIGHT, WIDTH, seed) // 2 + (70, 20, 60)).astype(np.uint8)
    rgb[:40] = 242
    path = write_slide(folder / f"{name}.tiff", rgb, factors=(1, 4), tile=64)
    write_outlines(
        path, ((shapely.box(0, 0, 200, HEIGHT), "IDC"), (shapely.box(300, 0, WIDTH, HEIGHT), "Normal"))
    )
    return path


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for seed, name in enumerate(("a.1", "b")):
        write(folder, name, seed)
    return folder


def export(slides: Path, out: Path, **options: object) -> None:
    """Both slides as of two patients, 17 and 18."""
    config = TileConfig(grid=GRID, export=ExportOptions(**options))  # type: ignore[arg-type]
    for patient, name in (("17", "a.1"), ("18", "b")):
        entry = SlideEntry(slides / f"{name}.tiff", name, patient=patient)
        tile_slide(entry, out, config, annotations=slides, export=True)


def pixels_by_label(folder: Path) -> dict[tuple[str, int], set[bytes]]:
    side = load_side(folder, 20, "all", SplitOptions(), cache=folder.parent / "cache", mpp=0.5)
    found: dict[tuple[str, int], set[bytes]] = {}
    for patch, label, patient in zip(side.pixels, side.labels.tolist(), side.patients.tolist(), strict=True):
        found.setdefault((patient, label), set()).add(patch.tobytes())
    return found


def files_under(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("export/**/*")) if p.is_file()
    }


def test_all_formats_give_training_the_same_patches_labels_and_patients(slides, tmp_path):
    found = {}
    for name in ("png", "idc", "shards"):
        export(slides, tmp_path / name, format=name)
        listing = list_images(tmp_path / name)
        assert (listing.by, set(listing.patients.tolist())) == ("patient", {"17", "18"})
        assert listing.scale is not None
        assert (listing.scale.mpp, listing.scale.width_px) == (0.5, 20)
        found[name] = pixels_by_label(tmp_path / name)
        assert set(found[name]) == {("17", 0), ("17", 1), ("18", 0), ("18", 1)}
        train, val = load_split(tmp_path / name, 20, SPLIT, cache=tmp_path / "cache", mpp=0.5)
        assert {*train.patients.tolist()}.isdisjoint(val.patients.tolist())
    assert found["png"] == found["idc"] == found["shards"]
    assert (
        (list_images(tmp_path / "png").labels == -1).sum()
        == (list_images(tmp_path / "shards").labels == -1).sum()
        > 0
    )


def test_the_idc_layout_is_the_public_sets_own_and_is_read_as_such_once_put_together(slides, tmp_path):
    export(slides, tmp_path / "out", format="idc")
    files = sorted((tmp_path / "out").rglob("*.png"))
    files = [file for file in files if file.name != "tissue.png"]
    together = tmp_path / "set"
    for file in files:
        patient, label = file.parts[-3:-1]
        assert file.name.startswith(f"{patient}_idx5_x")
        assert file.name.endswith(f"_class{label}.png")
        x, y = (int(part[1:]) for part in file.name.split("_")[2:4])
        assert (x % 20, y % 20) == (1, 1)
        target = together / patient / label / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    assert pixels_by_label(together) == pixels_by_label(tmp_path / "out")


def test_slides_of_one_patient_never_share_a_name_and_names_that_do_not_fit_are_told(slides, tmp_path):
    config = TileConfig(grid=GRID, export=ExportOptions(format="idc"))
    stems: list[str] = []
    for number, name in enumerate(("a.1", "b")):
        entry = SlideEntry(slides / f"{name}.tiff", name, patient="case_9", of_patient=(number, 2))
        result = tile_slide(entry, tmp_path / "out", config, slides, export=True)
        assert any("the name case_9 does not fit the public IDC set" in line for line in result.warnings)
        stems += [file.name for file in (result.folder / "export/case_9").rglob("*.png")]
    assert len(stems) == len(set(stems)) > 100
    assert {name.split("_x")[0] for name in stems} == {"case_9_idx5", "case_9_idx6"}
    unknown = tile_slide(slides / "b.tiff", tmp_path / "unknown", config, slides, export=True)
    assert any(
        "the patient is not known, the slide's name stands for it" in line for line in unknown.warnings
    )
    bad = SlideEntry(slides / "b.tiff", "b", patient="a/b")
    with pytest.raises(DataError, match=r"patient 'a/b': .*expected a name that a folder can have"):
        tile_slide(bad, tmp_path / "bad", config, slides, export=True)


def test_the_libraries_own_reader_opens_the_shards(slides, tmp_path):
    export(slides, tmp_path / "out", format="shards", shard_patches=150)
    place = tmp_path / "out/a.1/export/a.1"
    shards = sorted(place.glob("*.tar"))
    assert [shard.name for shard in shards] == [f"a.1-{n:06d}.tar" for n in range(len(shards))]
    assert len(shards) > 2
    read = list(webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False).decode("rgb8"))
    info = read_export(place)
    assert info is not None
    assert info.shards is not None
    assert len(read) == sum(count for _, count in info.shards) == sum(info.patches.values())
    assert (info.mpp, info.patient, info.slide) == (0.5, "17", "a.1")
    with Image.open(slides / "a.1.tiff") as image:
        level0 = np.asarray(image.convert("RGB"))
    labels = {1: 0, 0: 0, None: 0}
    for sample in read:
        facts, label = sample["json"], sample.get("cls")
        x, y = facts["x0"], facts["y0"]
        labels[label] += 1
        assert (facts["slide"], facts["patient"], facts["mpp"]) == ("a.1", "17", 0.5)
        assert (sample["png"] == level0[y : y + 20, x : x + 20]).all()
        assert label == (1 if x + 10 <= 200 else 0 if x >= 300 else label)
    assert labels == {1: info.patches["idc"], 0: info.patches["not_idc"], None: info.patches["unlabelled"]}


def test_the_same_export_gives_the_same_bytes_and_another_takes_its_place(slides, tmp_path, caplog):
    options = {"format": "shards", "shard_patches": 100, "most_of_class": 60}
    export(slides, tmp_path / "one", **options)
    export(slides, tmp_path / "two", **options)
    assert files_under(tmp_path / "one") == files_under(tmp_path / "two")
    before = files_under(tmp_path / "one")
    export(slides, tmp_path / "one", **options | {"seed": 1})
    after = files_under(tmp_path / "one")
    assert "an export of other options is removed" in caplog.text
    assert set(after) == set(before)
    assert after != before
    export(slides, tmp_path / "one", format="idc", most_of_class=60)
    names = set(files_under(tmp_path / "one"))
    assert not [name for name in names if name.endswith(".tar")]
    assert sum(name.endswith(".png") for name in names) == 4 * 60
    info = read_export(tmp_path / "one/b/export/18")
    assert info is not None
    assert info.patches == {"idc": 60, "not_idc": 60, "unlabelled": 0}
    assert info.left_out["unlabelled"] > 0


@pytest.mark.parametrize("form", ["png", "shards"])
def test_an_export_broken_off_is_refused_as_shards_and_goes_on_to_the_same_bytes(slides, tmp_path, form):
    options = {"format": form, "shard_patches": 100}
    config = TileConfig(grid=GRID, export=ExportOptions(**options))
    export(slides, tmp_path / "whole", **options)
    entry = SlideEntry(slides / "b.tiff", "b", patient="18")

    def stop(done: int, total: int) -> None:
        if done > 0.6 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tile_slide(entry, tmp_path / "out", config, slides, True, RunOptions(progress=stop))
    left = files_under(tmp_path / "out")
    if form == "shards":
        assert len(left) > 1
        with pytest.raises(DataError, match=r"its export was broken off .*run the same tile-slides again"):
            list_images(tmp_path / "out")
    before = {
        name: (tmp_path / "out" / name).stat().st_mtime_ns for name in left if not name.endswith("json")
    }
    tile_slide(entry, tmp_path / "out", config, slides, export=True)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before
    whole = {name: data for name, data in files_under(tmp_path / "whole").items() if name.startswith("b/")}
    assert files_under(tmp_path / "out") == whole
    assert tile_slide(entry, tmp_path / "out", config, slides, export=True).skipped
    next(path for path in (tmp_path / "out/b/export").rglob("*.[tp][an][rg]")).unlink()
    assert tile_slide(entry, tmp_path / "out", config, slides, export=True).drawn_again.startswith(
        "missing: "
    )
    assert files_under(tmp_path / "out") == whole


def test_damaged_shards_and_mixed_formats_are_refused_in_a_line(slides, tmp_path):
    export(slides, tmp_path / "out", format="shards")
    shard = tmp_path / "out/b/export/b/b-000000.tar"
    content = shard.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        cut = [member.offset for member in tar][30]
    for data, reason in (
        (content[:cut], "found 10 patches, expected"),
        (b"no tar" * 400, "cannot be read as a shard"),
        (content[: cut + 700], "cannot be read as a shard|found 1. patches"),
    ):
        shard.write_bytes(data)
        with pytest.raises(DataError, match=reason):
            list_images(tmp_path / "out")
    shard.write_bytes(content)
    entry = SlideEntry(slides / "b.tiff", "b", patient="18")
    tile_slide(entry, tmp_path / "out", TileConfig(grid=GRID), slides, export=True)
    with pytest.raises(DataError, match=r"found exports of several formats \(png, shards\), expected one"):
        list_images(tmp_path / "out")


def test_shards_that_lead_elsewhere_or_hold_something_else_are_refused(slides, tmp_path):
    export(slides, tmp_path / "out", format="shards")
    place = tmp_path / "out/b/export/b"
    shard, said = place / "b-000000.tar", json.loads((place / "export.json").read_text())
    kept = shard.read_bytes()
    with tarfile.open(shard, "w") as tar:
        member = tarfile.TarInfo("b_x0_y0.cls")
        member.size = 100
        tar.addfile(member, io.BytesIO(b"1" * 100))
    with pytest.raises(DataError, match="found the label '11111111', expected 0 or 1"):
        list_images(tmp_path / "out")
    shard.write_bytes(kept)
    shutil.copy(shard, tmp_path / "elsewhere.tar")
    said["shards"] = [["../../../../elsewhere.tar", said["shards"][0][1]]]
    (place / "export.json").write_text(json.dumps(said))
    with pytest.raises(
        DataError, match=r"found the shard '.*elsewhere.tar', expected the name of a file beside it"
    ):
        list_images(tmp_path / "out")


def test_what_is_not_an_export_is_never_removed_for_one(slides, tmp_path):
    entry = SlideEntry(slides / "b.tiff", "b", patient="18")
    tile_slide(entry, tmp_path / "out", TileConfig(grid=GRID), slides)
    for name in ("b", "mine"):
        (tmp_path / "out/b/export" / name).mkdir(parents=True)
        (tmp_path / "out/b/export" / name / "notes.txt").write_text("mine")
    config = TileConfig(grid=GRID, export=ExportOptions(format="shards"))
    with pytest.raises(OutputError, match=r"found files without an export.json .*move them elsewhere"):
        tile_slide(entry, tmp_path / "out", config, slides, export=True)
    assert (tmp_path / "out/b/export/b/notes.txt").read_text() == "mine"
    (tmp_path / "out/b/export/b/notes.txt").unlink()
    tile_slide(entry, tmp_path / "out", config, slides, export=True)
    assert (tmp_path / "out/b/export/b/b-000000.tar").exists()
    assert (tmp_path / "out/b/export/mine/notes.txt").read_text() == "mine"


def test_the_command_offers_every_format():
    assert get_args(ExportFormat) == tile_slides.FORMATS


def test_the_command_says_what_was_left_out(slides, tmp_path, capfd):
    config = tmp_path / "draw.yaml"
    config.write_text(
        "grid: {patch_px: 20, mpp: 0.5, min_tissue: 0.5}\nexport: {most_of_patient: 50, unlabelled: false}\n"
    )
    arguments = [
        str(slides),
        "--out",
        str(tmp_path / "out"),
        "--config",
        str(config),
        "--annotations",
        str(slides),
    ]
    assert tile_slides.main([*arguments, "--patient-pattern", ".", "--export-format", "shards"]) == 0
    printed = "".join(capfd.readouterr())
    assert printed.count("left out, as the config says") == 2
    assert "export: 50 of" in printed
    info = read_export(tmp_path / "out/b/export/b")
    assert info is not None
    assert info.patches == {"idc": 25, "not_idc": 25, "unlabelled": 0}
    summary = json.loads((tmp_path / "out/b/summary.json").read_text())
    assert summary["counts"]["exported"] == 50
    # Read by folder of the whole batch, by patient.
    train, val = load_split(
        tmp_path / "out", 20, replace(SPLIT, val_share=0.5), cache=tmp_path / "cache", mpp=0.5
    )
    assert (len(train), len(val), train.by) == (50, 50, "patient")
