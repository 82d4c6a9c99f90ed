"Properties that hold for every shape, size and option of the public API, on random ones."

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.polynomial import Chebyshev

from physattn.foundations.attention import NORMALIZERS, Attention, KVCache
from physattn.foundations.estimates import Estimate, bootstrap
from physattn.foundations.experiments import Result, recall, record
from physattn.foundations.files import load_tensors, save_tensors
from physattn.foundations.runs import Run, generator, seeded
from physattn.quantum import encodings
from physattn.quantum.normalized import NORMS, denormalize, fold, normalize
from physattn.slmc.effective import Effective
from physattn.slmc.lattice import DoubleExchange, observables, random_spins, shells
from physattn.tensortrain.layers import TTLinear, plans
from physattn.tensortrain.trains import TensorTrain, bonds, tt_matrix, tt_svd
from physattn.tqs.chains import (
    HaldaneShastry,
    ModifiedHaldaneShastry,
    TransverseFieldIsing,
    configurations,
)
from physattn.tqs.decoder import POSITIONS, SpinDecoder
from physattn.tqs.energies import local_energy

seeds = st.integers(0, 2**31)


def normal(seed, *shape):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


# --- tensor trains

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@st.composite
def trains(draw, shape=None):
    "A random train: any shape, any ranks that its bonds allow."
    shape = draw(shapes) if shape is None else shape
    most, seed = bonds(shape), draw(seeds)
    ranks = [draw(st.integers(1, b)) for b in most]
    pairs = zip(ranks, shape, ranks[1:])
    return TensorTrain([normal((seed + k) % 2**31, *p) for k, p in enumerate(pairs)])


@given(shapes, seeds, st.floats(0, 1))
def test_tt_svd_is_within_its_error(shape, seed, eps):
    tensor = normal(seed, *shape)
    exact = tt_svd(tensor)
    assert exact.shape == tuple(shape)
    assert all(r <= b for r, b in zip(exact.ranks, bonds(shape)))
    assert torch.allclose(exact.full(), tensor, atol=1e-12)
    near = tt_svd(tensor, eps=eps)
    assert (near.full() - tensor).norm() <= eps * tensor.norm() * (1 + 1e-9) + 1e-12
    assert near.n_parameters <= exact.n_parameters


@given(trains(), st.data())
def test_trains_compute_as_their_tensors(a, data):
    b = data.draw(trains(a.shape))
    A, B = a.full(), b.full()
    assert torch.allclose((2.0 * a - b).full(), 2 * A - B, atol=1e-11)
    assert torch.allclose(a.inner(b), (A * B).sum(), atol=1e-10)
    assert torch.allclose(a.norm(), A.norm())
    center = data.draw(st.integers(0, len(a) - 1))
    turned = a.orthogonalized(center)
    assert torch.allclose(turned.full(), A, atol=1e-11)
    assert torch.allclose(turned.cores[center].norm(), A.norm())
    assert torch.allclose(a.rounded().full(), A, atol=1e-11)
    for k, s in enumerate(a.singular_values(), 1):
        dense = torch.linalg.svdvals(A.reshape(math.prod(a.shape[:k]), -1))
        both = [torch.nn.functional.pad(x, (0, 64))[:64] for x in (s, dense)]
        assert torch.allclose(*both, atol=1e-11)


@given(shapes, st.data(), seeds)
def test_an_operator_acts_as_its_matrix(out, data, seed):
    d = len(out)
    inn = data.draw(st.lists(st.integers(1, 3), min_size=d, max_size=d))
    assume(math.prod(out) * math.prod(inn) <= 4096)
    W = normal(seed, math.prod(out), math.prod(inn))
    x = normal(seed + 1, *inn)
    train = tt_matrix(W, out, inn)
    assert torch.allclose(train.full(), W, atol=1e-11)
    y = (train @ tt_svd(x)).full()
    assert torch.allclose(y.flatten(), W @ x.flatten(), atol=1e-10)


