"""Local Monte Carlo by poles against diagonalising for every proposal, both through the library, in one run on one thread.

Prints processor time per sweep and chain, and the ratio diagonalising/poles (above 1: poles are faster); medians of measurements in turn.
"""

import torch

from physattn.slmc.lattice import DoubleExchange
from physattn.slmc.poles import sweep_times

torch.set_num_threads(1)

for L in (4, 6, 8, 10):
    for mu in (0.0, 0.5):
        for chains in (64 if L <= 6 else 16, 1):
            times = sweep_times(DoubleExchange(L, mu=mu), chains)
            print(
                f"{L} x {L}, mu = {mu}, {chains:2d} chains: diagonalising {times['eigen']:.3g} ms, poles {times['poles']:.3g} ms, ratio {times['ratio']:.1f}"
            )
