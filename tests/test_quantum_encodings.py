"""Block encodings against plain matrix algebra, polynomials against the functions they stand for."""

import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Chebyshev, chebyshev
from scipy.special import erf

from physattn.quantum import encodings as enc
from physattn.quantum.encodings import (
    BlockEncoding,
    Circuit,
    Gate,
    column_diagonal,
    dilation,
    hadamard_product,
    linear_combination,
    phase_angles,
    polynomial_exp,
    polynomial_gelu,
    product,
    qsp_response,
    qsvt,
    row_diagonal,
    row_state,
    simulate,
    state_preparation,
)


def matrices(seed, shape=(4, 4), many=2, complex_=True):
    rng = np.random.default_rng(seed)
    real, imag = rng.normal(size=(2, many, *shape))
    return real + 1j * imag if complex_ else real


def unitarity(e):
    U = e.unitary
    return np.abs(U.conj().T @ U - np.eye(len(U))).max()


def full_matrix(circuit):
    "The matrix of a circuit by Kronecker sums over basis states, without the simulator."
    n = circuit.n_wires
    bits = (np.arange(2**n)[:, None] >> np.arange(n - 1, -1, -1)) & 1
    total = np.eye(2**n, dtype=complex)
    for gate in circuit.gates:
        M = np.diag(gate.matrix) if gate.matrix.ndim == 1 else gate.matrix
        k = len(gate.wires)
        place = 1 << np.arange(k - 1, -1, -1)
        local = bits[:, gate.wires] @ place
        rest = np.delete(bits, gate.wires, 1)
        same = (rest[:, None] == rest[None]).all(-1)
        G = np.where(same, M[local[:, None], local[None]], 0)
        on = np.all([bits[:, wire] == value for wire, value in gate.controls], axis=0)
        on = np.broadcast_to(on, 2**n)
        total = np.where(on[:, None] & on[None], G, np.eye(2**n)) @ total
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_the_simulator_is_the_product_of_the_gates(seed):
    rng = np.random.default_rng(seed)
    gates = []
    for _ in range(8):
        k, c = rng.integers(1, 3), rng.integers(0, 3)
        wires = tuple(int(w) for w in rng.permutation(4)[: k + c])
        controls = tuple((w, int(rng.integers(2))) for w in wires[k:])
        A = rng.normal(size=(2**k, 2**k)) + 1j * rng.normal(size=(2**k, 2**k))
        M = np.linalg.qr(A)[0]
        if rng.random() < 0.3:
            M = np.exp(1j * rng.normal(size=2**k))
        gates.append(Gate("G", M, wires[:k], controls))
        gates.append(Gate("X", np.array([[0, 1], [1, 0]]), wires[:1], controls[:1]))
    circuit = Circuit(tuple(gates), 4)
    expected = full_matrix(circuit)
    assert np.abs(simulate(circuit, np.eye(16), 0) - expected).max() < 1e-12
    # The first wires as ancillas: all amplitudes, and those in which they are |0>.
    kept = simulate(circuit, np.eye(4), 2, project=False).reshape(16, 4)
    assert np.abs(kept - expected[:, :4]).max() < 1e-12
    assert np.abs(simulate(circuit, np.eye(4), 2) - expected[:4, :4]).max() < 1e-12
    assert np.abs(full_matrix(circuit.adjoint()) - expected.conj().T).max() < 1e-12


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (4, 4), (3, 5), (8, 4)])
@pytest.mark.parametrize("stretch", [1.0, 1.7])
def test_a_dilation_is_unitary_and_holds_its_matrix(shape, stretch):
    A = matrices(1, shape)[0]
    e = dilation(A, stretch * np.linalg.norm(A, 2))
    assert unitarity(e) < 1e-12
    rows, columns = shape
    assert np.abs(e.block[:rows, :columns] - A).max() < 1e-12
    rest = e.block.copy()
    rest[:rows, :columns] = 0
    assert np.abs(rest).max() < 1e-12
    assert e.n_ancilla == 1 and e.queries == Counter({"A": 1})


