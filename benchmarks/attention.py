"""Attention with every intermediate exposed, against torch.nn.MultiheadAttention with the same weights' worth of work.

Prints time ratios (peer/ours, above 1: ours is faster) of one run on one thread; medians of interleaved repetitions.
"""

import torch
from interleaved import ratio
from torch import nn

from physattn.foundations.attention import Attention, KVCache

torch.set_num_threads(1)

for batch, n, d_model, heads in ((256, 8, 32, 4), (512, 40, 32, 4), (64, 128, 64, 8)):
    ours, peer = (
        Attention(d_model, heads, causal=True),
        nn.MultiheadAttention(d_model, heads, batch_first=True),
    )
    x, future = (
        torch.randn(batch, n, d_model, requires_grad=True),
        torch.ones(n, n, dtype=torch.bool).triu(1),
    )

    def attend():
        return ours(x)

    def attend_peer():
        return peer(x, x, x, attn_mask=future, need_weights=False, is_causal=True)[0]

    shape = f"batch {batch}, {n} tokens, d_model {d_model}, {heads} heads"
    print(f"{shape}, forward:            {ratio(attend, attend_peer)}")
    print(
        f"{shape}, forward + backward: {ratio(lambda: attend().sum().backward(), lambda: attend_peer().sum().backward())}"
    )

layer, x = Attention(32, 4, causal=True, clip=10), torch.randn(512, 40, 32)


@torch.no_grad()
def with_cache():
    cache = KVCache(40)
    for i in range(40):
        layer(x[:, i : i + 1], cache)


@torch.no_grad()
def without_cache():
    for i in range(40):
        layer(x[:, : i + 1])


print(
    f"40 tokens one by one, 512 sequences, cache against none: {ratio(with_cache, without_cache)}"
)
