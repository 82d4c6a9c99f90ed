"""Tensor trains from the shell: weights that come back, runs that resume, pictures, refusals."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from physattn.tensortrain.maps import gradcam
from physattn.tensortrain.networks import Network, gratings, network, train

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
SMALL = "--data gratings --size 16 --width 0.25 --images 240 --test-images 60 --batch 40".split()
BRIEF = [*SMALL, "--epochs", "2", "--seed", "3"]


@pytest.fixture
def shell(shell):
    return lambda *words: shell("tensortrain", *map(str, words))


@pytest.fixture
def trained(shell, tmp_path):
    assert shell("train", "dense", "--head", "dense", *BRIEF)[0] == 0
    Image.fromarray(np.full((16, 16), 90, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(
        tmp_path / "wide.png"
    )
    return tmp_path / "dense"


def weights(path):
    return Network.load(path).state_dict()


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_weights_are_those_of_the_library(trained):
    model = network("dense", 0.25, seed=3, size=16)
    x, y = gratings(240, 16, seed=3)
    train(model, x, y, epochs=2, batch=40, seed=3)
    assert same(model.state_dict(), weights(trained))
    assert sorted(p.name for p in trained.parent.glob("dense*")) == [
        "dense.json",
        "dense.safetensors",
    ]


def test_a_run_that_is_killed_goes_on_to_the_same_bits(shell, tmp_path):
    words = ["--head", "tt", *SMALL, "--epochs", "6"]
    assert shell("train", "whole", *words)[0] == 0
    command = [sys.executable, "-m", "physattn", "tensortrain", "train", "cut", *words]
    killed = subprocess.Popen(command, cwd=tmp_path, env=os.environ)
    while not (tmp_path / "cut.settings.json").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    killed.send_signal(signal.SIGTERM)
    killed.wait()
    if (tmp_path / "cut.checkpoint.safetensors").exists():
        code, _, error = shell("train", "cut", *words, "--lr", "0.01")
        assert code == 1 and "another lr" in error
    if killed.returncode:
        assert shell("train", "cut", *words)[0] == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_a_run_that_is_done_is_left_as_it_is(shell, trained):
    before = trained.with_name("dense.safetensors").stat().st_mtime_ns
    code, said, _ = shell("train", "dense", "--head", "dense", *BRIEF)
    assert code == 0 and "nothing to do" in said
    assert trained.with_name("dense.safetensors").stat().st_mtime_ns == before
    code, _, error = shell("train", "dense", "--head", "dense-relu", *BRIEF)
    assert code == 1 and "exists: give another name" in error


def test_a_compressed_network_is_smaller_and_explains(shell, trained, tmp_path):
    code, said, _ = shell("compress", "small", "--model", trained, "--rank", 2)
    assert code == 0 and "in the head" in said
    small, dense = Network.load(tmp_path / "small"), Network.load(trained)
    assert small.n_parameters < dense.n_parameters
    assert small.about["compressed"] == {"method": "als", "rank": 2}
    code, said, _ = shell("explain", "grey.png", "-m", "small", "--class", "36 degrees")
    assert code == 0 and "explained: 36 degrees" in said
    assert Image.open(tmp_path / "grey-maps.png").size[0] > 500


def test_what_is_drawn_is_what_the_library_says(shell, trained, monkeypatch):
    seen, real = {}, sys.modules["physattn.tensortrain.maps"].draw

    def spy(x, maps, **options):
        seen.update(maps, x=x, **options)
        return real(x, maps, **options)

    monkeypatch.setattr("physattn.tensortrain.maps.draw", spy)
    code, _, _ = shell(
        "explain", "wide.png", "-m", trained, "-c", 4, "--resize", "--overlay"
    )
    model = Network.load(trained).eval()
    assert code == 0 and seen["x"].shape == (1, 1, 16, 16) and seen["overlay"]
    assert torch.equal(seen["GradCAM"], gradcam(model, seen["x"], 4))


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("train", "new", "--data", "imagenet"), "data = 'imagenet' is unknown"),
        (("train", "new", "--size", 16), "the images of CIFAR-10 have 32 x 32 pixels"),
        (("train", "new", "--head", "mps", *SMALL), "head = 'mps' does not exist"),
        (("train", "new", *SMALL, "--epochs", 0), "epochs = 0 trains nothing"),
        (("train", "dense", *SMALL), "exists: give another name, or --overwrite"),
        (("compress", "dense", "-m", "dense"), "exists: give another name"),
        (("compress", "new", "-m", "none"), "there is no file none.safetensors"),
        (("compress", "new", "-m", "dense", "--method", "svd"), "choose als or tt-svd"),
        (("compress", "new", "-m", "dense", "--rank", 0), "rank"),
        (("explain", "none.png", "-m", "dense"), "there is no image none.png"),
        (("explain", "dense.json", "-m", "dense"), "is no image that can be read"),
        (("explain", "wide.png", "-m", "dense"), "reads 16 x 16: give --resize"),
        (("explain", "grey.png", "-m", "dense", "-c", "10"), "class '10' is unknown"),
        (("explain", "grey.png", "-m", "dense", "--methods", "CAT"), "'CAT' is unknown"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(shell, trained, words, sentence):
    before = sorted(trained.parent.iterdir())
    code, _, error = shell(*words)
    assert code == 1 and sentence in error and "Traceback" not in error
    assert sorted(trained.parent.iterdir()) == before


def test_a_truncated_file_is_refused(shell, trained):
    file = trained.with_name("dense.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    code, _, error = shell("explain", "grey.png", "-m", "dense")
    assert code == 1 and "Traceback" not in error


def test_settings_travel_with_the_weights(trained):
    about = json.loads(trained.with_suffix(".json").read_text())["about"]
    assert about["settings"]["images"] == 240 and len(about["classes"]) == 10
