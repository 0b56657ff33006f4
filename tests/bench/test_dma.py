"""The benches of DMA and of idle devices: their arithmetic, and a short run of each."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench import dma, message_dma
from bench.dma import Paired
from bench.peers import ROOT


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    assert Paired([1.0, 2.0, 1.0], [2.0, 2.0, 9.0]).ratio == pytest.approx(2.0)


def test_a_short_run_of_dma() -> None:
    figures, samples = dma.measure(1, lambda _: None, counts=(2, 10))
    names = [figure.name for figure in figures]
    assert "write of 1024 KiB" in names
    assert "look-up at 10, at random" in names
    assert all(figure.value > 0 for figure in figures)
    assert set(samples) == {"dma"}


def test_a_short_run_of_dma_by_messages() -> None:
    figures, _ = message_dma.measure(1, lambda _: None)
    assert [figure.name for figure in figures] == [
        "message DMA, read of 64 KiB",
        "message DMA, write of 64 KiB",
        "message DMA, read of 1024 KiB",
        "message DMA, write of 1024 KiB",
    ]
    assert all(figure.value > 0 for figure in figures)


@pytest.mark.parametrize(("how", "threads"), [("threads", 4), ("loop", 1)])
def test_idle_devices(how: str, threads: int) -> None:
    words = [sys.executable, "-m", "bench.idle", "3", how]
    done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["threads"] == threads
    assert found["memory"] > 5
