"""What names a result: every option and every field of a card belongs to a key, and resuming is a look-up."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from models import brightness_model, dimmer_model, random_step
from test_dense import random_model
from test_infer import CPU, OVERWRITE, MakeSlide, classifier, heatmap, in_context, section, two_models

from wsi_pipeline.base.errors import RecipeError
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.inference.engines import choice
from wsi_pipeline.models.card import ModelCard, Stain
from wsi_pipeline.models.context import ContextCard, ContextStep
from wsi_pipeline.pipeline import infer as pipeline
from wsi_pipeline.pipeline import run as pipeline_run
from wsi_pipeline.pipeline.config import InferConfig, TileConfig, TileGridOptions
from wsi_pipeline.pipeline.estimate import estimator_of_inference, estimator_of_tiling
from wsi_pipeline.pipeline.identity import (
    DECIDES_NOTHING,
    map_report,
    patches_report,
    wanted_map,
    wanted_patches,
)
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.pipeline.maps import choose_map
from wsi_pipeline.pipeline.run import RunOptions
from wsi_pipeline.pipeline.slide_jobs import InferJob, TileJob
from wsi_pipeline.pipeline.tile import tile_slide
from wsi_pipeline.results.fields import FieldOptions
from wsi_pipeline.results.provenance import (
    CARD_DECIDES_NOTHING,
    CARD_DECIDES_REPORT,
    CONTEXT_DECIDES_NOTHING,
    CONTEXT_DECIDES_REPORT,
    REPORT_FORMAT,
    key_of,
)
from wsi_pipeline.results.regions import DelineateOptions
from wsi_pipeline.results.run_folder import Standing
from wsi_pipeline.results.store import PatchTable, SlideStore, StoreLayout, create_store
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.slides.slide import Slide, open_slide
from wsi_pipeline.tiling import grid as grid_module
from wsi_pipeline.tiling.cell_status import initial_status
from wsi_pipeline.tiling.export_draw import ONE_SLIDE, ExportOptions, export_recipe
from wsi_pipeline.tiling.grid import Grid, GridOptions, Plan

FINE = InferConfig(grid=GridOptions(stride_px=25, block_px=256))
TILES = TileConfig(grid=TileGridOptions(patch_px=50, mpp=4.0, block_px=256))
PLAN = Plan(
    Grid(Plane(1, 1), 50, 50, 4, 3), np.ones((3, 4), np.float32), np.eye(3, 4) > 0, np.eye(3, 4) > 1, 2
)


def leaves(value: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of every field of nested options."""
    for field in fields(value):
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def with_another(value: Any, name: str) -> Any:
    """The options with another value, which they allow, in the field of that dotted name."""
    head, _, rest = name.partition(".")
    if rest:
        return replace(value, **{head: with_another(getattr(value, head), rest)})
    old = getattr(value, head)
    hint = get_type_hints(type(value), include_extras=False)[head]
    candidates: list[Any] = [part for part in get_args(hint) if isinstance(part, str)]
    if isinstance(old, bool):
        candidates = [not old]
    elif isinstance(old, int | float):
        candidates += [old + 1, old - 1, old / 2, old * 0.9, old + 0.1]
    elif old is None:
        candidates += [0.4, 3, True, "x"]
    elif isinstance(old, str):
        candidates += [f"{old}x"]
    elif isinstance(old, tuple):
        candidates += [old[1:], *([tuple(part + 0.1 for part in old)] if isinstance(old[0], float) else [])]
    elif isinstance(old, dict):
        candidates += [{**old, "x": 1}, {**old, 7: "IDC"}]
    for candidate in candidates:
        try:
            if candidate != old:
                return replace(value, **{head: candidate})
        except (ValueError, TypeError):
            continue
    raise AssertionError(f"no other value was found for {name}")


@pytest.fixture
def slide(make_slide: MakeSlide) -> Slide:
    return open_slide(make_slide("a.tiff", section(300, 400, 50), mpp=(4.0, 4.0), factors=(1,)))


def keys_of(
    slide: Slide, config: InferConfig, model: Any, inside: str | None = "outlines"
) -> tuple[str, str]:
    """Of the map, whose precision and dense are settled as asked; and of a report, all else equal."""
    shown = choose_map([model], config)
    wanted = wanted_map(slide, [model], config, shown, inside)
    recipe = wanted.settled([wanted.asked["precision"]], wanted.asked["dense"] == "require", PLAN)
    return key_of(recipe), key_of(map_report("same map", slide, config, shown))


