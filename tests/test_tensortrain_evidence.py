"""Measures of maps are those of Quantus, and right where the evidence is known."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from physattn.foundations.experiments import find, reproduce
from physattn.foundations.runs import generator, seeded
from physattn.tensortrain import maps
from physattn.tensortrain.evidence import (
    area,
    correlation,
    deletion,
    entropy,
    gini,
    half_area,
    insertion,
    mass_in_box,
    pasted_digits,
    planted_images,
    planted_network,
    pointing_game,
    randomisation,
    randomised,
    report,
    textures,
)
from physattn.tensortrain.networks import network


def random(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed, "test"), dtype=torch.float64)


def classifier(seed=0, size=8):
    with seeded(seed, "classifier"):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * size**2, 3),
        ).double()


# Against Quantus


@pytest.fixture
def quantus(monkeypatch):
    found = pytest.importorskip("quantus", reason="needs physattn[dev] with quantus")
    if not hasattr(np, "trapz"):
        monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    return found


def asked(metric, x, m, masks=None, y=None, model=None, **options):
    n = len(x)
    return np.array(
        metric(
            model=model,
            x_batch=x.float().numpy(),
            y_batch=np.zeros(n, int) if y is None else y.numpy(),
            a_batch=m[:, None].numpy().copy(),
            s_batch=None if masks is None else masks[:, None].numpy(),
            **options,
        )
    )


PLAIN = dict(abs=False, normalise=False, disable_warnings=True, display_progressbar=False)


@pytest.mark.filterwarnings("ignore")
def test_spread_and_place_are_those_of_quantus(quantus):
    x, m = random(6, 1, 8, 8), random(6, 8, 8, seed=1) ** 3
    masks = random(6, 8, 8, seed=2) > 0.5
    cases = [
        (quantus.Sparseness, gini(m)),
        (quantus.Complexity, entropy(m)),
        (quantus.PointingGame, pointing_game(m, masks)),
        (quantus.RelevanceMassAccuracy, mass_in_box(m, masks)),
    ]
    for metric, ours in cases:
        place = (
            masks if metric.__name__ in ("PointingGame", "RelevanceMassAccuracy") else None
        )
        found = asked(metric(**PLAIN), x, m, place, model=classifier())
        assert np.allclose(found, ours, atol=1e-5), metric.__name__  # it adds 1e-7 itself
    assert 0 < pointing_game(m, masks).mean() < 1


@pytest.mark.filterwarnings("ignore")
def test_deletion_is_the_pixel_flipping_of_quantus(quantus):
    x, model, y = (
        random(5, 1, 8, 8),
        classifier().float().eval(),
        torch.tensor([0, 1, 2, 0, 1]),
    )
    m = random(5, 8, 8, seed=1)
    metric = quantus.PixelFlipping(
        features_in_step=4, perturb_baseline=0.25, return_auc_per_sample=False, **PLAIN
    )
    theirs = asked(metric, x, m, y=y, model=model, softmax=True)
    ours = deletion(model, x, m, y, steps=16, fill=0.25)
    assert np.allclose(theirs, ours[:, 1:], atol=1e-6)  # it leaves out the whole image


# Definitions


def test_spread_of_known_maps():
    flat, one = torch.ones(1, 4, 5), torch.zeros(1, 4, 5)
    one[0, 1, 2] = -3.0
    m = torch.cat([flat, one, 0 * one])
    nan = math.nan
    assert np.allclose(gini(m), [0, 0.95, nan], equal_nan=True)
    assert np.allclose(entropy(m), [math.log(20), 0, nan], equal_nan=True)
    assert np.allclose(half_area(m), [1, 0.05, nan], equal_nan=True)
    x = random(3, 6, 7)
    differences = (x.flatten(1)[:, None] - x.flatten(1)[:, :, None]).abs().mean((1, 2))
    assert torch.allclose(gini(x), differences / (2 * x.mean((1, 2))))  # the textbook's
    for f in (gini, entropy, half_area):
        assert torch.allclose(f(x), f(7 * x)) and torch.allclose(f(x), f(-x))


def test_correlations_are_those_of_scipy():
    a, b = random(4, 6, 5), random(4, 6, 5, seed=1).mul(8).floor()  # with ties
    for k in range(4):
        pair = a[k].flatten(), b[k].flatten()
        assert abs(correlation(a, b)[k] - stats.spearmanr(*pair).statistic) < 1e-12
        assert (
            abs(correlation(a, b, "pearson")[k] - stats.pearsonr(*pair).statistic) < 1e-12
        )
    assert correlation(a, torch.ones_like(a)).isnan().all()


def test_deletion_and_insertion_pixel_by_pixel():
    model, x, m = classifier().eval(), random(2, 1, 8, 8), random(2, 8, 8, seed=1)
    found = (
        deletion(model, x, m, 2, steps=64, fill=0.5),
        insertion(model, x, m, 2, steps=64, fill=0.5),
    )
    with torch.no_grad():
        for k in range(2):
            gone, back = x[k : k + 1].clone(), torch.full_like(x[k : k + 1], 0.5)
            for step, pixel in enumerate(m[k].flatten().argsort(descending=True).tolist()):
                i, j = divmod(pixel, 8)
                for image, curve in zip((gone, back), found):
                    p = model(image).softmax(1)[0, 2]
                    assert abs(curve[k, step] - p) < 1e-12
                gone[0, 0, i, j], back[0, 0, i, j] = 0.5, x[k, 0, i, j]
    assert torch.allclose(found[0][:, 0], found[1][:, -1])
    assert torch.allclose(deletion(model, x, m, 2, 64, 0.5, batch=7), found[0])
    mean = deletion(model, x, m, 2)
    filled = deletion(model, x, m, 2, fill=x.mean((1, 2, 3), keepdim=True))
    assert mean.shape == (2, 17) and torch.allclose(mean, filled)


def test_the_area_is_that_of_trapezes():
    curves = random(3, 9)
    expected = np.trapezoid(curves.numpy(), dx=1 / 8, axis=1)
    assert np.allclose(area(curves), expected)


# Known evidence


@pytest.fixture(scope="module")
def planted():
    x, y, here, alike = planted_images(60, seed=3)
    return x, y, here, alike, planted_network("place"), planted_network("all")


def test_planted_networks_read_what_they_should(planted):
    x, y, here, alike, reader, counter = planted
    assert torch.equal(reader(x).argmax(1), y) and here.sum((1, 2)).eq(25).all()
    assert (alike & here == here).all() and set(alike.sum((1, 2)).tolist()) <= {
        25,
        50,
        75,
        100,
        125,
    }
    lit = reader[:2](x) > 0
    assert (lit.sum((1, 2, 3)) == 5).all()
    assert torch.equal(lit[torch.arange(60), y].sum((1, 2)) * 25, alike.sum((1, 2)))
    # Covering the evidence changes the answer, covering everything else does not.
    covered = torch.where(here[:, None], 0.1, x)
    assert (reader(covered).softmax(1).gather(1, y[:, None]) == 0.5).all()
    rest = torch.where(here[:, None], x, 0.1)
    assert torch.allclose(reader(rest), reader(x))
    assert (
        counter(rest).gather(1, y[:, None]).sum() < counter(x).gather(1, y[:, None]).sum()
    )


def test_measures_tell_right_from_wrong(planted):
    x, y, here, alike, reader, counter = planted
    for method in ("saliency", "SmoothGrad", "LayerCAM", "input x gradient"):
        m = maps.METHODS[method](reader, x, y)
        assert (mass_in_box(m, here) > 1 - 1e-12).all() and pointing_game(m, here).all()
    cam, chance = maps.gradcam(reader, x, y), random(*here.shape)
    several = alike.sum((1, 2)) > 25
    assert (mass_in_box(cam, here)[several] < 0.6).all()
    assert (mass_in_box(maps.gradcam(counter, x, y), alike) > 1 - 1e-12).all()
    truth, mistaken, blind = (
        area(deletion(reader, x, m, y, fill=0.1)) for m in (here.double(), cam, chance)
    )
    assert (truth <= mistaken + 1e-9).all() and truth.mean() + 0.1 < blind.mean()
    truth, blind = (
        area(insertion(reader, x, m, y, fill=0.1)) for m in (here.double(), chance)
    )
    assert (truth > blind).all()


def test_a_flat_map_scores_the_area_and_ties_are_forgiven():
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, :2] = True
    flat = torch.ones(1, 4, 4)
    assert mass_in_box(flat, masks) == 2 / 16 and pointing_game(flat, masks) == 1
    assert pointing_game(0 * flat, masks).isnan()


def test_digits_lie_in_their_boxes_on_grounds_of_half_contrast():
    grounds = textures(40, seed=9)
    x, y, masks = pasted_digits(40, 1, grounds)
    assert x.min() >= 0 and x.max() <= 1 and set(y.tolist()) == set(range(10))
    outside = ~masks
    assert torch.allclose(x[:, 0][outside], (0.25 + 0.5 * grounds)[:, 0][outside])
    for mask in masks:
        rows, columns = mask.nonzero().T
        assert (
            len(rows) == 256
            and rows.max() - rows.min() == columns.max() - columns.min() == 15
        )
    same = pasted_digits(40, 1, grounds)
    assert all(torch.equal(a, b) for a, b in zip((x, y, masks), same))
    # The same digit looks the same, another does not: nearest neighbour on cut-out boxes.
    x, y, masks = pasted_digits(300, 2)
    cut = x[:, 0][masks].reshape(300, 256)
    distances = torch.cdist(cut, cut).fill_diagonal_(math.inf)
    assert (y[distances.argmin(1)] == y).double().mean() > 0.9


def test_textures_fall_off_as_one_over_f():
    x = textures(400, size=64, seed=1)[:, 0].double()
    assert abs(x.mean() - 0.5) < 0.01 and abs(x.std() - 0.2) < 0.03
    power = torch.fft.fft2(x - x.mean((1, 2), keepdim=True)).abs().pow(2).mean(0)
    low, high = power[0, 2:5].mean(), power[0, 8:20:4].mean()
    assert 8 < low / high < 40  # (12/3)^2 = 16


# Randomisation


def test_layers_are_replaced_from_the_logits_down():
    model, fresh = classifier(0).eval(), classifier(1)
    with torch.no_grad():
        model[1].running_mean.fill_(3.0)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    copies = list(randomised(model, fresh))
    assert [name for name, _ in copies] == ["4", "0"]
    for (_, copy), replaced in zip(copies, (("4.",), ("4.", "0.", "1."))):
        for key, value in copy.state_dict().items():
            expected = fresh if key.startswith(replaced) else model
            assert torch.equal(value, expected.state_dict()[key])
    alone = dict(randomised(model, fresh, independent=True))
    assert torch.equal(alone["0"][4].weight, model[4].weight)
    assert torch.equal(alone["0"][1].running_mean, fresh[1].running_mean)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_tensor_trains_are_replaced_as_a_whole():
    model, fresh = (network("tt", 0.25, size=16, seed=s) for s in (0, 1))
    names, copies = zip(*randomised(model, fresh))
    assert names[:3] == ("head.logits", "head.layer2", "head.layer1")
    assert names[-1] == "features.conv1_1" and len(names) == 9
    assert torch.equal(copies[1].head.layer2.weight(), fresh.head.layer2.weight())
    assert torch.equal(copies[1].head.layer1.weight(), model.head.layer1.weight())
    x = torch.rand(2, 1, 16, 16, generator=generator(2))
    assert torch.allclose(copies[-1].eval()(x), fresh.eval()(x))


def test_randomisation_correlates_with_the_untouched_map(planted):
    x, y, *_, reader, _ = planted
    fresh = planted_network("all")
    with torch.no_grad():
        fresh[0].weight.copy_(random(2, 1, 5, 5) - 0.5)
        fresh[0].bias.zero_()
    methods = {"saliency": maps.saliency, "ground": lambda model, x, y: x[:, 0]}
    found = randomisation(reader, fresh, x[:5], y[:5], methods)
    assert all((c > 1 - 1e-12).all() for c in found["ground"].values())
    copies = dict(randomised(reader, fresh))
    for name, copy in copies.items():
        expected = correlation(
            maps.saliency(reader, x[:5], y[:5]), maps.saliency(copy, x[:5], y[:5])
        )
        assert torch.allclose(found["saliency"][name], expected, equal_nan=True)
    assert found["saliency"]["0"].mean() < 0.9


# The whole


def test_the_report_has_every_measure():
    x, y, masks = pasted_digits(6)
    model = network("matched", 0.25)
    found = report(model, x, y, masks, seed=3)
    assert all(v.shape == (6,) and v.dtype == torch.float64 for v in found.values())
    assert len(found) == 2 + 3 * 7 and len(report(model, x, y)) == 2 + 3 * 5
    smooth = maps.smoothgrad(model, x, y, seed=3)
    assert torch.equal(found["SmoothGrad/gini"], gini(smooth))
    assert torch.equal(found["SmoothGrad/mass in box"], mass_in_box(smooth, masks))
    assert abs(found["random/mass in box"].mean() - 0.25) < 0.03


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda m: gini(m[0]), "maps of shape"),
        (lambda m: correlation(m, m[:1]), "cannot be compared"),
        (lambda m: correlation(m, m, "kendall"), "kendall"),
        (lambda m: pointing_game(m, m), "boolean"),
        (lambda m: mass_in_box(m, m[:, :2] > 0), "masks"),
        (lambda m: deletion(classifier(), m[:, None], m[:, :4]), "maps"),
        (lambda m: deletion(classifier(), m[:, None], m, steps=0), "steps = 0"),
        (lambda m: planted_network("nothing"), "reads"),
        (lambda m: pasted_digits(3, grounds=m[:, None]), "grounds"),
        (
            lambda m: find("tensortrain/evidence").function(1, 4, 4, 1, data=("stars",)),
            "stars",
        ),
    ],
)
def test_bad_input_gets_a_sentence(call, says):
    with pytest.raises(ValueError, match=says) as caught:
        call(random(2, 8, 8))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_quick_profile_gives_sane_numbers():
    found = reproduce("tensortrain/evidence")
    for head in found["heads"]:
        for measure in ("GradCAM/gini", "SmoothGrad/gini", "random/deletion"):
            value = found.tensors[f"textures/{head}/{measure}"]
            assert value.shape == (2,) and (0 < value).all() and (value < 1).all()
        kept = found.tensors[f"textures/{head}/cascading/SmoothGrad"]
        assert kept.shape == (2, len(found[f"layers/{head}"])) and (kept.abs() <= 1).all()
