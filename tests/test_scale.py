"""Sharing work among processes, leaving when told to, and what larger problems cost."""

import os
import signal
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from physattn.foundations.experiments import reproduce
from physattn.foundations.files import load_tensors
from physattn.scale import WORKS, costs, exponent, extrapolated, peak_bytes, step_times
from physattn.tqs.decoder import SpinDecoder

SIZES = {
    "n": (8, 16, 32, 64),
    "L": (4, 6, 8),
    "tokens": (384, 768, 1536),
    "rank": (4, 8, 16),
}


@pytest.mark.parametrize("power", [0.5, 6.0])
def test_the_exponent_of_a_power_law_has_an_honest_error(power):
    sizes, rng, off = np.array([8.0, 16, 32, 64, 128]), np.random.default_rng(0), []
    for _ in range(25):
        noisy = sizes**power * np.exp(0.1 * rng.standard_normal((15, 5)))
        off.append(exponent(sizes, noisy).sigma(power))
    assert abs(np.mean(off)) < 4 / 25**0.5 and 0.5 < np.std(off) < 1.7


def test_sums_of_powers_stay_in_the_band():
    """Up to a thousand times the largest size, whatever the coefficients are."""
    rng, sizes = np.random.default_rng(1), np.array([4.0, 8, 16, 32])
    at = 32 * np.array([1.0, 2, 30, 1000])
    for _ in range(12):
        c = 10.0 ** rng.uniform(-4, 4, 4)
        values = [(n[:, None] ** np.arange(4)) @ c for n in (sizes, at)]
        low, high = extrapolated(sizes, [values[0]] * 2, 3, at)
        assert (low <= values[1] * (1 + 1e-9)).all() and (
            values[1] <= high * (1 + 1e-9)
        ).all()
        assert np.isclose(low[0], values[1][0]) and np.isclose(high[0], values[1][0])


def test_the_band_widens_with_the_noise():
    sizes, rng = np.array([4.0, 8, 16, 32]), np.random.default_rng(2)
    clean = 1 + sizes**2
    widths = []
    for noise in (0.01, 0.2):
        low, high = extrapolated(
            sizes, clean * np.exp(noise * rng.standard_normal((20, 4))), 2, [320]
        )
        widths.append(np.log(high / low)[0])
    assert widths[1] > 2 * widths[0]


@pytest.mark.parametrize("sizes, values", [([4], [[1.0]] * 2), ([4, 8], [[0.0, 1.0]] * 2)])
def test_what_has_no_exponent_is_refused(sizes, values):
    with pytest.raises(ValueError, match="no exponent"):
        exponent(sizes, values)


def work_with_a_known_peak():
    a = torch.empty(3_000_000, dtype=torch.uint8)
    del a
    b, c = (torch.empty(2_500_000, dtype=torch.uint8) for _ in range(2))
    del b
    d = torch.empty(1_000_000, dtype=torch.uint8)
    return c, d


def test_the_peak_is_counted_to_the_byte():
    assert peak_bytes(work_with_a_known_peak) == 5_000_000


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux")
def test_the_operating_system_sees_the_same_peak():
    code = textwrap.dedent("""
        import torch
        from physattn.scale import WORKS, peak_bytes
        def held(what):
            lines = open("/proc/self/status").read().splitlines()
            return 1024 * int(next(l for l in lines if l.startswith(what)).split()[1])
        torch.set_num_threads(1)
        WORKS["attention"].make(64, "cpu")()
        call = WORKS["attention"].make(2048, "cpu")
        before = held("VmRSS")
        call()
        print(held("VmHWM") - before, peak_bytes(call))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    seen, counted = map(int, done.stdout.split()[-2:])
    assert counted > 1e8 and abs(seen / counted - 1) < 0.15


@pytest.mark.parametrize("name", [k for k in WORKS if k != "exact action"])
def test_counted_operations_obey_the_theory(name):
    """Slopes rise, and never beyond the power in the table (torch counts those of matrix products)."""
    work, counted = WORKS[name], []
    for n in SIZES[work.size]:
        call = work.make(n, "cpu")
        with FlopCounterMode(display=False) as counter:
            call()
        counted.append(counter.get_total_flops())
    slopes = np.diff(np.log(counted)) / np.diff(np.log(SIZES[work.size]))
    # The last word is never read again, and n (n - 1) starts steeper than it ends.
    assert (slopes < work.time + 0.05).all() and (np.diff(slopes) > -0.1).all()


@pytest.mark.parametrize("name", WORKS)
def test_counted_memory_obeys_the_theory(name):
    work = WORKS[name]
    sizes = SIZES[work.size][-2:]
    held = [peak_bytes(work.make(n, "cpu")) for n in sizes]
    assert 0.2 < np.diff(np.log(held))[0] / np.diff(np.log(sizes))[0] < work.memory + 0.1


def test_costs_are_complete():
    sizes = {k: v[:2] for k, v in SIZES.items()}
    found = costs(sizes, rounds=2)
    assert found.keys() == {"process", *WORKS} and found["process"]["bytes"] > 5e7
    for name in WORKS:
        shape = np.array(found[name]["seconds"]).shape
        assert shape == (2, 2) and len(found[name]["bytes"]) == 2
    action = np.array(found["exact action"]["seconds"])
    assert (action[:, 1] > 2 * action[:, 0]).all()


def test_a_device_that_an_experiment_cannot_use_is_refused():
    with pytest.raises(ValueError, match="'meta' is not for tqs/ising"):
        reproduce("tqs/ising", device="meta")


def test_two_processes_are_timed():
    found = step_times("slmc sample", 4, 8, rounds=2, steps=2)
    assert list(found) == ["alone", "share", "together", "loaded"]
    assert all(0 < t.value < 60 and t.n == 2 for t in found.values())


def machine(rank, port, out, *words):
    "One of two launchers, each with one process, as on two machines."
    launcher = f"--nnodes 2 --node-rank {rank} --nproc-per-node 1 --rdzv-backend c10d"
    where = f"--rdzv-endpoint localhost:{port} --rdzv-id test -m physattn train-decoder"
    run = f"-s 8 -d 4 --samples 32 --steps 600 --checkpoint-every 1000 --out {out}"
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "torch.distributed.run"]
        + [*launcher.split(), *where.split(), *run.split(), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow  # six times two launchers and processes, each of which imports torch
def test_a_machine_that_is_taken_away_takes_the_others_along(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for out in ("whole", "part"):
        pair = [machine(rank, port, tmp_path / out) for rank in range(2)]
        if out == "part":
            assert any("step 30/600" in line for line in pair[0].stdout)
            pair[1].send_signal(signal.SIGTERM)  # not the machine that writes
        for process in pair:
            process.communicate(timeout=300)
    checkpoint = tmp_path / "part/grow-8"
    step = load_tensors(checkpoint)[1]["step"]
    assert 30 <= step < 600 and not (tmp_path / "part/decoder.json").exists()
    pair = [machine(rank, port, tmp_path / "part", "--resume") for rank in range(2)]
    for process in pair:
        process.communicate(timeout=300)
    whole, resumed = (SpinDecoder.load(tmp_path / k / "decoder") for k in ("whole", "part"))
    for a, b in zip(whole.parameters(), resumed.parameters()):
        assert torch.equal(a, b)
