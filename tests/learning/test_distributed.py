"""Processes under torchrun train as one does, stay in step, share what they read, and only the first writes."""

import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
import yaml
from stand_in_gpu import gpu  # noqa: F401  (a fixture)
from test_datasets import GROUPS, write_sheets
from test_train import CPU, NOTHING, OPTIONS, data  # noqa: F401  (a fixture)

from wsi_pipeline.base.errors import ConfigError, TrainingError
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.learning.datasets import SplitOptions, cache, load_split
from wsi_pipeline.learning.training import distributed
from wsi_pipeline.learning.training.card import stain_of
from wsi_pipeline.learning.training.distributed import ProcessGroup, torchrun_group
from wsi_pipeline.learning.training.optimiser import MovingAverage
from wsi_pipeline.learning.training.train import TrainOptions, train
from wsi_pipeline.models.model import build_network, load_model

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


def test_every_tensor_that_goes_from_process_to_process_lies_on_the_device(gpu, monkeypatch):  # noqa: F811
    # As NCCL demands. The stand-in has no values: what is read after the last exchange raises.
    sent: list[torch.Tensor] = []

    def exchange(*tensors: Any, **_: Any) -> None:
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor | list):
                sent.extend(tensor if isinstance(tensor, list) else [tensor])
        assert {tensor.device for tensor in sent} == {gpu}

    for name in ("all_reduce", "broadcast", "all_gather"):
        monkeypatch.setattr(distributed.dist, name, exchange)
    group = ProcessGroup(1, 2, gpu)
    network = build_network("residual_cnn", widths=[4, 8], blocks=[1, 1], squeeze=2).to(gpu)
    average = MovingAverage(network, 0.9)
    average.update()
    with pytest.raises(RuntimeError, match="meta tensor"):
        group.settle(network, average.module)
    buffers = len(list(network.buffers()))
    assert buffers
    assert (
        len(sent) == 2 * buffers + 2 + 1
    )  # both networks' buffers; the sums of both processes, and one's own
    with pytest.raises(RuntimeError, match="meta tensor"):
        group.gather(np.zeros((3, 2), np.float32), 7)
    assert sent[-1].shape == (4, 2)
    group.mean(torch.zeros((), device=gpu))
    assert sent[-1].ndim == 0


def in_processes(work: Any, count: int, *args: object, machines: int = 1) -> None:
    """Run `work(rank, *args)` in so many processes, started as torchrun would on so many machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_started, (work, count, machines, port, args), nprocs=count)


def _started(rank: int, work: Any, count: int, machines: int, port: int, args: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    here = count // machines
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_RANK": str(rank % here), "LOCAL_WORLD_SIZE": str(here)}
    with torchrun_group(CPU) as (group, _):
        work(group, *args)


def reads_its_share(group: ProcessGroup, folder: Path, split: SplitOptions, px: int, kept: Path) -> None:
    decoded: list[int] = []
    own_disk = kept / f"machine_{group.rank // group.readers.count}"
    before = cache.decode_each

    def counting(listing: Any, indices: Any, threads: Any = None) -> Any:
        decoded.extend(indices.tolist())
        return before(listing, indices, threads)

    cache.decode_each = counting  # type: ignore[assignment]
    sides = load_split(folder, px, split, own_disk, group.readers)
    here = group.readers.all_say(sorted(decoded))
    assert max(map(len, here)) <= min(map(len, here)) + 1
    everything = [index for some in here for index in some]
    assert everything
    assert len(everything) == len(set(everything))
    cache.decode_each = before
    alone = load_split(folder, px, split, kept / f"own_{group.rank}")
    for ours, whole in zip(sides, alone, strict=True):
        assert isinstance(ours.pixels, np.memmap)  # one copy, mapped by all
        assert np.array_equal(ours.pixels, whole.pixels)
        assert np.array_equal(ours.labels, whole.labels)
        assert np.array_equal(ours.names, whole.names)
        assert stain_of(ours, group.readers) == stain_of(whole)
    decoded.clear()
    again = load_split(folder, px, split, own_disk, group.readers)
    assert np.array_equal(again[0].pixels, alone[0].pixels)
    group.readers.all_say(None)
    assert not list((own_disk).glob(".shared.*"))


@pytest.mark.slow  # processes that import torch
def test_each_process_decodes_its_share_and_all_see_one_copy(data, tmp_path):  # noqa: F811
    in_processes(reads_its_share, 3, data, OPTIONS.split, OPTIONS.patch_px, tmp_path)
    sheets = write_sheets(tmp_path / "sheets", GROUPS)  # a layout that is not cached
    in_processes(reads_its_share, 2, sheets, SplitOptions(), 8, tmp_path / "of_sheets")


@pytest.mark.slow  # processes that import torch
def test_on_two_machines_each_reads_for_itself(data, tmp_path):  # noqa: F811
    in_processes(reads_its_share, 4, data, OPTIONS.split, OPTIONS.patch_px, tmp_path, machines=2)


def exchanges(group: ProcessGroup) -> None:
    for total in (7, 8, 9):
        rows = np.arange(2 * total, dtype=np.float32).reshape(total, 2)
        assert np.array_equal(group.gather(rows[group.share(np.arange(total))], total), rows)
    assert float(group.mean(torch.tensor(float(group.rank)))) == 1
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    network[1].running_mean.fill_(group.rank + 1)
    group.settle(network)
    assert network[1].running_mean.tolist() == [1, 1]
    with torch.no_grad():
        network[0].weight += group.rank
    with pytest.raises(TrainingError, match="no longer have the same weights"):
        group.settle(network)


@pytest.mark.slow  # processes that import torch
def test_three_processes_gather_average_and_notice_that_they_are_no_longer_in_step():
    in_processes(exchanges, 3)


@pytest.mark.slow  # processes that import torch
def test_two_processes_with_norms_stains_and_a_resume_agree_and_go_on(data, tmp_path):  # noqa: F811
    options = replace(OPTIONS, stain_normalisation=0.7, epochs=2, mixup=0.2)
    alone = train(replace(options, epochs=1), data, tmp_path / "alone", CPU)
    in_processes(_train, 2, options, data, tmp_path / "whole")
    in_processes(_train, 2, options, data, tmp_path / "parts", 1)
    in_processes(_train, 2, options, data, tmp_path / "parts")
    whole, parts = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "parts"))
    for kept in ("network", "average"):
        assert all(torch.equal(whole[kept][name], parts[kept][name]) for name in whole[kept])
    cards = [load_model(path).card for path in (alone, tmp_path / "whole" / "tiny.safetensors")]
    assert cards[0].mean == cards[1].mean
    assert cards[0].stain == cards[1].stain
    assert cards[1].metrics["val"]["patches"] == 48


class _Stop(Exception):
    pass


def _train(group: ProcessGroup, options: TrainOptions, data: Path, out: Path, stop_after: int = 0) -> None:  # noqa: F811
    def stop(history: list[Any]) -> None:
        if len(history) == stop_after:
            raise _Stop

    with contextlib.suppress(_Stop):
        train(options, data, out, CPU, group, after_epoch=stop)
