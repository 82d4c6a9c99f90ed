"""Contracts of the foundations that a notebook is too polite to test: faults, kills, random shapes."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.signal import lfilter
from torch import nn

from physattn.foundations.attention import NORMALIZERS, Attention, Block, KVCache
from physattn.foundations.estimates import (
    Estimate,
    autocorrelation_time,
    blocking,
    bootstrap,
    paired,
)
from physattn.foundations.experiments import (
    Result,
    experiment,
    experiments,
    recall,
    record,
    reproduce,
)
from physattn.foundations.files import load_tensors, save_tensors, write_atomically
from physattn.foundations.models import HookPoint, Model
from physattn.foundations.runs import (
    Run,
    anywhere,
    gathered,
    generator,
    meet,
    processes,
    seeded,
)

# --- estimates


@given(st.floats(-1e8, 1e8), st.floats(1e-9, 1e7))
def test_brackets_mean_what_they_say(value, error):
    number, digits, exponent = re.fullmatch(
        r"(-?[\d.]+)\((\d+)\)(?:e([+-]\d+))?", str(Estimate(value, error, 2))
    ).groups()
    unit = 10.0 ** (int(exponent or 0) - len(number.partition(".")[2]))
    assert abs(
        float(number) * 10.0 ** int(exponent or 0) - value
    ) <= 0.51 * unit + 1e-14 * abs(value)
    assert abs(int(digits) * unit - error) <= 0.51 * unit
    assert 2 <= int(digits) <= 19


@pytest.mark.parametrize("phi", [-0.5, 0.0, 0.5, 0.9, 0.98])
def test_autocorrelation_time_is_exact_for_a_kicked_oscillator(phi):
    rng, exact = np.random.default_rng(0), (1 + phi) / (1 - phi)
    noise = rng.normal(size=(40, 20_000))
    noise[:, 1:] *= np.sqrt(1 - phi**2)
    taus = [autocorrelation_time(x) for x in lfilter([1.0], [1.0, -phi], noise)]
    mean = Estimate.from_samples([t.value for t in taus], independent=True)
    assert (
        abs(mean.value - exact) < 3 * mean.error + (0.07 if phi < 0 else 0.02) * exact
    )  # the window cuts an alternating sum
    assert 0.5 < np.std([t.value for t in taus]) / np.mean([t.error for t in taus]) < 1.5


def test_chains_that_disagree_get_a_large_error():
    x = np.random.default_rng(0).normal(size=(2, 1000)) + [[0.0], [5.0]]
    assert (
        Estimate.from_samples(x).error
        > 10 * Estimate.from_samples(x.ravel(), independent=True).error
    )


def test_blocking_of_independent_samples_is_flat():
    levels = blocking(np.random.default_rng(0).normal(size=4096))
    assert all(abs(level.value - levels[0].value) < 4 * level.error for level in levels[:9])


@given(
    st.lists(st.tuples(*2 * [st.floats(-1e3, 1e3)]), min_size=2, max_size=20),
    st.floats(0.5, 0.999),
)
def test_a_paired_difference_is_the_t_test_of_scipy(arms, confidence):
    a, b = np.array(arms).T
    e, noise = paired(a, b, confidence), 1e-9 * (1 + np.abs(a - b).max())
    assert abs(e.value - (a - b).mean()) < noise and e.n == len(a)
    if np.ptp(a - b) > 1e-6:
        oracle = stats.ttest_rel(a, b).confidence_interval(confidence)
        assert np.allclose([e.low, e.high], oracle, rtol=1e-6, atol=noise)
    else:
        assert e.high - e.low < 1e-2


def test_bootstrap_keeps_rows_whole():
    pairs = np.random.default_rng(0).normal(size=(50, 1)) + np.array([[0.0, 1.0]])
    difference = bootstrap(pairs, lambda rows, axis: (rows[:, 1] - rows[:, 0]).mean())
    assert difference.value == pytest.approx(1) and difference.error < 1e-12


@pytest.mark.parametrize(
    "samples, words", [([1.0], "at least 2"), ([1.0, np.nan], "finite"), ([], "empty")]
)
def test_estimates_refuse_what_has_no_error(samples, words):
    with pytest.raises(ValueError, match=words):
        Estimate.from_samples(samples, independent=True)


@pytest.mark.parametrize(
    "a, b, words",
    [
        ([1, 2], [1, 2, 3], "pair up"),
        ([[1, 2]], [[1, 2]], "pair up"),
        ([1], [2], "at least 2"),
        ([1, np.inf], [1, 2], "finite"),
    ],
)
def test_arms_that_are_no_pairs_are_refused(a, b, words):
    with pytest.raises(ValueError, match=words):
        paired(a, b)


# --- files


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "state", b"old")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*untouched"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        write_atomically(tmp_path / "file" / "state", b"new")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 399))
def test_every_cut_of_a_file_is_refused(tmp_path_factory, cut):
    path = save_tensors(
        tmp_path_factory.mktemp("cut") / "t.safetensors",
        {"a": torch.arange(40.0)},
        {"b": [1]},
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: cut * len(whole) // 400])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_tensors(path)


# --- models


@dataclass
class PairConfig:
    d: int = 4


class Pair(Model):
    Config = PairConfig

    def __init__(self, config, seed=0):
        super().__init__(config)
        with seeded(seed):
            self.blocks = nn.ModuleList(
                [Block(config.d, 2, d_mlp=8, norm=True, clip=1) for _ in range(2)]
            )
        self.hook_end = HookPoint()

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.hook_end(x)


class Other(Pair):
    pass


X = torch.randn(3, 5, 4, generator=generator(0, "x"))


def test_looking_changes_no_bit_and_every_name_is_transformerlens():
    model = Pair(PairConfig())
    out, cache = model.run_with_cache(X)
    assert torch.equal(out, model(X)) and torch.equal(out, cache["hook_end"])
    assert torch.equal(cache["blocks.0.hook_resid_post"], cache["blocks.1.hook_resid_pre"])
    assert torch.equal(
        cache["blocks.0.hook_resid_pre"] + cache["blocks.0.hook_attn_out"],
        cache["blocks.0.hook_resid_mid"],
    )
    assert set(
        model.run_with_cache(X, names_filter=lambda n: n.endswith("pattern"))[1]
    ) == {f"blocks.{i}.attn.hook_pattern" for i in (0, 1)}


def test_hooks_come_off_when_one_of_them_fails():
    model, before = Pair(PairConfig()), Pair(PairConfig())(X)

    def fail(x, hook):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        model.run_with_hooks(
            X,
            fwd_hooks=[
                ("blocks.0.hook_attn_out", lambda x, hook: 0 * x),
                ("hook_end", fail),
            ],
        )
    assert torch.equal(model(X), before)


def test_construction_is_seeded_and_leaves_the_global_state_alone():
    state = torch.random.get_rng_state()
    a, b, c = Pair(PairConfig()), Pair(PairConfig()), Pair(PairConfig(), seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(a(X), b(X)) and not torch.equal(a(X), c(X))


def test_save_and_load(tmp_path):
    model = Pair(PairConfig(), seed=7).double()
    model.blocks[0].attn.W_Q.data *= 1 / 3
    model.save(tmp_path / "pair")
    assert torch.equal(Pair.load(tmp_path / "pair.json")(X.double()), model(X.double()))
    with pytest.raises(ValueError, match="holds a Pair, not a Other"):
        Other.load(tmp_path / "pair")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Pair.load(tmp_path / "nowhere")
    (tmp_path / "pair.json").write_text(json.dumps({"model": "Pair", "config": {"d": 8}}))
    with pytest.raises(ValueError, match="another model"):
        Pair.load(tmp_path / "pair")
    (tmp_path / "pair.json").unlink()
    weights, about = load_tensors(tmp_path / "pair.safetensors")
    save_tensors(tmp_path / "pair.safetensors", weights, about | {"config": {"d": 6}})
    with pytest.raises(ValueError, match="do not fit"):
        Pair.load(tmp_path / "pair")
    whole = (tmp_path / "pair.safetensors").read_bytes()
    (tmp_path / "pair.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short"):
        Pair.load(tmp_path / "pair")


# --- attention

options = st.fixed_dictionaries(
    dict(
        n_heads=st.integers(1, 3),
        d_head=st.integers(1, 5),
        causal=st.booleans(),
        bias=st.booleans(),
        normalizer=st.sampled_from(sorted(NORMALIZERS)),
        clip=st.none() | st.integers(0, 4),
    )
)


@settings(max_examples=40, deadline=None)
@given(options, st.integers(1, 6), st.integers(1, 3))
def test_attention_of_any_shape(options, n, batch):
    with seeded(0):
        layer = Attention(6, **options).double()
    x = torch.randn(
        batch, n, 6, dtype=torch.float64, generator=generator(0, n), requires_grad=True
    )
    y = layer(x)
    assert y.shape == x.shape and torch.autograd.gradcheck(layer, x)
    if options["causal"]:
        seen = torch.autograd.grad(y[:, 0].sum(), x)[0]
        assert seen[:, 1:].abs().max() == 0 if n > 1 else True
        cache = KVCache(n)
        with torch.no_grad():
            pieces = [layer(x[:, : n // 2], cache)] if n > 1 else []
            pieces += [layer(x[:, i : i + 1], cache) for i in range(cache.length, n)]
        assert torch.allclose(torch.cat(pieces, 1), y, atol=1e-12)


def test_a_full_cache_says_so():
    layer, cache = Attention(4, causal=True), KVCache(2)
    with torch.no_grad(), pytest.raises(ValueError, match="max_length = 2"):
        layer(X, cache)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(n_heads=3), "does not divide"),
        (dict(normalizer="max"), "softmax"),
        (dict(clip=-1), "no distance"),
    ],
)
def test_attention_refuses(wrong, words):
    with pytest.raises(ValueError, match=words):
        Attention(4, **wrong)


# --- runs

TRAIN = textwrap.dedent("""
    import sys, time, torch
    from physattn.foundations.runs import Run, generator, seeded
    with seeded(0): model = torch.nn.Linear(3, 1)
    opt, rng = torch.optim.Adam(model.parameters(), lr=1e-2), generator(0, "data")
    run = Run(200, dict(model=model, opt=opt, rng=rng), sys.argv[1], every=float(sys.argv[2]))
    for step in run:
        x = torch.randn(16, 3, generator=rng)
        loss = (model(x) - x.sum(-1, keepdim=True)).square().mean()
        opt.zero_grad(); loss.backward(); opt.step(); run.log(loss=loss.item())
        if len(sys.argv) > 3: print(step, flush=True); time.sleep(0.005)
    print(model.weight.tolist(), len(run.history["loss"]))