def test_the_dilation_of_a_rank_deficient_or_unitary_matrix_is_exact():
    Q = np.linalg.qr(matrices(2)[0])[0]
    for A in (Q, np.diag([1.0, 0, 0, 0]), np.ones((4, 4))):
        e = dilation(A)
        assert unitarity(e) < 1e-12 and np.abs(e.block - A).max() < 1e-12


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda A: dilation(A, 0.9 * np.linalg.norm(A, 2)), "raise alpha"),
        (lambda A: dilation(np.zeros((2, 2))), "above zero"),
        (lambda A: dilation(A, n_system=1), "n_system"),
        (lambda A: dilation(np.full((2, 2), np.nan)), "finite"),
        (lambda A: product(dilation(A), dilation(A[:2, :2])), "pad"),
        (lambda A: linear_combination((1,), (dilation(A), dilation(A))), "coefficients"),
        (lambda A: linear_combination((0, 0), (dilation(A), dilation(A))), "all zero"),
        (lambda A: row_diagonal(dilation(A), 4), "row = 4"),
        (lambda A: phase_angles(Chebyshev([0.1, 0.2])), "even nor odd"),
        (lambda A: phase_angles(Chebyshev([0, 0.95])), "0.9"),
        (lambda A: phase_angles(Chebyshev([0, 0.5]), "magic"), "magic"),
        (lambda A: polynomial_exp(-1, 1e-3), "tau"),
        (lambda A: polynomial_gelu(1, 2.0), "eps"),
        (lambda A: polynomial_exp(8, 1e-3, room=0.5), "room"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call(matrices(0)[0])
    assert "\n" not in str(error.value)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_products_and_sums_are_those_of_matrices(seed, many):
    Ms = matrices(seed, many=many)
    es = [dilation(M, 1.2 * np.linalg.norm(M, 2), name=str(i)) for i, M in enumerate(Ms)]
    p = product(*es)
    assert np.abs(p.block - np.linalg.multi_dot(Ms)).max() < 1e-12 * p.alpha
    assert np.isclose(p.alpha, np.prod([e.alpha for e in es]))
    c = matrices(seed + 1, (many,), 1)[0]
    c[0] = -abs(c[0])
    s = linear_combination(c, es)
    assert np.abs(s.block - np.tensordot(c, Ms, 1)).max() < 1e-12 * s.alpha
    assert np.isclose(s.alpha, sum(abs(c) * [e.alpha for e in es]))
    assert s.queries == Counter({str(i): 1 for i in range(many)})


def test_terms_of_a_sum_share_their_ancillas():
    a, b = (dilation(M) for M in matrices(3))
    s = linear_combination((1, 1), (product(a, b), a))
    assert s.n_ancilla == 3
    expected = a.block @ b.block + a.block
    assert np.abs(s.block - expected).max() < 1e-11 and unitarity(s) < 1e-12


def test_the_hadamard_product_is_entry_by_entry_and_nests():
    A, B, C = matrices(4, many=3)
    a, b, c = (dilation(M) for M in (A, B, C))
    e = hadamard_product(a, b)
    assert np.abs(e.block - A * B).max() < 1e-12 * e.alpha
    assert e.n_ancilla == 4 and unitarity(e) < 1e-12
    e = hadamard_product(product(a, b), c)
    assert np.abs(e.block - (A @ B) * C).max() < 1e-12 * e.alpha


def test_rows_and_columns_become_states_and_diagonals():
    A, B = matrices(5)
    e = product(dilation(A), dilation(B))
    M = A @ B
    for j in range(4):
        assert np.abs(row_state(e, j).column - M[j].conj()).max() < 1e-12 * e.alpha
        d = row_diagonal(e, j)
        assert np.abs(d.block - np.diag(M[j].conj())).max() < 1e-12 * e.alpha
        assert d.alpha == e.alpha and d.queries == e.queries
    d = column_diagonal(e)
    assert np.abs(d.block - np.diag(M[:, 0])).max() < 1e-12 * e.alpha
    assert unitarity(d) < 1e-12


@pytest.mark.parametrize("vector", [[1, 0, 0, 0], [0, 1, 0, 0], [-1, 2, 3], [1j, 1, 0, 2]])
def test_a_prepared_state_is_the_vector(vector):
    e = state_preparation(np.array(vector), 2)
    padded = np.zeros(4, dtype=complex)
    padded[: len(vector)] = vector
    assert np.abs(e.column - padded).max() < 1e-12
    assert unitarity(e) < 1e-12 and np.isclose(e.success, 1)


def test_success_is_the_squared_norm_over_alpha():
    A = matrices(6)[0]
    e = dilation(A, 10.0)
    assert np.isclose(e.success, np.linalg.norm(A[:, 0]) ** 2 / 100)


def chebyshev_series(seed, degree, parity=None):
    c = np.random.default_rng(seed).normal(size=degree + 1)
    if parity is not None:
        c[(parity + 1) % 2 :: 2] = 0
    p = Chebyshev(c)
    return p * (0.899 / np.abs(p(np.cos(np.linspace(0, np.pi, 5000)))).max())


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 7, 8, 31, 60, 151, 300])
def test_phases_give_the_polynomial(degree):
    p = chebyshev_series(degree, degree, degree % 2)
    angles = phase_angles(p)
    x = np.linspace(-1, 1, 301)
    assert len(angles) == degree + 1
    # The product of reflections, written out.
    found = []
    for y in x:
        s = np.sqrt(1 - y * y)
        R, v = np.array([[y, s], [s, -y]]), np.array([1, 0], dtype=complex)
        for i, phase in enumerate(angles):
            v = np.exp(1j * phase * np.array([1, -1])) * (R @ v if i else v)
        found.append(v[0].real)
    assert np.abs(np.array(found) - p(x)).max() < 1e-10
    assert np.abs(qsp_response(angles, x) - found).max() < 1e-12