@given(st.data(), st.integers(1, 4), st.booleans(), seeds)
def test_a_layer_is_its_weight_by_every_plan(data, d, bias, seed):
    sizes = st.lists(st.integers(1, 4), min_size=d, max_size=d)
    inn, out = data.draw(sizes), data.draw(sizes)
    rank = data.draw(st.integers(1, 9))
    plan = data.draw(st.sampled_from(["model", *plans(d)]))
    layer = TTLinear(inn, out, rank, bias, seed % 1000, plan).double()
    batch = data.draw(st.lists(st.integers(1, 3), max_size=2))
    x = normal(seed, *batch, math.prod(inn))
    b = layer.bias if bias else None
    assert layer.weight().shape == (layer.out_features, layer.in_features)
    assert torch.allclose(layer.weight(), layer.tensor_train().full(), atol=1e-12)
    y = torch.nn.functional.linear(x, layer.weight(), b)
    assert torch.allclose(layer(x), y, atol=1e-10)
    dense = torch.nn.Linear(layer.in_features, layer.out_features, bias).double()
    same = TTLinear.from_linear(dense, inn, out, 10**6, plan="model")
    assert torch.allclose(same(x), dense(x), atol=1e-10)


# --- spin chains and decoders


@st.composite
def decoders(draw, even=False, phase=None):
    "Any decoder of a chain of at most 8 spins."
    n = draw(st.sampled_from([2, 4, 6, 8])) if even else draw(st.integers(2, 8))
    k = draw(st.sampled_from([k for k in range(1, min(n, 4) + 1) if n % k == 0]))
    config = SpinDecoder.Config(
        n,
        k,
        draw(st.integers(1, 3)),
        draw(st.sampled_from([2, 4])),
        draw(st.integers(1, 2)),
        draw(st.sampled_from([4, 8])),
        draw(st.none() | st.integers(0, 5)),
        draw(st.sampled_from(sorted(POSITIONS))),
        draw(st.integers(0, 4)),
        draw(st.booleans()) if phase is None else phase,
        draw(st.none() | st.sampled_from(range(-n, n + 1, 2))),
    )
    return SpinDecoder(config, seed=draw(st.integers(0, 99))).double()


@given(decoders())
def test_probabilities_add_up_to_one_in_the_sector(decoder):
    n, m = decoder.config.n_sites, decoder.config.magnetization
    s = configurations(n)
    with torch.no_grad():
        p = (2 * decoder(s).real).exp() if decoder.config.phase else (2 * decoder(s)).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    if m is not None:
        assert (p[2 * s.sum(-1) != n - m] == 0).all()
    drawn = decoder.sample(7, generator(0))
    assert (
        drawn.shape == (7, n)
        and (p[(drawn << torch.arange(n - 1, -1, -1)).sum(-1)] > 0).all()
    )
    unique, counts = decoder.sample_unique(50, generator(0))
    assert counts.sum() == 50 and len(unique.unique(dim=0)) == len(unique)


@given(decoders(), st.integers(0, 7))
def test_a_decoder_reads_with_and_without_cache_alike(decoder, cut):
    s = decoder.sample(5, generator(1))
    inputs = decoder.inputs(decoder.tokens(s))
    cut = cut % decoder.n_tokens
    assert torch.equal(decoder.spins(decoder.tokens(s)), s)
    with torch.no_grad():
        whole = decoder.log_conditionals(inputs)
        caches = decoder.caches()
        parts = [decoder.log_conditionals(inputs[:, :cut], 0, caches)] if cut else []
        down = s[:, : max(cut - 1, 0) * decoder.config.bits_per_token].sum(-1)
        for i in range(cut, decoder.n_tokens):
            down = s[:, : max(i - 1, 0) * decoder.config.bits_per_token].sum(-1)
            parts.append(decoder.log_conditionals(inputs[:, i : i + 1], i, caches, down))
    cached = torch.cat(parts, 1)
    assert torch.allclose(whole.real.exp(), cached.real.exp(), atol=1e-12)
    if decoder.config.phase:
        seen = whole.real.isfinite()
        assert torch.allclose(whole.imag[seen], cached.imag[seen], atol=1e-12)


@given(decoders(even=True), st.sampled_from(["ising", "hs", "mhs"]), st.data())
def test_local_energies_are_those_of_the_dense_matrix(decoder, kind, data):
    n = decoder.config.n_sites
    if kind == "ising":
        assume(decoder.config.magnetization is None)
        numbers = st.floats(0, 3)
        options = data.draw(numbers), data.draw(numbers), data.draw(st.booleans())
        chain = TransverseFieldIsing(n, *options)
    else:
        chain = {"hs": HaldaneShastry, "mhs": ModifiedHaldaneShastry}[kind](n)
    s = configurations(n)
    with torch.no_grad():
        psi = decoder(s).exp()
    H = torch.from_numpy(chain.matrix(s).toarray()).to(psi.dtype)
    assert torch.equal(H, H.mT)
    live = psi.abs() > 1e-9
    calls = data.draw(st.integers(1, 300))
    energy = local_energy(decoder, chain, s[live], calls)
    assert torch.allclose(energy, ((H @ psi)[live] / psi[live]).to(energy.dtype), rtol=1e-7)
    mean = (psi.abs().square()[live] * energy).sum().real
    assert mean >= torch.linalg.eigvalsh(H)[0] - 1e-9


