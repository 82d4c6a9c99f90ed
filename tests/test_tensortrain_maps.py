"""Maps are what their definitions say, and what Captum computes."""

import importlib.util

import pytest
import torch
from torch import nn

from physattn.foundations.models import HookPoint
from physattn.foundations.runs import generator, seeded
from physattn.tensortrain import maps
from physattn.tensortrain.maps import (
    METHODS,
    draw,
    gradcam,
    gradcam_plus_plus,
    input_x_gradient,
    integrated_gradients,
    last_convolution,
    layercam,
    saliency,
    smoothgrad,
)

needs_captum = pytest.mark.skipif(
    not importlib.util.find_spec("captum"), reason="needs physattn[tensortrain]"
)


def classifier(channels=2, width=6, seed=0):
    "Convolutions, batch norms and dropout as in the chapter, 12 x 12 pixels, float64."
    with seeded(seed, "classifier"):
        model = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            HookPoint(),
            nn.BatchNorm2d(width),
            nn.MaxPool2d(2),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(36 * width, 5),
        )
    return model.double()


def images(n=6, channels=2, seed=0):
    return torch.rand(n, channels, 12, 12, generator=generator(seed, "x")).double()


def visible(model, x):
    "For each image the class of the largest GradCAM; others may be zero."
    return torch.stack([gradcam(model, x, c).sum((1, 2)) for c in range(5)]).argmax(0)


# Definitions


def test_gradcam_by_finite_differences_of_whole_feature_maps():
    model, x = classifier().eval(), images(3)
    target, step = visible(model, x), 1e-6
    A = model[:5](x).detach()
    expected = torch.zeros(3, 12, 12).double()
    for k in range(A.shape[1]):
        bump = torch.zeros_like(A)
        bump[:, k] = step / A[0, 0].numel()
        with torch.no_grad():
            y = [model[5:](A + s * bump).gather(1, target[:, None])[:, 0] for s in (1, -1)]
        expected += ((y[0] - y[1]) / (2 * step))[:, None, None] * A[:, k]
    found = gradcam(model, x, target)
    assert found.max() > 0 and torch.allclose(found, expected.relu(), atol=1e-9)


def test_a_map_is_stretched_with_aligned_corners():
    scipy = pytest.importorskip("scipy.ndimage")
    model, x = classifier(), images(2)
    pooled = nn.Sequential(
        *model[:4], model[4], nn.MaxPool2d(2), nn.Flatten(), nn.Linear(216, 5)
    )
    pooled = pooled.double().eval()
    A, g = maps.activations_and_gradients(pooled, x, torch.tensor([1, 2]), "5")
    coarse = (g.relu() * A).sum(1)
    found = layercam(pooled, x, torch.tensor([1, 2]), layer="5")
    assert coarse.shape == (2, 6, 6)
    expected = scipy.zoom(coarse.numpy(), (1, 2, 2), order=1)
    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-14)


def test_cam_is_exact_for_a_head_that_averages_over_places():
    with seeded(3, "pooled"):
        conv, linear = nn.Conv2d(2, 8, 3, padding=1), nn.Linear(8, 3, bias=False)
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    model = model.double()
    with torch.no_grad():
        linear.weight.abs_()
    x = images()
    for method in (gradcam, layercam):
        cam = method(model, x, 1)
        assert torch.allclose(cam.sum((1, 2)), model(x)[:, 1])


def test_saliency_and_input_x_gradient_by_finite_differences():
    model, x = classifier(), images(1)
    model.eval()
    g = torch.zeros_like(x)
    for i in torch.cartesian_prod(
        torch.arange(2), torch.arange(12), torch.arange(12)
    ).tolist():
        e = torch.zeros_like(x)
        e[0, *i] = 1e-6
        with torch.no_grad():
            g[0, *i] = (model(x + e) - model(x - e))[0, 3] / 2e-6
    assert torch.allclose(saliency(model, x, 3), g.abs().amax(1), atol=1e-7)
    assert torch.allclose(input_x_gradient(model, x, 3), (g * x).sum(1), atol=1e-7)


