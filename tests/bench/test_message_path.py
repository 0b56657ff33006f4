"""The bench of the message path: its arithmetic, and a short run of each of its programs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.message_path import FLOOR, LIVENESS, placements, ratios
from bench.peers import Sample, drive, programs, running


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    floor = [Sample(10, 20, 10, 20, 1), Sample(20, 40, 20, 40, 2), Sample(10, 20, 10, 20, 1)]
    ours = [Sample(11, 22, 12, 24, 3), Sample(24, 44, 22, 44, 2), Sample(50, 90, 13, 26, 2)]
    found = ratios({FLOOR: floor, "ours": ours}, "ours")
    assert found["read_p50"] == pytest.approx(1.2)
    assert found["write_p50"] == pytest.approx(1.2)
    assert found["posted"] == pytest.approx(2.0)


def test_one_core_is_always_measured() -> None:
    assert placements()[0].client == placements()[0].server


@pytest.mark.parametrize("language", ["c", "python"])
def test_a_client_measures_a_server(tmp_path: Path, language: str) -> None:
    found = programs(tmp_path)
    if found.floor is None:
        pytest.skip("no C compiler")
    client = found.client if language == "c" else (sys.executable, "-m", "bench.python_client")
    address = tmp_path / "server.sock"
    cpu = placements()[0].server
    with running((*found.floor, str(address)), address, cpu):
        sample = drive(client, address, LIVENESS, cpu, 100, 100)
    assert 0 < sample.read_p50 <= sample.read_p99
    assert 0 < sample.write_p50 <= sample.write_p99
    assert sample.posted > 0


def test_a_server_that_ends_by_itself_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="ended with status 3"),
        running((sys.executable, "-c", "raise SystemExit(3)"), tmp_path / "none", placements()[0].server),
    ):
        pass
