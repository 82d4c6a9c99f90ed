"""NetKet and the decoder on the same chains: the same Hamiltonian, the same time, and a sentence for those without NetKet."""

import importlib.util

import pytest

from physattn.foundations.experiments import reproduce
from physattn.tqs import peers
from physattn.tqs.chains import TransverseFieldIsing


def test_without_netket_one_sentence_says_what_to_install(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "netket" else find_spec(name, *rest),
    )
    with pytest.raises(ImportError, match=r"pip install physattn\[bench\]"):
        peers.netket_ising(4)


def test_both_libraries_mean_the_same_hamiltonian():
    netket = pytest.importorskip("netket", reason="needs physattn[bench]")
    for n in (3, 8):
        found = netket.exact.lanczos_ed(peers.netket_ising(n))[0]
        assert found == pytest.approx(TransverseFieldIsing(n).exact_energy(), abs=1e-9)


@pytest.mark.slow
def test_the_quick_profile_gives_all_the_same_time_and_resumes(tmp_path, monkeypatch):
    pytest.importorskip("netket", reason="needs physattn[bench]")
    found = reproduce("tqs/peers", folder=tmp_path)
    runs = {k: run for k, run in found.values.items() if not k.startswith("lanczos")}
    assert {key.split("-", 1)[1][:-2] for key in runs} == {"ours", *peers.PEERS}
    for run in runs.values():
        assert run["exact_error"] > 0
        assert abs(run["cpu"] - runs["8-ours-0"]["cpu"]) < 0.5
        assert abs(run["error"].sigma(run["exact_error"])) < 5
    assert runs["8-rbm-tuned-0"]["exact_error"] < 1e-4

    def again(*_):
        raise AssertionError("a finished run was repeated")

    monkeypatch.setattr(peers, "run_peer", again)
    monkeypatch.setattr(peers, "run_ours", again)
    assert reproduce("tqs/peers", folder=tmp_path).values.keys() == found.values.keys()