def test_smoothgrad_is_a_mean_of_sizes_with_noise_of_the_range_of_each_image():
    model, x = (
        classifier().eval(),
        images(3) * torch.tensor([0.1, 1.0, 5.0])[:, None, None, None],
    )
    z = torch.randn(3, 7, 2, 12, 12, generator=generator(1), dtype=torch.float64)
    target, expected = torch.tensor([0, 2, 4]), []
    for k in range(3):
        sizes = []
        for s in range(7):
            y = (x[k] + 0.3 * (x[k].max() - x[k].min()) * z[k, s])[None].requires_grad_()
            sizes.append(torch.autograd.grad(model(y)[0, target[k]], y)[0].abs())
        expected.append(torch.stack(sizes).mean(0)[0].amax(0))
    found = smoothgrad(model, x, target, samples=7, noise=0.3, draws=z)
    assert torch.allclose(found, torch.stack(expected))


def test_noise_belongs_to_the_image_and_to_the_seed():
    model, x = classifier(), images()
    found = smoothgrad(model, x, 1, samples=5, seed=3)
    for batch in (1, 3, 1000):
        assert torch.allclose(
            found, smoothgrad(model, x, 1, samples=5, seed=3, batch=batch)
        )
    assert torch.allclose(found[:2], smoothgrad(model, x[:2], 1, samples=5, seed=3))
    assert not torch.allclose(found, smoothgrad(model, x, 1, samples=5, seed=4))
    mean = smoothgrad(model, x[:1], 1, samples=2000, seed=5)
    other = smoothgrad(model, x[:1], 1, samples=2000, seed=6)
    assert (mean - other).abs().max() < 0.2 * mean.max()


# Captum


@needs_captum
def test_captum_agrees():
    from captum.attr import InputXGradient, LayerGradCam, Saliency

    model, x = classifier().eval(), images()
    target = visible(model, x)
    coarse = LayerGradCam(model, model[4]).attribute(x, target, relu_attributions=True)
    assert coarse.max() > 0
    assert torch.allclose(gradcam(model, x, target), coarse[:, 0], atol=1e-14)
    leaf = x.clone().requires_grad_()
    sizes = Saliency(model).attribute(leaf, target)
    assert torch.allclose(saliency(model, x, target), sizes.amax(1), atol=1e-14)
    product = InputXGradient(model).attribute(leaf, target)
    assert torch.allclose(input_x_gradient(model, x, target), product.sum(1), atol=1e-14)


@needs_captum
def test_integrated_gradients_add_up_and_do_not_depend_on_the_batch():
    model, x = classifier().eval(), images(3)
    with torch.no_grad():
        difference = (model(x) - model(torch.zeros_like(x)))[:, 2]
    found = integrated_gradients(model, x, 2, steps=300)
    assert torch.allclose(found.sum((1, 2)), difference, rtol=0.02, atol=1e-3)
    assert torch.allclose(found, integrated_gradients(model, x, 2, steps=300, batch=7))


def test_integrated_gradients_without_captum_name_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"pip install physattn\[tensortrain\]"):
        integrated_gradients(classifier(), images(1))


# Contracts


@pytest.mark.parametrize("name", [k for k in METHODS if k != "integrated gradients"])
def test_a_map_does_not_depend_on_the_batch_and_leaves_the_model_alone(name):
    model, x = classifier(), images()
    model.train()
    model[2].eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    x.requires_grad_()
    found = METHODS[name](model, x, 1)
    assert found.shape == (6, 12, 12) and not found.requires_grad
    assert torch.allclose(found, METHODS[name](model, x, 1, batch=4))
    assert torch.allclose(
        found[3:5], METHODS[name](model, x[3:5], torch.tensor([1, 1]))
    ) or (name == "SmoothGrad")
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and x.grad is None


