"""The page of what was measured on a GPU says which targets are met, and what was not measured."""

from scripts.bench.gpu_page import page


def row(rate: int, network: int, busy: list[float]) -> dict[str, object]:
    return {
        "patches": 1000,
        "patches_per_s": rate,
        "network_per_s": network,
        "share of the network alone": rate / network,
        "busy samples": busy,
        "gpu_mb": 900,
        "host_mb": 2000,
        "engine": {"precision": "bf16", "batch": 4096},
    }


def found(rate: int, busy: list[float]) -> dict[str, object]:
    machine = {
        "gpu": "NVIDIA X",
        "cores": 16,
        "processor": "p",
        "python": "3.12",
        "torch": "2.11",
        "date": "2026-01-01",
        "commit": "abc",
        "jpeg tiles in C": True,
    }
    return {
        "machine": machine,
        "tests": {"tests": 22, "failures": 0, "errors": 0, "skipped": 1},
        "end to end": {"whole slide": row(rate, 600_000, busy), "seconds": 9.0},
        "resnet": row(13_000, 14_000, [1.0]),
        "network": {"50 px, fp16": {4096: "refused: why", 512: 500_000}, "seconds": 1.0},
        "lineup": {"vgg16": {"per_s": 9_000, "precision": "fp16", "batch": 512}, "seconds": 2.0},
        "workers": {"left out": "no time was left"},
        "decoders": {"failed": "Traceback"},
    }


def test_targets_are_met_by_what_was_found_alone() -> None:
    text = page(found(310_000, [0.9, 0.7]))
    assert text.count("| met |") == 3
    text = page(found(290_000, [0.5, 0.4]))
    assert (text.count("| met |"), text.count("| not met |")) == (1, 2)
    assert "290,000 | 600,000 | 0.48 | 45%" in text


def test_what_was_not_measured_is_named_and_what_was_refused_says_why() -> None:
    text = page(found(310_000, []))
    assert "Not measured in this run: workers, decoders." in text
    assert "4096: refused: why, 512: 500.0" in text
    assert "| vgg16 | 9,000 | fp16, 512 a batch |" in text
    assert "commit abc" in text


def test_a_proof_on_a_cpu_says_so_and_meets_or_misses_no_target() -> None:
    some = found(1_000, [])
    for changes in ({"quick": True}, {"gpu": None}):
        machine = {name: value for name, value in (some["machine"] | changes).items() if value is not None}  # type: ignore[operator]
        text = page(some | {"machine": machine})
        assert "A proof that it runs, not a measurement" in text
        assert "met |" not in text
    assert "A proof" not in page(some)


def test_loader_step_and_both_are_said_of_a_training() -> None:
    row = {
        "config": "a",
        "patch_px": 50,
        "batch_size": 8,
        "loader": 9e4,
        "step": 5e4,
        "both": 49_000.4,
        "waits": 0,
    }
    training = {"patches": 9, "patches_per_s": [1], "command_s": 2.0, "alone": [row]}
    text = page(found(1, []) | {"training": training})
    assert "loader alone 90,000, step alone 50,000, both 49,000; the host waited for the GPU 0 times" in text
