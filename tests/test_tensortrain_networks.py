"""The two networks of the tensor-train chapter, their data and their training."""

import io
import math
import os
import sys
import tarfile
import types

import numpy as np
import pytest
import torch
from torch import nn

from physattn.foundations.experiments import recall, results_folder
from physattn.tensortrain import networks
from physattn.tensortrain.networks import (
    CLASSES,
    HEADS,
    PUBLISHED,
    Network,
    epochs_to,
    evaluate,
    gratings,
    images,
    network,
    recalled,
    train,
)

recorded = pytest.mark.skipif(
    not (results_folder() / "tensortrain/seeds.json").exists(), reason="not recorded"
)


def tiny(head="dense", **settings):
    return network(head, 0.25, size=16, **settings)


@pytest.fixture
def without_cache():
    networks._grey.cache_clear()
    yield
    networks._grey.cache_clear()


# The networks


def test_parameters_are_those_that_the_source_prints():
    dense, tt = network("dense"), network("tt")
    assert (dense.n_parameters, tt.n_parameters) == (551_146, 498_282)
    convolutions = [(1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    trunk = sum(9 * n * m + m + 2 * m for n, m in convolutions)
    assert trunk == 287_328 == sum(p.numel() for p in dense.features.parameters())
    for layer, count in ((tt.head.layer1, 121_344), (tt.head.layer2, 55_808)):
        assert sum(p.numel() for p in layer.parameters()) == count


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_controls_have_the_size_of_what_they_control(width):
    n = {head: network(head, width).n_parameters for head in HEADS}
    assert 0 <= n["tt"] - n["mlp"] < 0.01 * n["tt"]
    assert 0 <= n["matched"] - n["lowrank"] < 0.01 * n["matched"]
    assert n["dense"] == n["dense-relu"] and n["matched"] == n["matched-relu"]


def test_half_width_keeps_the_two_heads_equally_large():
    heads = [network(h, 0.5).head for h in ("dense", "tt")]
    a, b = (sum(p.numel() for p in head.parameters()) for head in heads)
    assert abs(a / b - 1) < 0.01


@pytest.mark.parametrize("head", HEADS)
def test_heads_without_relu_are_affine_in_evaluation(head):
    model = tiny(head).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in (m for m in model.head if isinstance(m, nn.BatchNorm1d)):
            norm.running_mean.normal_(generator=rng)
        a, b = torch.rand(2, 50, 4 * 32, generator=rng)
        middle = model.head((a + b) / 2)
        bend = (middle - (model.head(a) + model.head(b)) / 2).abs().max()
    affine = head in ("dense", "matched", "lowrank")
    assert bend < 1e-5 if affine else bend > 1e-4


def test_initial_weights_follow_keras_and_the_source():
    model = network("tt")
    w = model.features.conv3_2.weight.detach()
    bound = math.sqrt(6 / (128 * 9))
    assert 0.99 * bound < w.abs().max() <= bound
    assert abs(float(w.std()) * math.sqrt(3) / bound - 1) < 0.02
    for layer in (model.head.layer1, model.head.layer2):
        cores = torch.cat([core.detach().flatten() for core in layer.cores])
        assert abs(float(cores.std()) - 0.05) < 1e-3
    dense = network("dense").head.layer1.weight.detach()
    assert abs(float(dense.var()) / (2 / (2048 + 128)) - 1) < 0.05
    assert not network("dense").head.layer1.bias.any()


@pytest.mark.parametrize("head", ["matched", "lowrank"])
def test_a_factorised_layer_starts_with_the_variance_of_the_dense_one(head):
    def weight(layer):
        return layer.weight() if head == "matched" else layer[1].weight @ layer[0].weight

    power = [
        float(weight(network(head, 0.5, seed=s).head.layer1).square().mean())
        for s in range(8)
    ]
    assert abs(np.mean(power) / (2 / (1024 + 128)) - 1) < 0.15


def test_features_reach_the_head_in_the_order_of_keras():
    model = network("dense", 0.25).eval()
    x, _ = gratings(2)
    with torch.no_grad():
        maps = model.features(x)
        model.head = nn.Identity()
        flat = model(x)
    channels = maps.shape[1]
    for row, column, channel in ((0, 0, 5), (1, 3, 0), (3, 2, 31)):
        i = (4 * row + column) * channels + channel
        assert torch.equal(flat[:, i], maps[:, channel, row, column])


def test_batch_norms_carry_the_momentum_of_keras():
    model = tiny(momentum=0.99).train()
    x, _ = gratings(64, size=16)
    norm = model.features.norm1_1
    inputs = []
    norm.register_forward_hook(lambda module, args, out: inputs.append(args[0]))
    for _ in range(10):
        model(x)
    mean = inputs[0].mean((0, 2, 3))
    assert torch.allclose(norm.running_mean, (1 - 0.99**10) * mean, atol=1e-6)
    assert norm.eps == 1e-3


def test_a_seed_fixes_weights_and_the_trunk_is_common_to_all_heads():
    state = torch.random.get_rng_state()
    a, b = tiny("tt", seed=1), tiny("tt", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    for head in HEADS:
        trunk = tiny(head, seed=1).features.parameters()
        assert all(torch.equal(p, q) for p, q in zip(a.features.parameters(), trunk))
    other = tiny("tt", seed=2)
    assert not torch.equal(a.features.conv1_1.weight, other.features.conv1_1.weight)


def test_weights_go_to_disk_and_back(tmp_path):
    model = tiny("tt").eval()
    x, _ = gratings(3, size=16)
    again = Network.load(model.save(tmp_path / "model")).eval()
    assert again.config == model.config and torch.allclose(again(x), model(x), atol=1e-6)
    old, new = model.state_dict(), again.state_dict()
    assert old.keys() == new.keys() and all(
        torch.equal(old[name], new[name]) for name in old
    )


def test_the_hook_after_the_last_convolution_sees_what_keras_calls_its_output():
    model = tiny().eval()
    x, _ = gratings(3, size=16)
    _, cache = model.run_with_cache(x)
    maps = model.features.conv3_2(
        model.features[: list(model.features._modules).index("conv3_2")](x)
    )
    assert torch.equal(cache["features.hook_conv3_2"], maps.relu())


# Training


def test_momentum_changes_the_evaluation_and_not_the_training():
    x, y = gratings(120, size=16)
    runs, models = [], []
    for momentum in (0.9, 0.99):
        models.append(tiny("tt", momentum=momentum))
        runs.append(train(models[-1], x, y, epochs=2, batch=30, test=(x, y)))
    a, b = models
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert runs[0].history["loss"] == runs[1].history["loss"]
    assert runs[0].history["test_loss"] != runs[1].history["test_loss"]


def test_the_reported_loss_is_the_mean_over_images_in_training_mode():
    x, y = gratings(50, size=16)
    model = without_dropout(tiny("mlp"))
    with torch.no_grad():
        logits = model.train()(x)
    run = train(without_dropout(tiny("mlp")), x, y, epochs=1, batch=50)
    expected = float(nn.functional.cross_entropy(logits, y))
    assert math.isclose(run.history["loss"][0][1], expected, rel_tol=1e-5)
    accuracy = float((logits.argmax(1) == y).double().mean())
    assert math.isclose(run.history["accuracy"][0][1], accuracy, abs_tol=1e-6)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path):
    x, y = gratings(90, size=16)
    whole = tiny("tt")
    history = train(whole, x, y, epochs=3, batch=40, seed=5).history

    class Stop(Exception):
        pass

    broken, calls = tiny("tt"), []

    def stop_in_third_epoch(*_):
        calls.append(broken.training)
        if len(calls) == 8:
            raise Stop

    broken.register_forward_hook(stop_in_third_epoch)
    saved = networks.Run
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(networks, "Run", lambda *a, **k: saved(*a, **k, every=0.0))
        train(broken, x, y, epochs=3, batch=40, seed=5, path=tmp_path / "run")
    again = tiny("tt", seed=9)
    resumed = train(again, x, y, epochs=3, batch=40, seed=5, path=tmp_path / "run")
    assert resumed.history == history
    assert all(
        torch.equal(p, q)
        for p, q in zip(whole.state_dict().values(), again.state_dict().values())
    )


def test_training_leaves_the_global_generator_alone():
    x, y = gratings(40, size=16)
    state = torch.random.get_rng_state()
    train(tiny(), x, y, epochs=1, batch=20)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_evaluation_does_not_depend_on_the_batches_and_keeps_the_mode():
    x, y = gratings(60, size=16)
    model = tiny("tt").train()
    a, b = evaluate(model, x, y, batch=60), evaluate(model, x, y, batch=7)
    assert model.training and np.allclose(a, b, atol=1e-6)
    right = (model.eval()(x).argmax(1) == y).double().mean()
    assert math.isclose(a[1], float(right))


@pytest.mark.parametrize("head", ["dense", "tt"])
def test_waves_are_learned(head):
    x, y = gratings(600, size=16)
    model = tiny(head, momentum=0.9)
    train(model, x, y, epochs=4, batch=50, lr=3e-3)
    assert evaluate(model, *gratings(300, size=16, seed=1))[1] > 0.6


# Data


def folder_of_jpegs(folder, n=30):
    from PIL import Image

    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 256, (n, 4, 4, 3)), np.ones((1, 8, 8, 1)))
    streams, greys = [], []
    for pixels in smooth.astype(np.uint8):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=75)
        streams.append(stream.getvalue())
        greys.append(np.asarray(Image.open(stream).convert("L")))
    np.savez(
        folder / "cifar10_jpeg_q75.npz",
        data=np.frombuffer(b"".join(streams), np.uint8),
        offsets=np.cumsum([0, *map(len, streams)]),
        labels=np.arange(n, dtype=np.uint8) % 10,
        test=np.arange(n) < 10,
    )
    return np.stack(greys)