def test_pennylane_finds_phases_of_the_same_polynomial():
    pytest.importorskip("pennylane")
    p = Chebyshev([0, 0.3, 0, -0.2, 0, 0.15])
    x = np.linspace(-1, 1, 51)
    assert np.abs(qsp_response(phase_angles(p, "pennylane"), x) - p(x)).max() < 1e-11


def test_pennylane_is_not_asked_for_what_it_gets_wrong():
    qml = pytest.importorskip("pennylane")
    flat = Chebyshev.interpolate(lambda x: np.tanh(8 * (x**2 - 0.3)), 12)
    flat.coef[1::2] = 0
    flat *= 0.89 / np.abs(flat(np.linspace(-1, 1, 4001))).max()
    x = np.linspace(-1, 1, 101)
    try:
        wrong = qml.poly_to_angles(chebyshev.cheb2poly(flat.coef), "QSVT")
        assert np.abs(qsp_response(wrong, x) - flat(x)).max() > 1e-3
    except ValueError:
        pass  # With some heights the root finding fails loudly.
    with pytest.raises(ValueError, match="newton"):
        phase_angles(flat, "pennylane")


def test_wrong_phases_are_noticed(monkeypatch):
    monkeypatch.setitem(enc._SOLVERS, "newton", lambda c: np.zeros(len(c)))
    with pytest.raises(ArithmeticError, match="degree 3"):
        phase_angles(Chebyshev([0, 0.1, 0, 0.3]))


@pytest.mark.parametrize("degree", [1, 2, 5, 6, 11])
@pytest.mark.parametrize("parity", [None, 0, 1])
def test_qsvt_is_the_polynomial_of_the_singular_values(degree, parity):
    A = matrices(degree)[0]
    e = dilation(A, 1.1 * np.linalg.norm(A, 2))
    p = 3 * chebyshev_series(degree, degree, parity)
    c = p.coef
    W, s, Vh = np.linalg.svd(A / e.alpha)
    odd, even = c.copy(), c.copy()
    odd[::2], even[1::2] = 0, 0
    expected = (W * Chebyshev(odd)(s)) @ Vh + (Vh.conj().T * Chebyshev(even)(s)) @ Vh
    q = qsvt(e, p)
    assert np.abs(q.block - expected).max() < 1e-10
    assert unitarity(q) < 1e-12
    assert q.queries == Counter({"A": p.trim().degree()})
    x = np.cos(np.linspace(0, np.pi, 4000))
    bound = sum(np.abs(Chebyshev(part)(x)).max() for part in (even, odd)) / enc.HEADROOM
    assert abs(q.alpha / bound - 1) < 2e-3


