"""A step of variational Monte Carlo with caches and prefix reuse, against the same step written plainly, at equal model size.

Prints time ratios (plain/ours, above 1: ours is faster) of one run on one thread; medians of interleaved repetitions.
"""

import torch
from interleaved import ratio

from physattn.foundations.runs import generator
from physattn.tqs.chains import TransverseFieldIsing
from physattn.tqs.decoder import SpinDecoder
from physattn.tqs.energies import local_energy
from physattn.tqs.vmc import MinSR, log_derivatives

torch.set_num_threads(1)


@torch.no_grad()
def plain_sample(decoder, n, rng):
    words = torch.full((n, 1), decoder.n_words)
    for _ in range(decoder.n_tokens):
        p = decoder.log_conditionals(words)[:, -1].mul(2).exp()
        words = torch.cat([words, torch.multinomial(p, 1, generator=rng)], 1)
    return decoder.spins(words[:, 1:])


@torch.no_grad()
def plain_energy(decoder, hamiltonian, s):
    flipped = s[:, None] ^ hamiltonian.flips
    ratios = (decoder.log_amplitude(flipped) - decoder.log_amplitude(s)[:, None]).exp()
    return hamiltonian.diagonal(s) + (hamiltonian.elements(s) * ratios).sum(-1)


def backward(decoder, s, energy):
    ((energy - energy.mean()) * decoder.log_amplitude(s)).mean().backward()


for n, k in ((20, 1), (40, 1), (40, 4), (100, 5)):
    chain, decoder = TransverseFieldIsing(n), SpinDecoder(SpinDecoder.Config(n, k))
    rng = generator(0)
    s = decoder.sample(100, rng)

    def plain():
        s = plain_sample(decoder, 100, rng)
        backward(decoder, s, plain_energy(decoder, chain, s))

    def ours():
        s = decoder.sample(100, rng)
        backward(decoder, s, local_energy(decoder, chain, s))

    where = f"Ising, n = {n}, {k} spins a word, 100 samples"
    sampling = ratio(
        lambda: decoder.sample(100, rng), lambda: plain_sample(decoder, 100, rng), 1, 3
    )
    energy = ratio(
        lambda: local_energy(decoder, chain, s),
        lambda: plain_energy(decoder, chain, s),
        3,
        3,
    )
    print(f"{where}, sampling:       {sampling}")
    print(f"{where}, local energies: {energy}")
    print(f"{where}, step of Adam:   {ratio(ours, plain, 4, 3)}")

decoder = SpinDecoder(SpinDecoder.Config(20, 4))
s = decoder.sample(256, generator(0))


def one_by_one():
    for one in s:
        decoder.zero_grad()
        decoder.log_amplitude(one).backward()


print(
    f"log-derivatives of 256 samples, vmap against one by one: {ratio(lambda: log_derivatives(decoder, s), one_by_one, 3, 3)}"
)
optimizer, E = MinSR(decoder), local_energy(decoder, TransverseFieldIsing(20), s)
print(
    f"direction of minSR against one backward pass (the price of knowing the metric): {ratio(lambda: backward(decoder, s, E), lambda: optimizer.propose(s, E), 2, 3)}"
)