SETTLED_GRID = InferConfig(grid=GridOptions(patch_px=50, mpp=4.0))


@pytest.mark.parametrize("name", list(leaves(InferConfig())))
def test_every_option_changes_the_map_key_or_the_report_key_or_decides_nothing_for_a_reason(
    slide: Slide, name: str
) -> None:
    model = replace(brightness_model(), context=random_step())
    before = keys_of(slide, SETTLED_GRID, model)
    other = with_another(SETTLED_GRID, name)
    if name == "classify.dense":
        other = replace(other, classify=replace(other.classify, dense="require"))
    changed = [a != b for a, b in zip(before, keys_of(slide, other, model), strict=True)]
    if name in DECIDES_NOTHING:
        assert changed == [False, False]
        assert DECIDES_NOTHING[name]
    elif name.startswith(("delineate.", "fields.")) or name == "max_unreadable":
        assert changed == [False, True]
    else:
        assert changed[0], "an option that nobody listed must decide the map"


def test_a_map_within_outlines_is_another_for_other_outlines_and_without_any_is_named_as_ever(
    slide: Slide,
) -> None:
    model = brightness_model()
    keys = [keys_of(slide, SETTLED_GRID, model, inside)[0] for inside in (None, "outlines", "others")]
    assert len(set(keys)) == 3
    other = with_another(SETTLED_GRID, "annotations.origin")
    assert keys_of(slide, other, model, None)[0] == keys[0]


@pytest.mark.parametrize("name", list(leaves(TileConfig())))
def test_every_option_of_tile_slides_decides_its_patches_or_what_lies_beside_them(
    slide: Slide, name: str
) -> None:
    def keys(config: TileConfig) -> tuple[str, str]:
        wanted, exported = (
            wanted_patches(slide, config, annotations="outlines"),
            export_recipe(config.export, ONE_SLIDE),
        )
        return key_of(wanted.recipe), key_of(patches_report("same", slide, config, exported))

    config = replace(TILES, export=ExportOptions(format="shards", most_of_class=9))
    before, after = keys(config), keys(with_another(config, name))
    beside = name == "max_unreadable" or name.startswith("export.")
    assert (before[0] != after[0], before[1] != after[1]) == ((False, True) if beside else (True, False))


def card_with_another(card: ModelCard, name: str) -> ModelCard:
    known: dict[str, Any] = {
        "architecture_options": {"width": 8},
        "classes": ("idc", "not_idc"),
        "stain": Stain(od_mean=(0.2, 0.3, 0.2)),
        "context": ContextCard(),
    }
    return replace(card, **{name: known[name]}) if name in known else with_another(card, name)


@pytest.mark.parametrize("name", [field.name for field in fields(ModelCard)])
def test_every_field_of_a_card_decides_the_map_or_the_report_or_nothing_for_a_reason(
    slide: Slide, name: str
) -> None:
    model = brightness_model()
    before = keys_of(slide, SETTLED_GRID, model)
    after = keys_of(slide, SETTLED_GRID, replace(model, card=card_with_another(model.card, name)))
    changed = [a != b for a, b in zip(before, after, strict=True)]
    if name in CARD_DECIDES_NOTHING:
        assert changed == [False, False]
        assert CARD_DECIDES_NOTHING[name]
    else:
        assert changed == ([False, True] if name in CARD_DECIDES_REPORT else [True, False])


@pytest.mark.parametrize("name", [field.name for field in fields(ContextCard) if field.name != "kind"])
def test_every_field_of_a_context_card_decides_the_map_or_the_report_or_nothing(
    slide: Slide, name: str
) -> None:
    step = random_step()
    other = with_another(step.card, "options.base_sigma" if name == "options" else name)
    keys = [
        keys_of(slide, SETTLED_GRID, replace(brightness_model(), context=replace_card(step, card)))
        for card in (step.card, other)
    ]
    changed = [a != b for a, b in zip(*keys, strict=True)]
    if name in CONTEXT_DECIDES_NOTHING:
        assert changed == [False, False]
    else:
        assert changed == ([False, True] if name in CONTEXT_DECIDES_REPORT else [True, False])


