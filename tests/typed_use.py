"What users write, for mypy alone: nothing here runs, and a signature that changes its types is seen."

from pathlib import Path
from typing import Any, assert_type

import torch
from torch import Tensor

from physattn.foundations.attention import Attention, KVCache
from physattn.foundations.estimates import Estimate, autocorrelation_time, blocking
from physattn.foundations.experiments import Result, recall, reproduce
from physattn.foundations.files import load_tensors, save_tensors
from physattn.foundations.runs import Run, generator, seeded
from physattn.quantum.encodings import BlockEncoding, dilation, product
from physattn.sho.oscillator import Oscillator
from physattn.slmc.effective import Effective
from physattn.slmc.lattice import DoubleExchange, random_spins
from physattn.slmc.sampling import SLMC
from physattn.tensortrain.layers import TTLinear
from physattn.tensortrain.trains import TensorTrain, tt_svd
from physattn.tqs.chains import TransverseFieldIsing
from physattn.tqs.decoder import SpinDecoder
from physattn.tqs.energies import local_energy
from physattn.tqs.vmc import VMC, Measurement


def foundations(x: Tensor, path: Path) -> None:
    energy = Estimate.from_samples(x.numpy())
    assert_type(energy, Estimate)
    assert_type(2 * energy - 1, Estimate)
    assert_type(autocorrelation_time(x), Estimate)
    assert_type(blocking(x), list[Estimate])
    assert_type(recall("sho/blog"), Result)
    assert_type(reproduce("sho/blog", "quick", seed=1, folder=path), Result)
    assert_type(
        load_tensors(save_tensors(path, {"x": x})), tuple[dict[str, Tensor], dict[Any, Any]]
    )
    rng = generator(0, "data", 3)
    assert_type(rng, torch.Generator)
    with seeded(0, "weights"):
        layer = Attention(8, n_heads=2, causal=True)
    assert_type(layer.forward(x, KVCache(10)), Tensor)
    for step in Run(10, {"layer": layer, "rng": rng}, path, every=60):
        assert_type(step, int)
    Attention("8")  # type: ignore[arg-type]
    Run(10)  # type: ignore[call-arg]
    recall(3)  # type: ignore[arg-type]


def chains(path: Path) -> None:
    decoder = SpinDecoder(SpinDecoder.Config(20, bits_per_token=4), seed=0)
    chain = TransverseFieldIsing(20, g=1.0)
    vmc = VMC(decoder, chain, samples=256)
    assert_type(vmc.run(100, path), Run)
    assert_type(vmc.measure(), Measurement)
    assert_type(vmc.measure().energy, Estimate)
    assert_type(chain.exact_energy(), float)
    s = decoder.sample(10, generator(0))
    assert_type(local_energy(decoder, chain, s), Tensor)
    assert_type(SpinDecoder.load(path), SpinDecoder)
    assert_type(decoder.resize(40), SpinDecoder)
    SpinDecoder.Config("20")  # type: ignore[arg-type]


def lattices() -> None:
    system = DoubleExchange(6, T=0.05)
    S = random_spins(64, 6, generator(0))
    assert_type(system.action(S), Tensor)
    model = Effective(Effective.Config(6, blocks="c"))
    assert_type(model.append("a"), Effective)
    assert_type(SLMC(system, [model]).acceptances, list[Estimate])
    DoubleExchange(6, temperature=1)  # type: ignore[call-arg]


def trains(x: Tensor) -> None:
    train = tt_svd(x, eps=1e-3)
    assert_type(train, TensorTrain)
    assert_type(2.0 * (train + train).rounded(4), TensorTrain)
    assert_type(train.full(), Tensor)
    assert_type(train.ranks, tuple[int, ...])
    assert_type(TTLinear((4, 8), (8, 4), ranks=3).forward(x), Tensor)


def encodings(x: Tensor) -> None:
    one = dilation(x.numpy())
    assert_type(product(one, one), BlockEncoding)
    assert_type(one.success, float)
    assert_type(Oscillator(2.0, 0.1).trajectory(x, 0.1, 100), Tensor)
