"""Two processes under torchrun train as one does, stay in step, and only the first writes."""

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from test_train import CPU, NOTHING, OPTIONS, data  # noqa: F401  (a fixture)

from wsi_pipeline.base.errors import ConfigError
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.learning.training.distributed import ProcessGroup
from wsi_pipeline.learning.training.train import train

# Nothing random within a share, and no norm over it: two processes then do the arithmetic of one.
SHARED = replace(
    OPTIONS,
    architecture="plain_cnn",
    architecture_options={"input_px": 16, "widths": [4, 8], "dense": 8},
    augment=NOTHING,
    epochs=2,
    bf16=False,
    average_decay=0.5,
)


def test_two_processes_take_the_steps_of_one_and_only_the_first_writes(data, tmp_path):  # noqa: F811
    alone = train(SHARED, data, tmp_path / "alone", CPU)
    config, out = tmp_path / "config.yaml", tmp_path / "two"
    config.write_text(yaml.safe_dump(options_to_dict(SHARED)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "wsi_pipeline.cli.train_model", "--config", str(config), "--data", str(data)]
    command += ["--out", str(out), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(".safetensors") == 1
    assert done.stderr.count("epoch 2: loss") == 1
    assert {p.name for p in out.iterdir()} == {p.name for p in alone.parent.iterdir()}
    last = [torch.load(folder / "last.pt", weights_only=True) for folder in (alone.parent, out)]
    for name, wanted in last[0]["average"].items():
        assert torch.allclose(last[1]["average"][name], wanted, atol=1e-4), name
    rows = []
    for folder in (alone.parent, out):
        with (folder / "epochs.csv").open(newline="") as file:
            rows.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert rows[0] == pytest.approx(rows[1], abs=1e-4)


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "wsi_pipeline.cli.train_model", *map(str, arguments), "--device", "cpu"]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def test_what_all_processes_meet_is_said_once(data, tmp_path):  # noqa: F811
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(options_to_dict(SHARED) | {"batch_size": 15}))
    run = torchrun("--config", config, "--data", data, "--out", tmp_path / "out")
    complaint = run.communicate(timeout=120)[1]
    assert run.returncode != 0
    assert complaint.count("batch_size: found 15, expected a multiple of the 2 processes") == 1


def test_ctrl_c_ends_all_processes_and_the_first_one_speaks(data, tmp_path):  # noqa: F811
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(options_to_dict(replace(SHARED, epochs=500))))
    run = torchrun("--config", config, "--data", data, "--out", tmp_path / "out")
    assert any("epoch 2: loss" in line for line in run.stderr)
    run.send_signal(signal.SIGINT)
    complaint = run.communicate(timeout=60)[1]
    assert run.returncode != 0
    assert complaint.count("interrupted; the same command goes on from the last whole epoch") == 1
    assert not list((tmp_path / "out").glob(".*"))


def test_shares_of_a_batch_are_the_batch():
    batch = np.arange(12)
    shares = [ProcessGroup(rank, 3).share(batch) for rank in range(3)]
    assert sorted(np.concatenate(shares)) == list(range(12))
    assert {len(share) for share in shares} == {4}


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(ConfigError, match="multiple of the 3 processes"):
        ProcessGroup(0, 3).check_batch(128)