def replace_card(step: ContextStep, card: ContextCard) -> ContextStep:
    return ContextStep(card, step.weights)


def test_slide_weights_plan_precision_and_dense_change_the_map_key(
    slide: Slide, make_slide: MakeSlide
) -> None:
    def key(
        slide: Slide = slide,
        model: Any = None,
        precision: str = "fp32",
        dense: bool = False,
        plan: Plan = PLAN,
    ) -> str:
        model = model or replace(brightness_model(), context=random_step())
        shown = choose_map([model], SETTLED_GRID)
        return key_of(wanted_map(slide, [model], SETTLED_GRID, shown).settled([precision], dense, plan))

    image = section(300, 400, 50)
    image[0, 0] = 0
    other = open_slide(make_slide("b.tiff", image, mpp=(4.0, 4.0), factors=(1,)), name="a")
    fewer = PLAN.kept.copy()
    fewer[0, 0] = False
    found = [
        key(),
        key(slide=other),
        key(slide=open_slide(slide.path, 3.9)),
        key(model=replace(brightness_model(), context=random_step(), sha256="2" * 64)),
        key(model=replace(brightness_model(), context=random_step(seed=1))),
        key(model=brightness_model()),
        key(precision="bf16"),
        key(dense=True),
        key(plan=replace(PLAN, block_strides=1)),
        key(plan=replace(PLAN, kept=fewer)),
        key(plan=replace(PLAN, grid=replace(PLAN.grid, plane=Plane(1, 1, 1)))),
    ]
    assert len(set(found)) == len(found)
    assert key() == found[0]


