"""The copy in Keras is the same function, and tf-keras-vis draws the same maps of it."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from physattn.foundations.models import HookPoint
from physattn.foundations.runs import generator, seeded
from physattn.tensortrain import keras, maps
from physattn.tensortrain.keras import _awake, _visible, arrival, draws, layers, to_keras
from physattn.tensortrain.networks import network

has_keras = True
try:
    keras._keras()
except ImportError:
    has_keras = False
needs_keras = pytest.mark.skipif(not has_keras, reason="needs physattn[keras]")


def images(n, channels, size, dtype=torch.float64, seed=0):
    return torch.rand(n, channels, size, size, generator=generator(seed, "x")).to(dtype)


def chain(seed=0):
    "Torch's flattening, a stride, no bias, another epsilon and rectangular maps."
    with seeded(seed, "chain"):
        model = nn.Sequential(
            nn.Conv2d(3, 4, (3, 1), padding=(1, 0), bias=False),
            nn.BatchNorm2d(4, eps=0.1),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3, stride=(1, 2), padding=1),
            nn.ReLU(),
            HookPoint(),
            nn.MaxPool2d(2),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(5 * 4 * 2, 6, bias=False),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Linear(6, 10),
        )
    return _awake(model.double(), images(8, 3, 8), seed)


def close(a, b):
    "Within 1e-12 of the largest entry of each map, none of which is zero."
    top = b.amax((1, 2))
    return (top > 0).all() and ((a - b).abs().amax((1, 2)) <= 1e-12 * top).all()


# Layout


def test_arrival_tells_how_a_network_flattens():
    x = images(2, 1, 16)
    C, H, W = 32, 2, 2
    places = torch.arange(C * H * W).reshape(C, H, W)
    found = arrival(network("tt", width=0.25, size=16).double(), x)
    assert torch.equal(found, places.permute(1, 2, 0).flatten())
    assert torch.equal(arrival(chain(), images(2, 3, 8)), torch.arange(40))


def test_arrival_refuses_what_is_no_flattening():
    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.conv(x).sum((2, 3)))

    with pytest.raises(ValueError, match="entry by entry"):
        arrival(Summed(), images(1, 1, 8, torch.float32))
    with pytest.raises(ValueError, match="not a chain"):
        arrival(nn.Sequential(nn.Conv2d(1, 3, 3)), images(1, 1, 8, torch.float32))


def test_layers_come_in_the_order_of_use_and_cores_are_none():
    model = network("tt", width=0.25, size=16).double()
    kinds = [type(module).__name__ for module, _ in layers(model, images(1, 1, 16))]
    assert kinds[:3] == ["Conv2d", "ReLU", "BatchNorm2d"] and kinds[-1] == "Linear"
    assert kinds.count("TTLinear") == 2 and kinds.count("MaxPool2d") == 3
    assert len(kinds) == 6 * 3 + 3 + 2 * 3 + 1


def test_draws_are_those_of_numpy():
    x, before = images(2, 3, 4), np.random.get_state()[1].copy()
    with keras._numpy_seed(7):
        z = np.random.normal(0.0, 1.0, (5, 2, 4, 4, 3))
    assert np.array_equal(draws(x, 5, seed=7)[1, 4, 2].numpy(), z[4, 1, :, :, 2])
    assert np.array_equal(np.random.get_state()[1], before)


def test_without_tf_keras_vis_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf_keras_vis.gradcam", None)
    monkeypatch.setitem(sys.modules, "tf_keras_vis", None)
    with pytest.raises(ImportError, match=r"pip install physattn\[keras\]"):
        to_keras(chain(), images(1, 3, 8))


# The copy


@needs_keras
def test_the_copy_is_the_same_function():
    model, x = chain().eval(), images(3, 3, 8)
    twin = to_keras(model, x)
    fresh = images(5, 3, 8, seed=1)
    found = twin(fresh.permute(0, 2, 3, 1).numpy(), training=False).numpy()
    assert found.dtype == np.float64
    assert np.abs(found - model(fresh).detach().numpy()).max() < 1e-12


@needs_keras
@pytest.mark.parametrize("head", ["dense", "tt", "matched", "lowrank"])
def test_heads_of_the_chapter_survive_the_journey(head):
    x = images(4, 1, 16, torch.float32)
    model = _awake(network(head, 0.25, size=16).double(), x.double(), 2)
    twin = to_keras(model, x)
    dense = [layer for layer in twin.layers if type(layer).__name__ == "Dense"]
    expected = model.eval()(x.double()).detach().numpy()
    found = twin(x.double().permute(0, 2, 3, 1).numpy(), training=False).numpy()
    assert len(dense) == {"dense": 2, "tt": 3, "matched": 2, "lowrank": 3}[head]
    assert np.abs(found - expected).max() < 1e-12 * np.abs(expected).max() + 1e-13


@needs_keras
def test_what_has_no_translation_is_said():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 2)

        def forward(self, x):
            return self.head((x + self.conv(x)).flatten(1))

    with pytest.raises(ValueError, match="entry by entry|no layer"):
        to_keras(Shortcut().double(), images(2, 1, 8))
    sigmoid = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(72, 2)
    )
    with pytest.raises(ValueError, match="Sigmoid has no translation"):
        to_keras(sigmoid.double(), images(2, 1, 8))
    halved = chain()
    halved.register_forward_hook(lambda module, arguments, y: y / 2)
    with pytest.raises(ValueError, match="the copy's logits differ"):
        to_keras(halved, images(2, 3, 8))


# The maps


@needs_keras
@pytest.mark.parametrize("head", [None, "dense", "tt"])
def test_tf_keras_vis_draws_the_same_maps(head):
    if head is None:
        model, x = chain(), images(4, 3, 8)
    else:
        x = images(3, 1, 16)
        model = _awake(network(head, 0.25, size=16).double(), x, 1)
    x = x * torch.linspace(0.2, 1, len(x))[:, None, None, None]  # ranges differ
    twin, target = to_keras(model, x), _visible(model, x)
    assert close(keras.gradcam(twin, x, target), maps.gradcam(model, x, target))
    assert close(
        keras.gradcam(twin, x, target, "Layercam"), maps.layercam(model, x, target)
    )
    found = keras.smoothgrad(twin, x, target, samples=5, noise=0.3, seed=4)
    z = draws(x, 5, seed=4)
    ours = maps.smoothgrad(model, x, target, samples=5, noise=0.3, draws=z)
    assert close(found, ours)
    scale = model.eval()(x).detach().gather(1, target[:, None])[..., None].exp()
    found = keras.gradcam(twin, x, target, "GradcamPlusPlus") / scale
    ours = maps.gradcam_plus_plus(model, x, target)
    assert (found - ours).abs().max() < 1e-8 * ours.max()


@needs_keras
def test_maps_of_the_source_networks_at_half_width():
    x = images(2, 1, 32)
    for head in ("dense", "tt"):
        model = _awake(network(head, 0.5).double(), x, 3)
        twin, target = to_keras(model, x), _visible(model, x)
        assert close(keras.gradcam(twin, x, target), maps.gradcam(model, x, target))
        ours = maps.smoothgrad(model, x, target, samples=4, draws=draws(x, 4))
        assert close(keras.smoothgrad(twin, x, target, samples=4), ours)
