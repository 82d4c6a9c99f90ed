"""Tensor-train layers against tensorly-torch's factorised ones, and against the dense layer, forward and backward.

Prints time ratios (peer/ours, above 1: ours is faster) of one run on one thread; medians of interleaved repetitions, our
plans tuned before the clock runs. The peer is `tltorch.FactorizedLinear` of the same factors and ranks (block TT, factorised),
whose einsum searches for an order with opt_einsum where that is installed. `pip install physattn[bench]`.
"""

import sys

import numpy as np

from physattn.tensortrain.layers import SHAPES, timings


def main(seconds: float = 2.0) -> None:
    for batch, shapes in ((128, SHAPES), (32, SHAPES[:4])):
        found = timings(shapes, (4, 16, 64), seconds, ("peer",), batch)
        for name, v in found.items():
            peer, dense = v["peer"] / v["tuned"], v["dense"] / v["tuned"]
            print(
                f"batch {batch}, {name}: {peer:.2f} of tensorly-torch, {dense:.2f} of dense, ours {1e3 * v['tuned']:.3g} ms"
            )
        for ranks in ((4,), (16,), (64,), (4, 16, 64)):
            chosen = [v for v in found.values() if v["rank"] in ranks]
            said = []
            for other in ("peer", "dense"):
                ratio = np.array([v[other] / v["tuned"] for v in chosen])
                mean = np.exp(np.log(ratio).mean())
                said.append(f"{other} / ours {mean:.2f} (least {ratio.min():.2f})")
            print(f"batch {batch}, bonds up to {ranks}, geometric mean: {', '.join(said)}")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
