"""Exact propagators of many oscillators in one call, against the general matrix exponentials of torch and SciPy.

Prints time ratios (peer/ours, above 1: ours is faster) of one run on one thread; medians of interleaved repetitions.
"""

import scipy.linalg
import torch
from interleaved import ratio

from physattn.sho.oscillator import Oscillator

torch.set_num_threads(1)
rng = torch.Generator().manual_seed(0)

for n in (1, 100, 10_000):
    omega0, gamma = 4 * torch.rand(2, n, generator=rng, dtype=torch.float64)
    oscillators = Oscillator(omega0, gamma)

    def ours():
        return oscillators.propagator(0.1)

    def by_torch():
        return torch.linalg.matrix_exp(0.1 * oscillators.generator)

    def by_scipy():
        return scipy.linalg.expm(0.1 * oscillators.generator.numpy())

    assert torch.allclose(ours(), by_torch(), rtol=0, atol=1e-13)
    print(f"{n} oscillators, torch.linalg.matrix_exp: {ratio(ours, by_torch)}")
    print(f"{n} oscillators, scipy.linalg.expm:       {ratio(ours, by_scipy, seconds=2.0)}")