""")


def _train(path, *words):
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(path), *words], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("how, every", [(signal.SIGTERM, "1000"), (signal.SIGKILL, "0")])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, how, every):
    whole = _train(tmp_path / "whole.safetensors", "1000").communicate()[0]
    process = _train(tmp_path / "killed.safetensors", every, "slow")
    while int(process.stdout.readline()) < 40:
        pass
    process.send_signal(how)
    process.wait(20)
    assert load_tensors(tmp_path / "killed.safetensors")[1]["step"] >= 40
    assert _train(tmp_path / "killed.safetensors", "1000").communicate()[0] == whole


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    assert processes() == (rank, 2)
    x = torch.full((2, 3), float(rank))
    assert gathered(x).tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
    assert gathered(x, 1).tolist() == [[0.0] * 3 + [1.0] * 3] * 2
    assert torch.equal(gathered(x * 1j, -1), gathered(x, 1) * 1j)
    assert anywhere(rank == 0) and anywhere(rank == 1) and not anywhere(False)
    meet()
    rng, path = generator(0), f"{folder}/checkpoint-{rank}"
    try:
        for step in Run(100, {"rng": rng}, path, every=1000, in_step=True):
            gathered(torch.rand(1, generator=rng))
            if rank == 1 and step == 7:
                os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit as end:
        assert end.code == 128 + signal.SIGTERM
    else:
        raise AssertionError("nobody stopped")


def test_of_two_processes_the_one_that_is_told_takes_the_other_along(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    steps = [load_tensors(tmp_path / f"checkpoint-{i}")[1]["step"] for i in range(2)]
    assert steps == [8, 8]


def test_lbfgs_resumes_to_the_same_bits(tmp_path):
    def run_to(end, path):
        with seeded(0):
            model = nn.Linear(3, 2).double()
        opt = torch.optim.LBFGS(
            model.parameters(), max_iter=2, line_search_fn="strong_wolfe"
        )
        x = torch.randn(20, 3, generator=generator(0)).double()

        def closure():
            opt.zero_grad()
            loss = (model(x).sin() - x[:, :2]).square().mean()
            loss.backward()
            return loss

        for step in Run(12, dict(model=model, opt=opt), path, every=0.0):
            if step == end:
                return None
            opt.step(closure)
        return model.weight

    whole = run_to(None, None)
    run_to(5, tmp_path / "a.safetensors")
    assert torch.equal(run_to(None, tmp_path / "a.safetensors"), whole)


def test_nan_leaves_the_last_good_checkpoint(tmp_path):
    model, path = nn.Linear(1, 1), tmp_path / "run.safetensors"
    run = Run(10, dict(model=model), path, every=0.0)
    with pytest.raises(ArithmeticError, match=f"step 4.*{path}"):
        for step in run:
            if step == 4:
                model.weight.data.fill_(float("nan"))
            run.log(loss=model.weight.item())
    assert load_tensors(path)[1]["step"] == 4 and all(
        t.isfinite().all() for t in load_tensors(path)[0].values()
    )


def test_state_that_cannot_be_stored_is_refused(tmp_path):
    class Odd:
        def state_dict(self):
            return {"x": {1, 2}}

    with pytest.raises(TypeError, match="a set in the state"):
        list(Run(1, dict(odd=Odd()), tmp_path / "run.safetensors"))


# --- experiments


def test_record_and_recall_keep_everything(tmp_path):
    values = {
        "a": Estimate(1.5, 0.1, 9),
        "b": {
            "c": [Estimate(np.array([1.0, 2.0]), np.array([0.1, 0.2]), 4)],
            "d": None,
            "e": "text",
            3: True,
        },
    }
    about = {
        "profile": "full",
        "config": {},
        "seed": 0,
        "seconds": 1.0,
        "versions": {"torch": "x"},
        "commit": "y",
        "hardware": "z",
    }
    record(Result("part/name", values, about, {"seed0/w": torch.ones(2)}), tmp_path)
    back = recall("part/name", tmp_path)
    assert (
        back["a"] == values["a"]
        and np.array_equal(back["b"]["c"][0].value, [1.0, 2.0])
        and back["b"]["3"] is True
        and back.about == about
    )
    assert list(back.weights("seed0")) == ["w"]
    with pytest.raises(KeyError, match="it has a, b"):
        back["z"]
    with pytest.raises(KeyError, match="seed0"):
        back.weights("seed1")
    (tmp_path / "part/name.json").write_text('{"name": "part/n')
    with pytest.raises(ValueError, match="damaged"):
        recall("part/name", tmp_path)


def test_profiles_seeds_and_folders_reach_the_function(tmp_path):
    @experiment("test/echo", quick=dict(n=1), full=dict(n=2))
    def echo(n, *, seed=0, folder=None):
        return dict(n=n, seed=seed, folder=str(folder), array=np.ones(n))

    result = reproduce("test/echo", "full", seed=5, folder=tmp_path)
    assert (result["n"], result["seed"], result["folder"]) == (
        2,
        5,
        str(tmp_path),
    ) and result.tensors["array"].shape == (2,)
    assert result.about["config"] == {"n": 2} and {
        "versions",
        "commit",
        "hardware",
        "seconds",
    } <= set(result.about)
    with pytest.raises(ValueError, match="device"):
        reproduce("test/echo", device="nonsense")


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in experiments() if not n.startswith("test/")])
def test_quick_profile_agrees_with_the_recorded_result(name, tmp_path):
    result = reproduce(name, "quick", folder=tmp_path)
    far = [row for row in result.compare(recall(name)) if abs(row[-1]) > 5]
    assert not far, far