def test_images_from_jpegs(tmp_path, monkeypatch, without_cache):
    grey = folder_of_jpegs(tmp_path)
    monkeypatch.setenv("PHYSATTN_DATA", str(tmp_path))
    x, y = images("train")
    assert (
        x.shape == (20, 1, 32, 32) and x.dtype == torch.float32 and y.dtype == torch.int64
    )
    assert 0 <= x.min() and x.max() <= 1
    # Every image is one of the training images, with its label.
    flat = (x[:, None, 0] * 255 - torch.tensor(grey[10:]).float()).abs().mean((2, 3))
    assert flat.min(1).values.max() < 3
    assert torch.equal(flat.argmin(1) % 10, y) and len(set(flat.argmin(1).tolist())) == 20
    first, labels = images("train", 5)
    assert torch.equal(first, x[:5]) and torch.equal(labels, y[:5])
    assert not torch.equal(images("train", 5, seed=1)[1], labels)


def test_images_from_the_original_archive(tmp_path, monkeypatch, without_cache):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (24, 3073), dtype=np.uint8)
    rows[:, 0] = np.arange(24) % 10
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        for name, part in zip(names, rows.reshape(6, 4, 3073)):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = part.nbytes
            tar.addfile(info, io.BytesIO(part.tobytes()))
    asked = []
    fake = types.SimpleNamespace(
        os_cache=lambda name: tmp_path,
        retrieve=lambda *a, **k: asked.append(a) or str(path),
    )
    monkeypatch.setitem(sys.modules, "pooch", fake)
    monkeypatch.delenv("PHYSATTN_DATA", raising=False)
    x, y = images("test")
    assert asked == [(networks.ARCHIVE, "md5:c32a1d4ab5d03f1284b67883e8d87530")]
    assert x.shape == (4, 1, 32, 32) and sorted(y.tolist()) == [0, 1, 2, 3]
    red, green, blue = rows[20 + int(y[0]), 1:].reshape(3, 32, 32).astype(float)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    assert np.abs(x[0, 0].numpy() * 255 - grey).max() <= 0.51
    assert len(images("train")[0]) == 20


