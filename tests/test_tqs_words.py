"""Dictionary sizes: what is read, what is weighed, and what the experiment compares."""

import pytest
import torch

from physattn.foundations.experiments import reproduce
from physattn.foundations.runs import generator
from physattn.tqs import words as module
from physattn.tqs.chains import TransverseFieldIsing
from physattn.tqs.decoder import SpinDecoder
from physattn.tqs.energies import local_energy
from physattn.tqs.vmc import exact_energy_of
from physattn.tqs.words import words, words_read


@pytest.mark.parametrize("n, k", [(12, 1), (12, 3), (12, 6), (12, 12), (20, 5), (10, 2)])
def test_words_read_counts_what_passes_the_embedding(n, k):
    decoder, read = SpinDecoder(SpinDecoder.Config(n, k)), []
    s = decoder.sample(3, generator(0))
    with decoder.hooks(
        [("blocks.1.hook_resid_pre", lambda x, hook: read.append(x.shape[:2].numel()))]
    ):
        local_energy(decoder, TransverseFieldIsing(n), s)
    assert sum(read) == 3 * words_read(n, k)


@pytest.fixture
def few(monkeypatch):
    variants = {4: (("edges", 10), ("none", None)), 5: (("edges", 10),)}
    monkeypatch.setattr(module, "VARIANTS", variants)


def test_the_experiment_compares_and_resumes(few, tmp_path):
    threads = torch.get_num_threads()
    found = words(((20, 3, 1),), samples=16, folder=tmp_path)
    assert torch.get_num_threads() == threads
    assert set(found) == {
        "20-d16-edges-10-steps3-0",
        "20-d16-edges-10-time3-0",
        "20-d16-none-None-steps3-0",
        "20-d32-edges-10-steps3-0",
        "20-d32-edges-10-time3-0",
    }
    steps, timed = (found[f"20-d32-edges-10-{equal}3-0"] for equal in ("steps", "time"))
    sixteen = found["20-d16-edges-10-steps3-0"]
    assert steps["steps"] == 3 == len(steps["curve"])
    assert timed["steps"] == pytest.approx(3 * sixteen["cpu"] / steps["cpu"], abs=0.51)
    for run in found.values():
        assert abs(run["error"].sigma(run["exact_error"])) < 5
        positions = {"positions": run["positions"], "clip": run["clip"]}
        k = run["words"].bit_length() - 1
        decoder = SpinDecoder(SpinDecoder.Config(20, k, d_mlp=64, **positions))
        assert run["weights"] == sum(w.numel() for w in decoder.parameters())
    start = exact_energy_of(decoder, TransverseFieldIsing(20))
    exact = TransverseFieldIsing(20).exact_energy()
    assert 0 < steps["exact_error"] < (start - exact) / abs(exact)
    again = words(((20, 3, 1),), samples=16, folder=tmp_path)
    assert again == found  # from the checkpoints, times and all


@pytest.mark.slow
def test_the_quick_profile():
    found = reproduce("tqs/words", "quick").values
    assert len(found) == 13
    for run in found.values():
        assert run["exact_error"] > 0 and abs(run["error"].sigma(run["exact_error"])) < 5
