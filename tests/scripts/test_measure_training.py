"""The figures of training are measured on a CPU as they are on a GPU, and written as JSON."""

import json
import sys

import pytest
import torch

from scripts.bench import measure_training


def test_a_quick_run_gives_three_speeds_a_case_and_writes_them(tmp_path, monkeypatch, capsys):
    out = tmp_path / "folder" / "training.json"
    case = measure_training.Case("idc_default", 20, 4)
    monkeypatch.setattr(measure_training, "QUICK", (case,))
    arguments = ["--device", "cpu", "--quick", "--seconds", "0.05", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["measure_training", *arguments])
    assert measure_training.main() == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["config"], row["patch_px"], row["batch_size"]) == ("idc_default", 20, 4)
    assert row["loader"] > row["step"] > 0
    # On a CPU both take turns: together they are slower than either.
    assert 0 < row["both"] < row["loader"]
    assert row["waits"] is row["memory_gb"] is row["busy"] is None
    assert "share_of_slower" in capsys.readouterr().out


@pytest.mark.gpu
def test_on_a_gpu_no_step_waits():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    row = measure_training.measure(
        measure_training.Case("idc_default", 50, 256), torch.device("cuda"), seconds=1
    )
    assert row.waits == 0
    assert row.both > 0.8 * min(row.loader, row.step)
