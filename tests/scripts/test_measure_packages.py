"""What packages cost, measured on few and small patches: a row a kind, and each kind right."""

from scripts.bench.measure_packages import KINDS, table


def test_every_kind_has_a_row_and_gives_what_the_network_gives() -> None:
    lines = [line.split(" | ") for line in table([64], 3, 1) if line.startswith("| 64 px")]
    assert len(lines) == len(KINDS) + 2
    for line in lines:
        assert float(line[2]) > 0
        assert float(line[4]) < 1e-4
    assert "encoder" in lines[-1][0]
    assert [line[1] for line in lines if "ONNX" in line[0]] == ["onnx by openvino, fp32"]