# --- lattices of spins


@st.composite
def systems(draw):
    numbers = st.floats(-3, 3)
    T = draw(st.floats(0.05, 5))
    L = draw(st.integers(2, 4))
    return DoubleExchange(L, draw(st.floats(0.1, 2)), draw(numbers), draw(numbers), T)


def rotation(seed):
    Q, R = torch.linalg.qr(normal(seed, 3, 3))
    Q = Q * R.diagonal().sign()
    return Q * Q.det()


def moved(S, L, shift, turn):
    "The same spins on a lattice that was shifted and mirrored."
    lattice = S.unflatten(-2, (L, L)).roll(shift, (-3, -2))
    if turn:
        lattice = lattice.transpose(-3, -2).flip(-3)
    return lattice.flatten(-3, -2)


@given(systems(), seeds, st.data())
def test_double_exchange_has_its_symmetries(system, seed, data):
    S = random_spins(2, system.L, generator(seed))
    shift = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    action = system.action(S)
    assert action.shape == (2,) and action.isfinite().all()
    for other in (
        S @ rotation(seed),
        -S,
        moved(S, system.L, shift, True),
        moved(S, system.L, shift, False),
    ):
        assert torch.allclose(system.action(other), action, rtol=1e-9, atol=1e-8)
    h = system.one_body(S)
    assert torch.equal(h, h.mH)
    E = system.spectrum(S)
    trace = h.diagonal(dim1=-2, dim2=-1).sum(-1).real
    assert torch.allclose(E.sum(-1), trace, atol=1e-9)
    seen = observables(S)
    # Sum rule: every spin has length one.
    total = seen["structure_factor"].sum((-1, -2)) / system.n_sites
    assert torch.allclose(total, torch.ones(2, dtype=torch.float64))


@st.composite
def models(draw):
    L = draw(st.integers(2, 4))
    most = len(shells(L)) - 1
    config = Effective.Config(
        L,
        draw(st.text("acv", max_size=2)),
        draw(st.none() | st.integers(1, most)),
        draw(st.integers(1, 3)),
        draw(st.floats(0.1, 2)),
    )
    model, seed = Effective(config, draw(st.integers(0, 99))), draw(seeds)
    for k, w in enumerate(model.parameters()):
        w.data += 0.3 * normal((seed + k) % 2**31, *w.shape)
    return model


@given(models(), seeds, st.data())
def test_effective_actions_have_the_symmetries_of_the_exact_one(model, seed, data):
    L, S = model.config.L, random_spins(3, model.config.L, generator(seed))
    shift = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    with torch.no_grad():
        action, Q = model(S), rotation(seed)
        for other in (S @ Q, moved(S, L, shift, True), moved(S, L, shift, False)):
            assert torch.allclose(model(other), action, rtol=1e-9, atol=1e-8)
        # Effective spins are not invariant: they turn with the spins.
        assert torch.allclose(model.spins(S @ Q), model.spins(S) @ Q, atol=1e-9)
        assert torch.allclose(model(S[0]), action[0])
        if model.config.degree == 1:
            s = model.spins(S)
            energy = 0.5 * (s * (model.interaction() @ s)).sum((-1, -2))
            assert torch.allclose(model.energy(S), energy, rtol=1e-9, atol=1e-8)
        grown = model.append(data.draw(st.sampled_from("acv")))
        assert torch.allclose(grown(S), action, rtol=1e-9, atol=1e-8)


# --- block encodings and normalised layers


@st.composite
def matrices(draw, n=None):
    rows, columns = (draw(st.integers(1, 2**n if n else 5)) for _ in range(2))
    seed, real = draw(seeds), draw(st.booleans())
    A = normal(seed, rows, columns).numpy()
    return A if real else A + 1j * normal((seed + 1) % 2**31, rows, columns).numpy()


def padded(A, n):
    out = np.zeros((2**n, 2**n), dtype=complex)
    out[: A.shape[0], : A.shape[1]] = A
    return out


def unitary(encoding):
    U = encoding.unitary
    return np.allclose(U @ U.conj().T, np.eye(len(U)), atol=1e-12)


