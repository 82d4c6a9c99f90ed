"Timing two callables in turn, so that a machine that slows down slows both."

import time

import numpy as np


def ratio(ours, peer, seconds: float = 4.0, least: int = 5) -> str:
    """Median of peer/ours over interleaved repetitions, with its quartiles, and our median time."""
    ours(), peer()
    pairs, start = [], time.perf_counter()
    while len(pairs) < least or time.perf_counter() - start < seconds:
        t0 = time.perf_counter()
        ours()
        t1 = time.perf_counter()
        peer()
        pairs.append((t1 - t0, time.perf_counter() - t1))
    a, b = np.array(pairs).T
    low, middle, high = np.quantile(b / a, [0.25, 0.5, 0.75])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}], ours {1e3 * np.median(a):.3g} ms"