def killed_after(blocks: int) -> RunOptions:
    calls = 0

    def stop(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls > blocks:
            raise KeyboardInterrupt

    return RunOptions(progress=stop)


def broken_off(path: Path, out: Path, config: InferConfig, one: Classifier, blocks: int = 3) -> None:
    with pytest.raises(KeyboardInterrupt):
        infer_slide(path, out, config, one, killed_after(blocks))


def never(done: int, total: int) -> None:
    raise AssertionError("classified again")


UNTOUCHED = RunOptions(progress=never)


@pytest.fixture
def path(make_slide: MakeSlide) -> Path:
    return make_slide("a.tiff", section(700, 900), mpp=(4.0, 4.0), factors=(1,))


def store_files(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in (folder / "slide.zarr").rglob("*") if p.is_file()}


def test_a_resume_under_another_plan_is_refused_and_says_how_they_differ(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = infer_slide(path, tmp_path / "clean", FINE, classifier()).folder
    broken_off(path, tmp_path / "out", FINE, classifier())
    strides = grid_module._block_strides
    with monkeypatch.context() as upgrade:
        upgrade.setattr(grid_module, "_block_strides", lambda *a: max(1, strides(*a) // 2))
        with pytest.raises(RecipeError, match=r"plan\.chunk_cells: \d+ there, \d+ here; plan\.blocks"):
            infer_slide(path, tmp_path / "out", FINE, classifier())
        # What is whole needs no blocks any more: it is done, whatever blocks are planned now.
        assert infer_slide(path, tmp_path / "clean", FINE, classifier()).skipped
        over = infer_slide(path, tmp_path / "over", FINE, classifier()).folder
    assert np.allclose(heatmap(over), heatmap(clean), rtol=0, atol=1e-6, equal_nan=True)
    again = infer_slide(path, tmp_path / "over", FINE, classifier(), OVERWRITE)
    assert again.skipped  # overwriting replaces what differs, and nothing else
    part = infer_slide(path, tmp_path / "out", FINE, classifier()).folder
    assert np.array_equal(heatmap(part), heatmap(clean), equal_nan=True)


def test_other_patches_of_the_same_number_are_another_plan(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off(path, tmp_path, FINE, classifier())
    look = pipeline.overview_of

    def elsewhere(*arguments: Any) -> Any:
        overview = look(*arguments)
        kept = np.roll(overview.plan.kept, 1, axis=1)
        return replace(overview, plan=replace(overview.plan, kept=kept))

    monkeypatch.setattr(pipeline, "overview_of", elsewhere)
    with pytest.raises(RecipeError, match="plan: patches or blocks lie elsewhere"):
        infer_slide(path, tmp_path, FINE, classifier())
    result = infer_slide(path, tmp_path, FINE, classifier(), OVERWRITE)
    assert not result.skipped


def test_a_store_whose_arrays_are_not_as_planned_is_refused(path: Path, tmp_path: Path) -> None:
    broken_off(path, tmp_path, FINE, classifier())
    store = tmp_path / "a/slide.zarr"
    document = json.loads((store / "heatmap/0/zarr.json").read_text())
    document["chunk_grid"]["configuration"]["chunk_shape"] = [3, 3]
    (store / "heatmap/0/zarr.json").write_text(json.dumps(document))
    with pytest.raises(RecipeError, match="chunks of the store: 3 x 3 cells there"):
        infer_slide(path, tmp_path, FINE, classifier())


def half(bf16: bool = True, **options: Any) -> Classifier:
    """A model that may be computed in bfloat16, by torch."""
    model = brightness_model()
    model = replace(model, card=replace(model.card, bf16=bf16))
    return Classifier([model], CPU, ClassifyOptions(engine="torch", **options))


def config_of(one: Classifier, **options: Any) -> InferConfig:
    return replace(FINE, classify=ClassifyOptions(engine="torch", **options))


def precision_in(out: Path) -> list[str]:
    return list(SlideStore(out / "a/slide.zarr").map_recipe["precision"])  # type: ignore[index]


def test_another_precision_is_another_map_and_auto_takes_what_was_settled(path: Path, tmp_path: Path) -> None:
    def run(precision: str, out: str = "out", run: RunOptions = RunOptions(), bf16: bool = True) -> Any:  # noqa: B008
        one = half(bf16, precision=precision)
        return infer_slide(path, tmp_path / out, config_of(one, precision=precision), one, run)

    run("bf16")
    assert precision_in(tmp_path / "out") == ["bf16"]
    assert run("bf16").skipped
    assert run("auto").skipped
    with pytest.raises(RecipeError, match="precision of brightness: bf16 there, fp32 here"):
        run("fp32")
    with pytest.raises(
        RecipeError, match="bf16 there, auto here"
    ):  # auto never takes it unless the card allows it
        run("auto", bf16=False)
    assert not run("fp32", run=OVERWRITE).skipped
    assert precision_in(tmp_path / "out") == ["fp32"]
    assert run("auto").skipped
    assert run("auto", bf16=False).skipped
    with pytest.raises(RecipeError, match="fp32 there, bf16 here"):
        run("bf16")


def test_whoever_goes_on_with_a_store_computes_in_its_precision(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "has_bf16", lambda device=None: True)
    one = half()
    broken_off(path, tmp_path, config_of(one), one)
    assert precision_in(tmp_path) == ["bf16"]
    monkeypatch.setattr(choice, "has_bf16", lambda device=None: False)  # a machine that would take fp32
    assert half().precision == "fp32"
    one = half()
    result = infer_slide(path, tmp_path, config_of(one), one)
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["device"]["precision"] == "bf16"
    assert summary["device"]["engines"][0]["precision"] == "bf16"
    assert summary["device"]["engines"][0]["moved_at_most"] <= 0.1  # its distance from float32 is stated
    assert summary["map_recipe"]["precision"] == ["bf16"]


def test_a_precision_that_cannot_be_had_here_is_refused_with_the_reason(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from wsi_pipeline.models.model import load_model

    model = load_model("idc_default")
    asked = ClassifyOptions(precision="int8")
    config = replace(FINE, classify=asked)
    broken_off(path, tmp_path, config, Classifier([model], CPU, asked), blocks=1)
    assert precision_in(tmp_path) == ["int8"]
    elsewhere = replace(asked, engine="torch")  # as on a machine without OpenVINO
    one = Classifier([model], CPU, elsewhere)
    with pytest.raises(RecipeError, match=r"cannot be computed in int8 here: .*only OpenVINO computes int8"):
        infer_slide(path, tmp_path, replace(config, classify=elsewhere), one)
    result = infer_slide(path, tmp_path, replace(config, classify=elsewhere), one, OVERWRITE)
    assert not result.skipped
    assert precision_in(tmp_path) != ["int8"]
    # It was asked for and could not be had: asked for again, it is the same result.
    assert infer_slide(path, tmp_path, replace(config, classify=elsewhere), one, UNTOUCHED).skipped


def test_dense_is_settled_with_the_store_as_precision_is(path: Path, tmp_path: Path) -> None:
    model = random_model()

    def run(dense: Any, out: str, how: RunOptions = RunOptions()) -> Any:  # noqa: B008
        options = ClassifyOptions(dense=dense, precision="fp32")
        config = InferConfig(grid=GridOptions(stride_px=10, block_px=256), classify=options)
        return infer_slide(path, tmp_path / out, config, Classifier([model], CPU, options), how)

    def is_dense(out: str) -> bool:
        return bool(SlideStore(tmp_path / out / "a/slide.zarr").map_recipe["dense"])  # type: ignore[index]

    whole = run("require", "whole")
    with pytest.raises(KeyboardInterrupt):
        run("auto", "part", killed_after(2))
    assert is_dense("part")
    with pytest.raises(RecipeError, match="dense: on there, off here"):
        run("off", "part")
    assert np.array_equal(heatmap(run("auto", "part").folder), heatmap(whole.folder), equal_nan=True)
    assert run("require", "part").skipped
    assert run("require", "part").map_key == whole.map_key
    run("off", "off")
    assert not is_dense("off")
    assert run("auto", "off").skipped
    with pytest.raises(RecipeError, match="dense: off there, on here"):
        run("require", "off")


@pytest.mark.parametrize(
    "other",
    [
        InferConfig(delineate=DelineateOptions(threshold=0.72)),
        InferConfig(delineate=DelineateOptions(min_area_mm2=0.5)),
        InferConfig(fields=FieldOptions(count=2)),
        InferConfig(fields=FieldOptions(diameter_mm=0.4)),
    ],
)
def test_another_report_is_drawn_again_from_the_same_map_and_never_classified(
    path: Path, tmp_path: Path, other: InferConfig
) -> None:
    first = infer_slide(path, tmp_path / "out", InferConfig(), classifier())
    fresh = infer_slide(path, tmp_path / "fresh", other, classifier())
    files = store_files(first.folder)
    for run in (UNTOUCHED, RunOptions(overwrite=True, progress=never)):
        again = infer_slide(path, tmp_path / "out", other, classifier(), run)
        assert (again.map_key, again.report_key) == (first.map_key, fresh.report_key)
        assert again.report_key != first.report_key
        assert (again.folder / "regions.geojson").read_bytes() == (
            fresh.folder / "regions.geojson"
        ).read_bytes()
        back = infer_slide(path, tmp_path / "out", InferConfig(), classifier(), run)
        assert back.report_key == first.report_key
        assert not again.skipped
        assert " there, " in again.drawn_again
        assert " here" in again.drawn_again
    assert store_files(first.folder) == files
    summaries = [json.loads((r.folder / "summary.json").read_text()) for r in (first, fresh)]
    assert summaries[0]["device"] == summaries[1]["device"]
    assert summaries[0]["stain"] == summaries[1]["stain"]


@pytest.mark.parametrize(
    "name",
    ["tissue.png", "heatmap.png", "overlay.png", "report.png", "uncertainty.png", "regions.geojson"],
)
def test_an_output_that_is_gone_or_empty_is_made_again(path: Path, tmp_path: Path, name: str) -> None:
    folder = infer_slide(path, tmp_path, InferConfig(), two_models()).folder
    files, before = store_files(folder), (folder / name).read_bytes()
    for harm in (Path.unlink, lambda file: file.write_bytes(b"")):
        harm(folder / name)
        again = infer_slide(path, tmp_path, InferConfig(), two_models(), UNTOUCHED)
        assert again.drawn_again == f"missing: {name}"
        assert (folder / name).read_bytes() == before
    assert store_files(folder) == files
    assert infer_slide(path, tmp_path, InferConfig(), two_models(), UNTOUCHED).skipped


def test_a_report_broken_off_is_drawn_whole_whichever_of_both_is_asked_for_next(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = infer_slide(path, tmp_path, InferConfig(), classifier()).folder
    before = (folder / "regions.geojson").read_bytes()

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "draw_map", stop)
        with pytest.raises(KeyboardInterrupt):
            infer_slide(path, tmp_path, InferConfig(delineate=DelineateOptions(threshold=0.72)), classifier())
    assert (folder / "regions.geojson").read_bytes() != before
    again = infer_slide(path, tmp_path, InferConfig(), classifier(), UNTOUCHED)
    assert not again.skipped
    assert (folder / "regions.geojson").read_bytes() == before


def test_models_named_in_another_order_are_one_map_bit_by_bit(path: Path, tmp_path: Path) -> None:
    third = replace(brightness_model(), sha256="2" * 64)
    third = replace(third, card=replace(third.card, name="third", std=(3.0, 3.0, 3.0), threshold=0.1))
    models = [*two_models().models, third]
    results = [
        infer_slide(path, tmp_path / str(i), InferConfig(), Classifier(order, CPU, ClassifyOptions()))
        for i, order in enumerate((models, models[::-1], [models[1], models[0], models[2]]))
    ]
    assert len({(result.map_key, result.report_key) for result in results}) == 1
    for name in ("heatmap/0", "uncertainty/0"):
        maps = [heatmap(result.folder, name) for result in results]
        assert all(np.array_equal(maps[0], other, equal_nan=True) for other in maps[1:])
    other_order = Classifier(models[::-1], CPU, ClassifyOptions())
    assert infer_slide(path, tmp_path / "0", InferConfig(), other_order, UNTOUCHED).skipped


def test_a_refusal_names_what_differs_value_by_value(
    path: Path, tmp_path: Path, make_slide: MakeSlide
) -> None:
    infer_slide(path, tmp_path / "out", FINE, classifier())
    calibrated = brightness_model()
    calibrated = replace(calibrated, card=replace(calibrated.card, temperature=1.2))
    wider = replace(FINE, grid=GridOptions(block_px=256, min_tissue=0.2))
    cases: list[tuple[SlideEntry | Path, InferConfig, Classifier, str]] = [
        (
            path,
            wider,
            classifier(),
            r"grid\.stride_px: 25 there, 50 here; grid\.min_tissue: 0\.1 there, 0\.2 here",
        ),
        (
            path,
            FINE,
            Classifier([dimmer_model()], CPU, ClassifyOptions()),
            r"model: brightness \(weights 0{12}\) there, dimmer \(weights 1{12}\) here",
        ),
        (
            path,
            FINE,
            Classifier([calibrated], CPU, ClassifyOptions()),
            r"brightness's card\.temperature: 1 there, 1\.2 here",
        ),
        (
            SlideEntry(path, "a", mpp=3.9),
            FINE,
            classifier(),
            r"slide\.mpp: 4 x 4 there, 3\.9 x 3\.9 here",
        ),
        (path, FINE, in_context(), "context step: none there, one here"),
    ]
    for slide, config, one, words in cases:
        with pytest.raises(RecipeError, match=words) as refused:
            infer_slide(slide, tmp_path / "out", config, one)
        assert str(tmp_path / "out/a") in str(refused.value)
        assert "--overwrite" in str(refused.value)
    with pytest.raises(RecipeError, match="command: infer-slide there, tile-slides here"):
        tile_slide(path, tmp_path / "out", TILES)
    image = section(700, 900)
    image[0, 0] = 0  # another content in as many bytes
    make_slide("a.tiff", image, mpp=(4.0, 4.0), factors=(1,))
    with pytest.raises(RecipeError, match=r"\(slide: the file's content is another\)"):
        infer_slide(path, tmp_path / "out", FINE, classifier())
    make_slide("a.tiff", section(300, 900), mpp=(4.0, 4.0), factors=(1,))
    with pytest.raises(
        RecipeError, match=r"slide\.bytes: \d+ there, \d+ here; slide\.size0: 900 x 700 there, 900 x 300"
    ):
        infer_slide(path, tmp_path / "out", FINE, classifier())


# What a build of before there were keys wrote into its stores.
BEFORE = {
    "version": "0.1.0.dev0",
    "command": "infer-slide",
    "slide": {"name": "a", "fingerprint": "f" * 64, "size0": [900, 700], "mpp": [4.0, 4.0]},
    "model": {"name": "brightness", "sha256": "0" * 64},
    "options": {"grid": {"patch_px": 50, "stride_px": None}},
    "map": "each patch alone",
    "threshold": 0.5,
    "recipe": "0123456789abcdef",
}


def test_a_store_of_before_there_were_keys_is_read_but_not_gone_on_with_nor_taken_as_done(
    path: Path, tmp_path: Path
) -> None:
    plan = replace(PLAN, kept=np.ones((3, 4), np.bool_))
    nothing = np.zeros(12, np.int32)
    table = PatchTable(nothing, nothing, np.ones(12, np.float32), None)
    layout = StoreLayout(plan, (4.0, 4.0), np.ones((3, 4), np.uint8), Plane(50, 50), table, ("heatmap",))
    for complete in (True, False):
        store = create_store(tmp_path / "out/a/slide.zarr", BEFORE, layout)
        for block in plan.blocks():
            shape = (block.cells.height, block.cells.width)
            store.write_block(block.cells, np.full(shape, 0.25, np.float32), np.ones(shape, np.uint8))
        if complete:
            store.finish({}, initial_status(plan))
        read = SlideStore(tmp_path / "out/a/slide.zarr")
        assert (read.array("heatmap/0") == 0.25).all()
        assert read.is_complete == complete
        (tmp_path / "out/a/summary.json").write_text('{"recipe_key": "0123456789abcdef"}')
        with pytest.raises(
            RecipeError,
            match=r"earlier version \(wsi_pipeline 0\.1\.0\.dev0\).*no map key.*--overwrite to replace",
        ):
            infer_slide(path, tmp_path / "out", InferConfig(), classifier())
    result = infer_slide(path, tmp_path / "out", InferConfig(), classifier(), OVERWRITE)
    assert not result.skipped
    assert not result.drawn_again
    assert infer_slide(path, tmp_path / "out", InferConfig(), classifier(), UNTOUCHED).skipped


def test_a_map_of_another_format_is_refused_by_the_number(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer_slide(path, tmp_path, InferConfig(), classifier())
    monkeypatch.setattr("wsi_pipeline.pipeline.identity.MAP_FORMAT", 99)
    with pytest.raises(RecipeError, match="format: 1 there, 99 here"):
        infer_slide(path, tmp_path, InferConfig(), classifier())


def test_a_report_of_another_format_is_drawn_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer_slide(path, tmp_path, InferConfig(), classifier())
    monkeypatch.setattr("wsi_pipeline.pipeline.identity.REPORT_FORMAT", 99)
    again = infer_slide(path, tmp_path, InferConfig(), classifier(), UNTOUCHED)
    assert again.drawn_again == f"format: {REPORT_FORMAT} there, 99 here"


def test_more_that_is_unreadable_is_a_question_of_the_report(shared: Path, tmp_path: Path) -> None:
    from wsi_pipeline.base.errors import UnreadableSlideError

    path, one = shared / "data/bad/five_tiles_corrupt.svs", classifier(mpp=1.0)
    first = infer_slide(path, tmp_path, InferConfig(), one)
    with pytest.raises(UnreadableSlideError, match="at most 1%"):
        infer_slide(path, tmp_path, InferConfig(max_unreadable=0.01), one, UNTOUCHED)
    assert infer_slide(path, tmp_path, InferConfig(), one, UNTOUCHED).skipped
    more = infer_slide(path, tmp_path, InferConfig(max_unreadable=0.9), one, UNTOUCHED)
    assert more.map_key == first.map_key
    assert more.drawn_again == "max_unreadable: 0.25 there, 0.9 here"


def outline(path: Path, name: str = "IDC") -> Path:
    ring = [[400, 200], [700, 200], [700, 500], [400, 500], [400, 200]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": name}},
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path.parent


def test_patches_are_exported_after_they_were_planned_and_what_is_missing_is_made_again(
    path: Path, tmp_path: Path
) -> None:
    out, place = tmp_path / "out", tmp_path / "out/a/export/a/unlabelled"

    def run(export: bool) -> Any:
        return tile_slide(path, out, TILES, export=export)

    first = run(export=False)
    assert not place.exists()
    files = store_files(first.folder)
    exported = run(export=True)
    assert exported.drawn_again == "the patches were not exported"
    assert exported.map_key == first.map_key
    assert len(list(place.iterdir())) == first.patches
    assert run(export=True).skipped
    assert run(export=False).skipped  # what is asked for is there
    sorted(place.iterdir())[3].unlink()
    assert run(export=False).skipped
    assert run(export=True).drawn_again == "missing: 1 exported patch"
    assert len(list(place.iterdir())) == first.patches
    info = (place.parent / "export.json").read_bytes()
    (place.parent / "export.json").unlink()
    assert run(export=True).drawn_again == "missing: export.json beside the exported patches"
    assert (place.parent / "export.json").read_bytes() == info
    (out / "a/tissue.png").unlink()
    assert run(export=False).drawn_again == "missing: tissue.png"
    assert (out / "a/tissue.png").exists()
    assert store_files(first.folder) == files


def test_other_outlines_are_other_patches_and_refused(path: Path, tmp_path: Path) -> None:
    drawn = outline(tmp_path / "drawn/a.geojson")
    tile_slide(path, tmp_path / "out", TILES, drawn)
    assert tile_slide(path, tmp_path / "out", TILES, drawn).skipped
    with pytest.raises(RecipeError, match="annotations: one there, none here"):
        tile_slide(path, tmp_path / "out", TILES)
    outline(tmp_path / "drawn/a.geojson", "Tumor")
    with pytest.raises(RecipeError, match=r"\(annotations: the file of outlines is another\)"):
        tile_slide(path, tmp_path / "out", TILES, drawn)


def test_a_plan_of_tile_slides_is_compared_before_it_is_gone_on_with(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        tile_slide(path, tmp_path, TILES, export=True, run=killed_after(2))
    strides: Callable[..., int] = grid_module._block_strides
    monkeypatch.setattr(grid_module, "_block_strides", lambda *a: max(1, strides(*a) // 2))
    with pytest.raises(RecipeError, match=r"plan\.chunk_cells"):
        tile_slide(path, tmp_path, TILES, export=True)
    assert pipeline_run.same_plan(None, PLAN, tmp_path, RunOptions()) is None


def test_a_dry_run_says_what_would_be_drawn_again_and_what_goes_on(path: Path, tmp_path: Path) -> None:
    def standing(**options: Any) -> Standing:
        job = InferJob(tmp_path, InferConfig(**options), ("idc_default",), "cpu")
        return estimator_of_inference(job)(SlideEntry(path, "a")).standing

    assert standing() is Standing.NEW
    config, one = InferJob(tmp_path, InferConfig(), ("idc_default",), "cpu").load(0)
    folder = infer_slide(path, tmp_path, config, one).folder
    assert standing() is Standing.DONE
    assert standing(delineate=DelineateOptions(threshold=0.72)) is Standing.TO_DRAW
    (folder / "report.png").unlink()
    assert standing() is Standing.TO_DRAW
    with pytest.raises(RecipeError, match=r"grid\.stride_px: 50 there, 25 here"):
        standing(grid=GridOptions(stride_px=25))

    def tiling(export: bool) -> Standing:
        job = TileJob(tmp_path / "tiles", TILES, export=export)
        return estimator_of_tiling(job)(SlideEntry(path, "a")).standing

    tile_slide(path, tmp_path / "tiles", TILES)
    assert tiling(export=False) is Standing.DONE
    assert tiling(export=True) is Standing.BEGUN


def test_summary_and_store_carry_the_keys(path: Path, tmp_path: Path) -> None:
    result = infer_slide(path, tmp_path, InferConfig(), classifier())
    summary = json.loads((result.folder / "summary.json").read_text())
    attributes = SlideStore(result.folder / "slide.zarr").attributes
    assert summary["map_key"] == attributes["map_key"] == result.map_key == key_of(summary["map_recipe"])
    assert summary["report_key"] == result.report_key == key_of(summary["report_recipe"])
    assert summary["map_recipe"] == attributes["map_recipe"]
    assert summary["report_recipe"]["map_key"] == result.map_key


@pytest.mark.parametrize("array", ["heatmap", "patch_heatmap", "labels/status", "patches/x0"])
def test_a_store_of_which_an_array_is_gone_is_not_taken_as_done(
    make_slide: MakeSlide, tmp_path: Path, array: str
) -> None:
    path = make_slide("a.tiff", section(600, 800), mpp=(4.0, 4.0))
    one = in_context(0.5)
    config = InferConfig(grid=GridOptions(block_px=256))
    folder = infer_slide(path, tmp_path / "out", config, one).folder
    shutil.rmtree(folder / "slide.zarr" / array)
    with pytest.raises(RecipeError, match=rf"slide\.zarr is damaged: found no {array}"):
        infer_slide(path, tmp_path / "out", config, one)
    again = infer_slide(path, tmp_path / "out", config, one, OVERWRITE)
    assert not again.skipped
    assert (folder / "slide.zarr" / array).is_dir()