@given(matrices(), st.floats(1, 3))
def test_a_dilation_holds_its_matrix(A, room):
    encoding = encodings.dilation(A, room * np.linalg.norm(A, 2))
    assert np.allclose(encoding.block, padded(A, encoding.n_system), atol=1e-10)
    assert unitary(encoding)
    assert np.allclose(encoding.adjoint().block, encoding.block.conj().T, atol=1e-10)
    assert 0 <= encoding.success <= 1 + 1e-12


@given(matrices(2), matrices(2), st.data())
def test_encodings_compute_as_their_matrices(A, B, data):
    a, b = (encodings.dilation(M, n_system=2) for M in (A, B))
    A, B = padded(A, 2), padded(B, 2)
    c = [data.draw(st.floats(-2, 2)) for _ in range(2)]
    assume(max(map(abs, c)) > 0.01)
    for encoding, matrix in (
        (encodings.product(a, b), A @ B),
        (encodings.linear_combination(c, [a, b]), c[0] * A + c[1] * B),
        (encodings.hadamard_product(a, b), A * B),
    ):
        assert np.allclose(encoding.block, matrix, atol=1e-9)
        assert np.linalg.norm(matrix, 2) <= encoding.alpha * (1 + 1e-9)
        assert encoding.queries == {"A": 2}


@given(seeds, st.integers(1, 4), st.booleans())
def test_singular_values_go_through_the_polynomial(seed, degree, real):
    A = normal(seed, 2, 2).numpy()
    A = A + A.T
    alpha = 1.5 * np.linalg.norm(A, 2)
    c = normal(seed + 1, degree + 1).numpy()
    c[(degree + 1) % 2 :: 2] = 0  # of one parity
    assume(abs(c[-1]) > 0.05)
    poly = Chebyshev(c / (1.2 * np.abs(c).sum()))
    found = encodings.qsvt(encodings.dilation(A, alpha), poly)
    values, vectors = np.linalg.eigh(A / alpha)
    assert np.allclose(found.block, (vectors * poly(values)) @ vectors.T, atol=1e-7)


@given(
    st.sampled_from(sorted(NORMS)),
    st.floats(0.1, 5),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
    seeds,
)
def test_normalised_layers_keep_the_norm_that_they_are_given(
    kind, alpha, at_most, gain, n_heads, seed
):
    with seeded(seed % 1000):
        layer = Attention(2 * n_heads, n_heads).double()
    x = normal(seed, 2, 3, 2 * n_heads)
    before = {name: w.detach().clone() for name, w in layer.named_parameters()}
    changed = normalize(layer, kind, ("q", "k", "v"), None, alpha, True, gain, at_most)
    assert {row["role"] for row in changed.rows} == {"q", "k", "v"}
    for name in ("W_Q", "W_K", "W_V"):
        new, old = (w.mT.flatten(0, 1) for w in (getattr(layer, name), before[name]))
        was = torch.linalg.matrix_norm(old, NORMS[kind])
        norm = torch.linalg.matrix_norm(new, NORMS[kind]).item()
        assert norm == pytest.approx(min(alpha, was.item()) if at_most else alpha)
        # The direction is kept.
        assert torch.allclose(new / norm, old / was, atol=1e-9)
    y = layer(x)
    fold(layer)
    assert torch.allclose(layer(x), y, atol=1e-12)
    again = normalize(layer, kind, ("q", "k", "v"), None, alpha)
    denormalize(layer)
    assert torch.allclose(layer(x), y, atol=1e-12) and len(again.rows) == 3


# --- attention

attentions = st.fixed_dictionaries(
    dict(
        n_heads=st.integers(1, 3),
        d_head=st.integers(1, 4),
        bias=st.booleans(),
        normalizer=st.sampled_from(sorted(NORMALIZERS)),
    )
)