def test_without_a_target_the_likeliest_class_is_explained():
    model, x = classifier(), images()
    model.eval()
    likeliest = model(x).argmax(1)
    assert torch.equal(saliency(model, x), saliency(model, x, likeliest))
    assert not torch.allclose(saliency(model, x), saliency(model, x, (likeliest + 1) % 5))


def test_the_default_layer_is_the_last_convolution_with_its_relu():
    model, x = classifier(), images()
    assert last_convolution(model) == "4"
    assert torch.equal(gradcam(model, x, 1), gradcam(model, x, 1, layer="5"))  # hook point
    assert not torch.allclose(layercam(model, x, 1), layercam(model, x, 1, layer="0"))
    behind = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    assert last_convolution(behind) == "0"


def test_a_layer_that_works_in_place_and_frozen_weights_do_no_harm():
    model, x = classifier(), images()
    expected = gradcam(model, x, 1)
    model[4] = nn.ReLU(inplace=True)
    before = gradcam(model, x, 1, layer="3")
    model.requires_grad_(False)
    assert torch.allclose(gradcam(model, x, 1), expected)
    model[4] = nn.ReLU()
    assert torch.allclose(gradcam(model, x, 1, layer="3"), before)


def test_gradcam_plus_plus_ignores_places_without_gradient():
    model, x = classifier(), images()
    with torch.no_grad():
        model[10].weight.zero_()
    assert torch.equal(gradcam_plus_plus(model, x, 1), torch.zeros(6, 12, 12).double())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused, self.conv, self.head = nn.ReLU(), nn.Conv2d(2, 3, 3), nn.Linear(300, 4)

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda m, x: gradcam(nn.Sequential(nn.Flatten(), nn.Linear(288, 3)).double(), x), "no convolution"),
        (lambda m, x: gradcam(m, x[0]), "shape"),
        (lambda m, x: saliency(m, x[:0]), "shape"),
        (lambda m, x: smoothgrad(m, x[..., :8, :8]), "do not pass"),
        (lambda m, x: gradcam(m, x[:, :1]), "do not pass"),
        (lambda m, x: gradcam(m, x, layer="nowhere"), "nowhere"),
        (lambda m, x: gradcam(m, x, layer="10"), "no places"),
        (lambda m, x: gradcam(Twice().double(), x, layer="unused"), "not used"),
        (lambda m, x: saliency(m, x, 5), "target = 5"),
        (lambda m, x: saliency(m, x, torch.tensor([0, 1])), "target"),
        (lambda m, x: saliency(m, x, batch=0), "batch = 0"),
        (lambda m, x: smoothgrad(m, x, samples=0), "samples = 0"),
        (lambda m, x: smoothgrad(m, x, draws=torch.zeros(1)), "draws"),
        (lambda m, x: saliency(nn.Conv2d(2, 3, 3).double(), x), "classifier"),
        (lambda m, x: draw(x, {}), "images have shape"),
        (lambda m, x: draw(x[:, :1], {"a": x[:, 0, :4]}), "'a'"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(call, says):
    with pytest.raises(ValueError, match=says) as caught:
        call(classifier(), images())
    assert "\n" not in str(caught.value)


def test_the_figure_shows_each_image_at_its_place():
    pytest.importorskip("matplotlib")
    x = images(5, 1)
    m = torch.zeros(5, 12, 12)
    m[3, 2, 7] = -4.0
    fig = draw(x, {"a": m, "b": m.abs()}, columns=2, across=2)
    shown = [ax.images[0].get_array() for ax in fig.axes if ax.images]
    assert len(shown) == 3 and shown[0].shape == (3 * 13 - 1, 2 * 13 - 1, 4)
    assert (shown[0][13:25, 13:25, 0] == x[3, 0].float().numpy()).all()
    bright = shown[1][..., 0].max() == shown[1][..., 0]
    assert bright.sum() == 1 and bright[13 + 2, 13 + 7]  # of a signed map the size is shown
    assert (shown[1] == shown[2]).all()