def test_gratings_have_the_direction_that_their_label_says():
    x, y = gratings(50, noise=0.0)
    power = torch.fft.fft2(x[:, 0] - 0.5).abs() ** 2
    frequency = torch.fft.fftfreq(32)
    fy, fx = torch.meshgrid(frequency, frequency, indexing="ij")
    peak = power.flatten(1).argmax(1)
    angle = torch.atan2(fy.flatten()[peak], fx.flatten()[peak]) % math.pi
    off = (angle - y * math.pi / 10 + math.pi / 2) % math.pi - math.pi / 2
    assert off.abs().max() < 0.25


# What is measured


def test_epochs_to_interpolates_between_the_ends_of_epochs():
    loss = [[3.0, 2.0, 1.0], [3.0, 2.9, 2.8], [0.5, 0.4, 0.3], [3.0, 1.5, 2.5]]
    assert np.allclose(epochs_to(loss, 1.5), [2.5, np.nan, 1.0, 2.0], equal_nan=True)


def test_published_curves():
    assert all(len(curve) == 50 for curve in PUBLISHED.values())
    assert (PUBLISHED["tt/loss"] > PUBLISHED["dense/loss"]).all()
    assert PUBLISHED["dense/test_accuracy"].max() == 0.8375
    assert PUBLISHED["tt/test_accuracy"].max() == 0.8391