@given(attentions, st.integers(1, 6), st.none() | st.integers(0, 3), seeds)
def test_attention_treats_tokens_alike(options, n, clip, seed):
    "Without positions tokens may be permuted; with relative ones they may be shifted, causally."
    with seeded(seed % 1000):
        free = Attention(5, **options).double()
        causal = Attention(5, **options, causal=True, clip=clip).double()
    x = normal(seed, 2, n, 5)
    order = torch.randperm(n, generator=generator(seed))
    assert torch.allclose(free(x)[:, order], free(x[:, order]), atol=1e-12)
    y, cache = causal(x), KVCache(n)
    assert torch.allclose(causal(x[:, : n // 2 + 1]), y[:, : n // 2 + 1], atol=1e-12)
    with torch.no_grad():
        one = torch.cat([causal(x[:, i : i + 1], cache) for i in range(n)], 1)
    assert torch.allclose(one, y, atol=1e-12)
    kept = torch.tensor([1, 0, 1])
    cache.select(kept)
    assert cache.k.shape[0] == 3 and torch.equal(cache.k[0, :n], cache.k[2, :n])


# --- estimates

numbers = st.floats(-1e3, 1e3).filter(lambda x: abs(x) > 1e-3)
estimates = st.builds(Estimate, numbers, st.floats(0, 10), st.integers(2, 10**6))


@given(estimates, estimates, numbers)
def test_errors_propagate_to_first_order(a, b, c):
    for value, error, found in (
        (a.value + b.value, math.hypot(a.error, b.error), a + b),
        (a.value - b.value, math.hypot(a.error, b.error), a - b),
        (c * a.value, abs(c) * a.error, c * a),
        (c - a.value, a.error, c - a),
        (c / a.value, abs(c) * a.error / a.value**2, c / a),
        (a.value * b.value, math.hypot(a.error * b.value, b.error * a.value), a * b),
    ):
        assert found.value == pytest.approx(value) and found.error == pytest.approx(error)
    assert (a + b).n == min(a.n, b.n) and (a + c).n == a.n
    if a.error > 0:
        assert a.sigma(c) == pytest.approx((a.value - c) / a.error)
        assert re.fullmatch(r"-?\d+(\.\d+)?\(\d+\)(e[+-]\d+)?", str(a))


@given(st.integers(2, 200), st.floats(-5, 5), st.floats(0.1, 10), seeds)
def test_estimates_move_and_scale_with_their_samples(n, shift, scale, seed):
    x = normal(seed, n).numpy()
    for of in (
        lambda x: Estimate.from_samples(x, independent=True),
        lambda x: bootstrap(x, seed=seed),
    ):
        one, other = of(x), of(shift + scale * x)
        assert other.value == pytest.approx(shift + scale * one.value, abs=1e-9)
        assert other.error == pytest.approx(scale * one.error)
    independent = Estimate.from_samples(x, independent=True)
    assert independent.error == pytest.approx(x.std(ddof=1) / math.sqrt(n))


# --- files

dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64]
dtypes += [torch.int8, torch.uint8, torch.bool, torch.complex64]
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)
tensors = st.builds(
    lambda shape, dtype, seed: (100 * normal(seed, *shape)).to(dtype),
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from(dtypes),
    seeds,
)


@given(st.dictionaries(st.text(max_size=5), tensors, max_size=4), plain)
def test_files_come_back_to_the_bit(tmp_path_factory, kept, about):
    path = tmp_path_factory.mktemp("files") / "a file.safetensors"
    kept.pop("__metadata__", None)
    save_tensors(path, kept, {"about": about})
    back, said = load_tensors(path)
    assert said == {"about": about} and back.keys() == kept.keys()
    for name, t in kept.items():
        assert back[name].dtype == t.dtype and torch.equal(back[name], t)


def test_what_a_file_cannot_hold_is_said(tmp_path):
    with pytest.raises(ValueError, match="psi is complex128.*view_as_real"):
        save_tensors(tmp_path / "a", {"psi": torch.zeros(2, dtype=torch.complex128)})
    assert not list(tmp_path.iterdir())


class Kept:
    "A state of any form."

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


states = st.recursive(
    plain | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


def alike(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    return type(a) is type(b) and a == b


@given(states)
def test_a_checkpoint_brings_any_state_back(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("state") / "run.safetensors"
    for _ in Run(1, {"kept": Kept(state)}, path):
        pass
    back = Kept(None)
    list(Run(1, {"kept": back}, path))
    assert alike(state, back.state)


values = st.recursive(
    estimates | numbers | st.text() | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, max_size=4), st.booleans())
def test_results_come_back_as_they_were(tmp_path_factory, found, weights):
    folder = tmp_path_factory.mktemp("results")
    kept = {"w/x": torch.arange(3.0)} if weights else {}
    record(Result("part/name", found, {"profile": "full"}, kept), folder)
    back = recall("part/name", folder)
    assert back.values == found and back.about == {"profile": "full"}
    assert back.tensors.keys() == kept.keys()
    json.loads((folder / "part/name.json").read_text())  # plain JSON, for other languages
