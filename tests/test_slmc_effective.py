"""Effective models: the group, the explicit sums over pairs, the counts of the paper, other lattices."""

import itertools

import pytest
import torch

from physattn.foundations.runs import generator
from physattn.slmc.effective import Effective, Waves
from physattn.slmc.lattice import random_spins, shell_classes, shells


def stack(blocks="", shells=None, L=6, size=0.02, seed=0, **more):
    "A model with weights moved away from their start."
    model, rng = Effective(Effective.Config(L, blocks, shells, **more), seed), generator(7)
    with torch.no_grad():
        for w in model.parameters():
            w += size * torch.randn(w.shape, generator=rng, dtype=w.dtype)
    return model


def lattice_group(L):
    "All 8 L^2 permutations of sites."
    sites = torch.arange(L * L).view(L, L)
    for turns, mirror in itertools.product(range(4), (False, True)):
        turned = sites.rot90(turns)
        turned = turned.flip(0) if mirror else turned
        for shift in itertools.product(range(L), range(L)):
            yield turned.roll(shift, (0, 1)).flatten()


def orthogonal(seed, sign):
    R = torch.linalg.qr(torch.randn(3, 3, generator=generator(seed)).double())[0]
    return R * torch.linalg.det(R) * sign


@pytest.mark.parametrize("L", [2, 3, 6, 9])
@pytest.mark.parametrize("blocks", ["", "a", "v", "c", "av", "ca"])
def test_spins_are_equivariant_and_energies_invariant(L, blocks):
    model, S = stack(blocks, L=L), random_spins(3, L, generator(L))
    spins, energy = model.spins(S), model.energy(S)
    for site in list(lattice_group(L))[:: max(1, L)]:
        assert (model.spins(S[:, site]) - spins[:, site]).abs().max() < 1e-14
        assert (model.energy(S[:, site]) - energy).abs().max() < 1e-12
    for R in (orthogonal(1, 1), orthogonal(2, -1), -torch.eye(3).double()):
        assert (model.spins(S @ R) - spins @ R).abs().max() < 1e-14
        assert (model.energy(S @ R) - energy).abs().max() < 1e-12


@pytest.mark.parametrize("L", [2, 3, 8, 9, 12])
def test_waves_are_the_explicit_shells(L):
    classes = tuple(shell_classes(L))
    waves, A, S = Waves(L, classes), shells(L), random_spins(2, L, generator(L))
    W = torch.randn(len(classes), generator=generator(1)).double()
    explicit = torch.tensordot(W, A, 1) @ S
    assert torch.allclose(waves.smear(S.mT, W)[0].mT, explicit, atol=1e-12)
    assert torch.allclose(waves(waves(S.mT)), S.mT, atol=1e-14)


@pytest.mark.parametrize("blocks", ["a", "v", "c"])
def test_a_block_is_its_formula(blocks):
    model, S = stack(blocks, 4, L=5, size=0.1, scale=0.7), random_spins(2, 5, generator(3))
    A, block = shells(5, list(model.config.shells)), model.blocks[0]

    def smear(W):
        return torch.einsum("n,nij,bjc->bic", W, A, S)

    if blocks == "c":
        out = smear(block.W)
    else:
        M = 0.7 * (smear(block.W_Q) @ smear(block.W_K).mT / 3**0.5).relu()
        M = M if blocks == "a" else M * torch.eye(25).double()
        out = S + M @ smear(block.W_V)
    assert torch.allclose(model.spins(S), torch.nn.functional.normalize(out, dim=-1))


@pytest.mark.parametrize("degree", [1, 3])
def test_features_are_sums_over_pairs(degree):
    L, classes = 4, [(0, 1), (2, 2)]
    model, S = stack("", classes, L=L, degree=degree), random_spins(1, L, generator(0))[0]
    sums = torch.zeros(degree, 2, dtype=torch.float64)
    for i, j in itertools.combinations(range(L * L), 2):
        d = [abs(a - b) for a, b in zip(divmod(i, L), divmod(j, L))]
        d = tuple(sorted(min(x, L - x) for x in d))
        if d in classes:
            for p in range(degree):
                sums[p, classes.index(d)] += (S[i] @ S[j]) ** (p + 1)
    assert torch.allclose(model.features(S), sums.flatten())
    assert torch.allclose(model(S), model.E0 + sums.flatten() @ model.couplings)


