"""The figure that plays shows the recorded result, and its pictures are what the library makes."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from physattn.foundations.experiments import recall
from physattn.tensortrain.compression import image_train, train_image

PLAYER = Path(__file__).parents[1] / "book/_static/trains.js"


def player(code):
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    code = (
        f"require({json.dumps(str(PLAYER))}); const t = globalThis.physattnTrains; {code}"
    )
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def recorded():
    return recall("tensortrain/playable")


def test_numbers_in_the_page_are_the_recorded_ones(recorded):
    shown = player("console.log(JSON.stringify(t.DATA))")
    assert shown["ranks"] == recorded["ranks"]
    assert shown["imageParameters"] == recorded["image parameters"]
    assert shown["layerParameters"] == recorded["layer parameters"]
    exact = [estimate.value for estimate in recorded["accuracy"]]
    assert np.allclose(shown["accuracy"], exact, atol=6e-5)


def test_pixels_in_the_page_are_the_recorded_ones(recorded):
    n, ranks = len(recorded.tensors["images"]), recorded["ranks"]
    code = "const flat = x => Array.from(x); console.log(JSON.stringify({"
    code += "images: [...Array(t.DATA.pictures).keys()].map(k => flat(t.image(k))),"
    code += "maps: [-1, ...t.DATA.ranks.keys()].map(r => flat(t.map(r, 0)))}))"
    shown = player(code)
    assert np.array_equal(shown["images"], recorded.tensors["images"].flatten(1))
    assert np.array_equal(shown["maps"], recorded.tensors["maps"][:, 0].flatten(1))
    assert recorded.tensors["maps"].shape == (len(ranks) + 1, n, 32, 32)


def test_pictures_and_errors_are_those_of_the_library(recorded):
    frog = recorded.tensors["images"][0].double() / 255
    code = (
        "t.DATA.ranks.map((_, r) => [t.missed(r, 0), Array.from(t.reconstruction(r, 0))])"
    )
    for rank, (missed, pixels) in zip(
        recorded["ranks"], player(f"console.log(JSON.stringify({code}))")
    ):
        ours = train_image(image_train(frog, rank)).clamp(0, 1)
        assert (255 * ours.flatten() - torch.tensor(pixels)).abs().max() < 0.51
        assert np.isclose(missed, (ours - frog).norm() / frog.norm(), atol=0.003)


def test_more_weights_help_the_image_and_the_network(recorded):
    accuracy = [estimate.value for estimate in recorded["accuracy"]]
    errors = player(
        "console.log(JSON.stringify(t.DATA.ranks.map((_, r) => t.missed(r, 0))))"
    )
    assert all(a >= b - 1e-9 for a, b in zip(errors, errors[1:]))
    assert accuracy[1] < accuracy[-1] < accuracy[0] + 0.02