@recorded
@pytest.mark.parametrize("head", HEADS)
def test_recorded_weights_say_what_was_recorded(head):
    result = recall("tensortrain/seeds")
    x = torch.cat((result.tensors["batch"], result.tensors["frogs"])).float() / 255
    said, say = result.tensors[f"logits/{head}"], recalled(head)(x)
    assert torch.equal(say.argmax(1), said.argmax(1)) and (say - said).abs().max() < 0.05
    assert result["parameters"][head] == network(head, 0.5).n_parameters
    labels = result.tensors["batch labels"]
    assert (say[:16].argmax(1) == labels).double().mean() > 0.3
    assert (say[16:].argmax(1) == CLASSES.index("frog")).double().mean() > 0.3


@recorded
@pytest.mark.skipif("PHYSATTN_DATA" not in os.environ, reason="needs PHYSATTN_DATA")
@pytest.mark.parametrize("head", HEADS)
def test_half_precision_in_the_file_costs_no_accuracy(head):
    result = recall("tensortrain/seeds")
    config = result.about["config"]
    accuracy = evaluate(recalled(head), *images("test", config["n_test"]))[1]
    before = float(result.tensors[f"{head}/test_accuracy"][0, -1])
    # A few images on the edge change sides; the standard error of an accuracy is 0.011.
    assert abs(accuracy - before) < 5.5 / config["n_test"]


# Bad input


def test_bad_input_gets_one_sentence(tmp_path, monkeypatch, without_cache):
    x, y = gratings(20, size=16)
    with pytest.raises(ValueError, match="head = 'tensor' does not exist: choose dense"):
        network("tensor")
    with pytest.raises(ValueError, match="size = 20 pixels"):
        network(size=20)
    with pytest.raises(ValueError, match="width = 0.3 is not one of"):
        network(width=0.3)
    with pytest.raises(ValueError, match=r"give \(n, 1, 32, 32\)"):
        network(width=0.25)(x)
    with pytest.raises(ValueError, match="19 labels for 20 images"):
        train(tiny(), x, y[1:])
    with pytest.raises(ValueError, match="batch = 19 leaves a step of one image"):
        train(tiny(), x, y, batch=19)
    folder_of_jpegs(tmp_path)
    monkeypatch.setenv("PHYSATTN_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="choose train or test"):
        images("validation")
    with pytest.raises(ValueError, match="n = 21 images: the train split has 1 to 20"):
        images("train", 21)
    monkeypatch.setenv("PHYSATTN_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="correct PHYSATTN_DATA"):
        images()
    monkeypatch.delenv("PHYSATTN_DATA")
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"physattn\[tensortrain\]"):
        images()


def test_a_loss_that_is_not_finite_stops_the_training():
    x, y = gratings(20, size=16)
    with pytest.raises(ArithmeticError, match="loss = nan"):
        train(tiny(), x * float("nan"), y, batch=10)