def test_qsvt_of_a_composite_encoding():
    A, B = matrices(9, complex_=False)
    e = product(dilation(A), dilation(B))
    row, p = (A @ B)[2], Chebyshev([0.2, 1.0, -0.5, 0.7])
    q = qsvt(row_diagonal(e, 2), p)
    assert np.abs(q.block - np.diag(p(row / e.alpha))).max() < 1e-11
    assert q.queries == Counter({"A": 6})


@pytest.mark.parametrize(
    "tau, reach", [(1.2, None), (4, 1.0), (8.5, 2.0), (20, 0.7), (3, 9)]
)
@pytest.mark.parametrize("eps", [1e-2, 1e-3, 1e-5])
def test_the_exponential_is_close_within_and_bounded_without(tau, reach, eps):
    p = polynomial_exp(tau, eps, reach)
    x = np.linspace(-1, 1, 3001)
    limit = min(tau, reach or tau)
    near = np.abs(tau * x) <= limit
    assert np.abs(p(x) * np.exp(-tau * x) - 1)[near].max() < 1.02 * eps
    assert np.abs(p(x)).max() < 1.02 * 4 * np.exp(limit)


def test_degrees_of_the_exponential_are_about_twice_tau():
    for tau in (8.5, 12, 16, 24):
        assert abs(polynomial_exp(tau, 1e-3, 1.0).degree() / (2 * tau) - 1) < 0.12


def test_degrees_grow_with_precision_reach_and_lack_of_room():
    tight = [polynomial_exp(10, eps, 1.0).degree() for eps in (1e-1, 1e-2, 1e-4)]
    assert tight == sorted(tight) and tight[0] < tight[-1]
    rooms = [polynomial_exp(10, 1e-3, 1.0, room).degree() for room in (1.5, 3, 8)]
    assert rooms[0] > rooms[1] > rooms[2]


def test_no_lower_degree_would_do():
    p = polynomial_exp(8.5, 1e-3, 1.0)
    f = lambda x: np.exp(8.5 * x)
    tolerance = lambda x: 1e-3 * np.exp(-8.5 * x)
    for parity in (0, 1):
        degree = np.flatnonzero(p.coef[parity::2]).max() * 2 + parity
        target = lambda x: (f(x) + (1 - 2 * parity) * f(-x)) / 2
        assert enc._best(target, degree, 1 / 8.5, tolerance, 4.0) is not None
        assert enc._best(target, degree - 2, 1 / 8.5, tolerance, 4.0) is None


@pytest.mark.parametrize(
    "scale, reach, degree", [(1, None, 4), (4, None, 14), (16, None, 50), (10, 1.5, 16)]
)
def test_gelu(scale, reach, degree):
    p = polynomial_gelu(scale, 1e-3, reach)
    x = np.linspace(-1, 1, 2001) * min(1, (reach or scale) / scale)
    z = scale * x
    assert np.abs(p(x) - z * (1 + erf(z / np.sqrt(2))) / 2).max() < 1.02e-3
    assert p.degree() == degree


def test_a_function_without_odd_part_has_an_even_polynomial():
    p = enc.bounded_polynomial(np.cosh, 1.0, lambda x: np.full_like(x, 1e-4))
    assert not p.trim().coef[1::2].any()
    assert isinstance(qsvt(dilation(np.eye(2)), p), BlockEncoding)


def test_a_polynomial_without_coefficients_is_refused():
    with pytest.raises(ValueError, match="zero"):
        qsvt(dilation(np.eye(2)), Chebyshev([0.0]))


def test_without_pennylane_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pennylane", None)
    p = Chebyshev([0, 0.3, 0, -0.2])
    with pytest.raises(ImportError, match=r"physattn\[quantum\]"):
        phase_angles(p, "pennylane")
    assert np.abs(qsp_response(phase_angles(p), 0.3) - p(0.3)) < 1e-12