def test_counts_are_those_of_the_paper():
    counts = [
        Effective(Effective.Config(6, "a" * n, 6)).n_parameters for n in (0, 1, 2, 3, 4, 6)
    ]
    assert counts == [7, 28, 49, 70, 91, 133]
    full = [
        Effective(Effective.Config(6, word)).n_parameters
        for word in ("", "a", "aa", "aaa", "c", "ccca", "v")
    ]
    assert full == [10, 40, 70, 100, 20, 70, 40]


@pytest.mark.parametrize("letter", ["a", "v", "c"])
def test_a_new_block_does_nothing_yet_but_can_learn(letter):
    model, S = stack("ca", size=0.1), random_spins(4, 6, generator(1))
    grown = model.append(letter, seed=5)
    assert (grown(S) - model(S)).abs().max() < 1e-13
    last = dict(grown.blocks[-1].named_parameters())
    weight = last["W" if letter == "c" else "W_V"]
    assert torch.autograd.grad(grown(S).sum(), weight)[0].abs().max() > 1e-3


def test_the_interaction_is_the_energy():
    model, S = stack("", 4), random_spins(3, 6, generator(2))
    J = model.interaction()
    assert torch.allclose(0.5 * (J * (S @ S.mT)).sum((-1, -2)), model.energy(S))
    assert torch.equal(J, J.T) and J.diagonal().abs().max() < 1e-15
    with pytest.raises(ValueError, match="degree = 2"):
        stack("", degree=2).interaction()


def test_a_tiled_configuration_has_tiled_effective_spins():
    "Short shells see the same surroundings; M sums over copies, which the scale takes back."
    model, S = stack("ca", [(0, 1)], L=4, size=0.1), random_spins(2, 4, generator(1))
    tile = S.view(2, 4, 4, 3).repeat(1, 3, 3, 1).flatten(1, 2)
    big = model.resize(12)
    spins = model.spins(S).view(2, 4, 4, 3).repeat(1, 3, 3, 1).flatten(1, 2)
    assert torch.allclose(big.spins(tile), spins)
    assert torch.allclose(big(tile), 9 * model(S))
    assert not torch.allclose(model.resize(12, rescale=False).spins(tile), spins)
    assert torch.allclose(big.resize(4)(S), model(S))


def test_weights_follow_their_classes():
    model = stack("a", [(0, 1), (1, 2), (2, 2)], L=6, degree=2)
    moved = model.resize(9, shells=[(0, 1), (1, 1), (0, 2), (2, 2)])
    names = list(moved.config.shells)
    for c, here in ((c, i) for i, c in enumerate(model.config.shells) if c in names):
        assert moved.blocks[0].W_V[names.index(c)] == model.blocks[0].W_V[here]
        if c != (0, 0):
            old, new = (m.couplings.view(2, -1) for m in (model, moved))
            assert torch.equal(new[:, names.index(c) - 1], old[:, here - 1])
    assert moved.couplings.view(2, -1)[:, names.index((1, 1)) - 1].abs().max() == 0


def test_it_comes_back_from_disk(tmp_path):
    model, S = stack("cav", 5, degree=2, scale=0.5), random_spins(2, 6, generator(0))
    model.about["trained"] = {"T": 0.05}
    again = Effective.load(model.save(tmp_path / "m"))
    # to the bit in the weights; matrix products may depend on where these lie in memory
    state = again.state_dict()
    assert all(torch.equal(state[name], w) for name, w in model.state_dict().items())
    assert torch.allclose(again(S), model(S), rtol=0, atol=1e-13)
    assert again.config == model.config and again.about == model.about


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stack("ab"), "letter 'b'"),
        (lambda: stack("", 10), "shells = 10 does not fit L = 6"),
        (lambda: stack("", [(1, 4)]), "do not exist on the lattice with L = 6"),
        (lambda: stack("", degree=0), "degree = 0"),
        (lambda: stack("a").resize(4), "do not exist on the lattice with L = 4"),
        (
            lambda: stack("a")(random_spins(2, 5, generator(0))),
            "does not fit a model with L = 6",
        ),
        (lambda: stack("a")(torch.ones(36, 2)), "give \\(..., 36, 3\\)"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
