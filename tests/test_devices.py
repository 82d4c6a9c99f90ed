"""What moves to a graphics processor: compared with the CPU where there is one, and everywhere on
a pretended device, which computes in main memory and refuses what a real one refuses."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from physattn.foundations.files import load_tensors
from physattn.foundations.runs import generator, process_group, seeded, usable
from physattn.scale import WORKS, peak_bytes
from physattn.tensortrain import networks
from physattn.tensortrain.networks import Network, gratings, network
from physattn.tqs.chains import HaldaneShastry, TransverseFieldIsing
from physattn.tqs.decoder import SpinDecoder
from physattn.tqs.energies import local_energy
from physattn.tqs.vmc import VMC, exact_energy_of, log_derivatives

# --- a pretended device

#: A device that torch knows, whose tensors have no numbers; here they have some.
HERE = "meta"
pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
aten = torch.ops.aten
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default)
CROSSING = (aten._to_copy.default, aten.copy_.default)


class Pretended(torch.Tensor):
    "A tensor that says that it is elsewhere, around one that is not."

    @staticmethod
    def __new__(cls, inner):
        same = dict(strides=inner.stride(), storage_offset=inner.storage_offset())
        same |= dict(dtype=inner.dtype, device=HERE)
        made = cls._make_wrapper_subclass(cls, inner.shape, **same)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return Device.computed(op, args, kwargs or {})

    def tolist(self):
        return self.cpu().tolist()

    def __format__(self, how):
        return format(self.item(), how)


class Generator(torch.Generator):
    "A generator of the CPU, of which is remembered where it should be."

    #: By address: what an operation is given is another object around the same generator.
    places: dict[int, str] = {}

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        cls.places[made._cdata] = torch.device(device).type
        return made

    def turned(self, state):
        "States of different devices do not fit."
        return state.flip(0) if self.places[self._cdata] == HERE else state

    def get_state(self):
        return self.turned(super().get_state())

    def set_state(self, state):
        return super().set_state(self.turned(state))


class Device(TorchDispatchMode):
    "Computes for pretended tensors, as strictly as a graphics processor."

    chance = Generator(HERE)

    @classmethod
    def get_rng_state(cls, device):
        assert torch.device(device).type == HERE
        return cls.chance.get_state()

    @classmethod
    def set_rng_state(cls, state, device):
        assert torch.device(device).type == HERE
        cls.chance.set_state(state)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return self.computed(op, args, kwargs or {})

    @classmethod
    def computed(cls, op, args, kwargs):
        leaves = tree_leaves((args, kwargs))
        away = [t for t in leaves if isinstance(t, Pretended)]
        near = [t for t in leaves if type(t) in (torch.Tensor, torch.nn.Parameter)]
        to = kwargs.get("device")
        there = bool(away) if to is None else torch.device(to).type == HERE
        chances = [g for g in leaves if isinstance(g, torch._C.Generator)]
        if op not in CROSSING:
            own = args[:1] + args[2:] if op in INDEXED else (args, kwargs)
            own = [t for t in near if t.ndim and any(t is x for x in tree_leaves(own))]
            if away and own:
                raise RuntimeError(f"{op}: tensors on two devices")
        place = HERE if there else "cpu"
        if any(Generator.places.get(g._cdata, "cpu") != place for g in chances):
            raise RuntimeError(f"{op}: a generator of another device")
        kwargs = kwargs if to is None else kwargs | {"device": torch.device("cpu")}
        args, kwargs = tree_map_only(Pretended, lambda t: t.inner, (args, kwargs))
        blind = torch.Tag.nondeterministic_seeded in op.tags and not chances
        with cls._own_chance() if there and blind else nullcontext():
            out = op(*args, **kwargs)
        if not there:
            return out
        known = {id(t.inner): t for t in away} | {id(t): t for t in near}
        return tree_map_only(
            torch.Tensor, lambda t: known[id(t)] if id(t) in known else Pretended(t), out
        )

    @classmethod
    @contextmanager
    def _own_chance(cls):
        before = torch.get_rng_state()
        torch.set_rng_state(cls.chance.get_state().flip(0))
        yield
        cls.chance.set_state(torch.get_rng_state().flip(0))
        torch.set_rng_state(before)


@contextmanager
def pretending():
    with pytest.MonkeyPatch.context() as patch, Device():
        autocast = torch.autocast
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch, "get_device_module", lambda device: Device)
        patch.setattr(torch, "autocast", lambda kind, *a, **k: autocast("cpu", *a, **k))
        yield HERE


@pytest.fixture(params=["pretended", "cuda"])
def device(request):
    if request.param == "pretended":
        with pretending():
            yield HERE
    elif torch.cuda.is_available():
        yield "cuda"
    else:
        pytest.skip("there is no CUDA device here")


def test_the_pretended_device_is_strict():
    with pretending():
        x, ours = torch.ones(3, 2, device=HERE), torch.ones(3, 2)
        one = torch.zeros(1, dtype=torch.long)
        for mixed in (
            lambda: x + ours,
            lambda: ours[one.to(HERE)],
            lambda: x.index_add_(0, one, x[:1]),
            lambda: torch.cat([x, ours]),
            lambda: x.normal_(generator=generator(0)),
            lambda: ours.normal_(generator=generator(0, device=HERE)),
            lambda: x.numpy(),
        ):
            with pytest.raises(RuntimeError, match="device|subclass"):
                mixed()
        assert (x[one] + torch.tensor(1.0)).device.type == HERE
        assert (x + 1).sum().item() == 12 and x.tolist() == ours.tolist()
        ours.copy_(2 * x)
        assert torch.equal(ours, 2 * torch.ones(3, 2)) and usable(HERE).type == HERE
    with pytest.raises(ValueError, match="device = 'meta'"):
        usable(HERE)


# --- pieces


def close(theirs, ours):
    assert theirs.device.type != "cpu" and theirs.shape == ours.shape
    return torch.allclose(theirs.detach().cpu(), ours, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, work in WORKS.items() if work.moves])
def test_the_works_that_move(device, name):
    size = {"n": 8, "tokens": 96, "rank": 4}[WORKS[name].size]
    ours, theirs = (WORKS[name].make(size, place)() for place in ("cpu", device))
    # The random numbers of a real device are others.
    assert close(theirs, ours) or (name, device) == ("sampling", "cuda")
    if device == "cuda":
        assert peak_bytes(WORKS[name].make(size, device), device) > 0


def test_chance_has_a_stream_on_each_device(device):
    def drawn(place, seed=3):
        with seeded(seed, "x", device=place):
            return torch.rand(5, device=place).cpu(), torch.rand(5)

    there = torch.get_device_module(device)
    before = there.get_rng_state(device)
    (a, b), (c, d) = drawn(device), drawn(device)
    assert torch.equal(a, c) and torch.equal(b, d) and torch.equal(b, drawn("cpu")[0])
    assert not torch.equal(a, drawn(device, 4)[0])
    assert torch.equal(before, there.get_rng_state(device))


@pytest.mark.parametrize("rank, card", [(0, 0), (1, 1), (2, 0)])
def test_each_process_has_a_card_while_there_are_some(monkeypatch, rank, card):
    chosen = []
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    for place, name, found in (
        (torch.cuda, "is_available", True),
        (torch.cuda, "device_count", 2),
        (dist, "is_torchelastic_launched", True),
        (dist, "init_process_group", None),
        (dist, "get_rank", rank),
        (dist, "destroy_process_group", None),
    ):
        monkeypatch.setattr(place, name, lambda *_, found=found: found)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with process_group() as mine:
        assert mine == rank and chosen == [card]


# --- variational Monte Carlo

CASES = {
    "minsr": (TransverseFieldIsing(6), {}),
    "adam": (TransverseFieldIsing(6, periodic=True), dict(positions="sinusoidal")),
    "minsr, with phases in a sector": (
        HaldaneShastry(6),
        dict(phase=True, magnetization=0),
    ),
}


def decoder(case, device="cpu"):
    chain, options = CASES[case]
    config = SpinDecoder.Config(chain.n_sites, 2, d_mlp=16, **options)
    return SpinDecoder(config, seed=0).to(device)


@pytest.mark.parametrize("case", CASES)
def test_what_a_step_needs_is_the_same(device, case):
    chain, _ = CASES[case]
    ours, theirs = decoder(case), decoder(case, device)
    s = ours.sample(32, generator(0))
    assert close(local_energy(theirs, chain, s.to(device)), local_energy(ours, chain, s))
    assert close(log_derivatives(theirs, s.to(device)), log_derivatives(ours, s))
    exact = exact_energy_of(ours, chain)
    assert abs(exact_energy_of(theirs, chain) - exact) < 1e-4 * abs(exact)
    different, counts = theirs.sample_unique(64, generator(0, device=device))
    assert len(different) == len(counts) and counts.sum().item() == 64


def weights(model):
    return torch.cat([w.detach().cpu().flatten() for w in model.parameters()])


@pytest.mark.parametrize("case", CASES)
def test_a_decoder_is_trained_there_and_resumes(device, case, tmp_path):
    def trained(place=device, path=None, stop=None):
        def leave(run):
            if run.step == stop:
                raise KeyboardInterrupt

        method = case.split(",")[0]
        vmc = VMC(decoder(case, place), CASES[case][0], 16, method, seed=1)
        vmc.run(5, path and tmp_path / path, 0.0, leave)
        return vmc

    whole = trained()
    with pytest.raises(KeyboardInterrupt):
        trained(path="run", stop=3)
    resumed = trained(path="run")
    assert torch.allclose(weights(resumed.decoder), weights(whole.decoder), rtol=1e-3)
    assert resumed.measure(64).energy.n == 64
    if device == HERE:  # whose random numbers are those of the CPU
        ours = trained("cpu")
        assert torch.allclose(weights(whole.decoder), weights(ours.decoder), atol=1e-5)
        assert abs(whole.measure(64).energy.sigma(ours.measure(64).energy)) < 1e-3
    with pytest.raises(ValueError, match="another run .*, on "):
        trained("cpu", "run")


# --- networks for images


@pytest.mark.parametrize("head", ["tt", "dense"])
def test_a_network_is_trained_there_and_resumes(device, head, tmp_path, monkeypatch):
    data, unseen = gratings(48, 16), gratings(24, 16, seed=9)

    def trained(place=device, path=None):
        model = network(head, 0.25, size=16).to(place)
        path = path and tmp_path / path
        run = networks.train(model, *data, 2, 16, test=unseen, path=path)
        return weights(model), [value for _, value in run.history["test_loss"]]

    whole = trained()
    evaluate, seen = networks.evaluate, []

    def once(*given):
        if seen:
            raise KeyboardInterrupt
        return seen.append(given) or evaluate(*given)

    monkeypatch.setattr(networks, "evaluate", once)
    monkeypatch.setattr(networks.Run.__init__, "__defaults__", (None, 0.0, "", "", False))
    with pytest.raises(KeyboardInterrupt):
        trained(path="run")
    monkeypatch.setattr(networks, "evaluate", evaluate)
    resumed = trained(path="run")
    others = [resumed, trained("cpu")] if device == HERE else [resumed]
    for other in others:
        assert torch.allclose(other[0], whole[0], atol=1e-4)
        assert other[1] == pytest.approx(whole[1], rel=1e-3)


# --- the commands

DECODER = "train-decoder -s 6 -d 4 --grow 4 --samples 8 --steps 4 --out run".split()
NETWORK = (
    "tensortrain train net --data gratings --size 16 --width 0.25"
    " --images 32 --test-images 16 --batch 16 --epochs 1"
).split()


def test_a_run_resumes_where_it_began(device, shell, tmp_path, monkeypatch):
    there, fit = ["--device", device], networks.train

    def seen(model, *given, **options):
        assert next(model.parameters()).device.type == device
        return fit(model, *given, **options)

    monkeypatch.setattr(networks, "train", seen)
    assert shell(*DECODER, *there)[0] == 0
    assert load_tensors(tmp_path / "run/grow-6")[1]["of"].endswith(f", on {device}")
    assert shell(*DECODER, "--resume", *there)[0] == 0
    assert SpinDecoder.load(tmp_path / "run/decoder").W_E.device.type == "cpu"
    code, _, err = shell(*DECODER, "--resume", "--device", "cpu")
    assert code == 1 and err.count("\n") == 1
    assert f"device = cpu now and {device} when the run in run began" in err
    assert shell(*NETWORK, *there)[0] == 0
    assert Network.load(tmp_path / "net").about["settings"]["device"] == device
    code, _, err = shell(*NETWORK)
    assert code == 1 and err.count("\n") == 1 and "--overwrite" in err


@pytest.mark.parametrize("words", [DECODER, NETWORK])
@pytest.mark.parametrize("place", ["gpu", "meta", "cuda:99", "cuda:-1", ""])
def test_a_device_that_is_not_there_is_one_sentence(shell, tmp_path, words, place):
    code, _, err = shell(*words, "--device", place)
    assert code == 1 and err.count("\n") == 1 and "Traceback" not in err
    assert f"device = {place!r} is not available here" in err and "use cpu" in err
    assert not list(tmp_path.iterdir())
