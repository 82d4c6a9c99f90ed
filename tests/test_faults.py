"Faults: processes killed at any moment, full disks, closed folders, files cut short or foreign, no network, and files that would like to run."

import ast
import json
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import physattn
from physattn.foundations import experiments as lab
from physattn.foundations.estimates import Estimate
from physattn.foundations.files import load_tensors, save_tensors
from physattn.foundations.runs import Run
from physattn.slmc.effective import Effective
from physattn.slmc.lattice import DoubleExchange
from physattn.slmc.training import dataset, fit, self_learn
from physattn.tqs.chains import TransverseFieldIsing
from physattn.tqs.decoder import SpinDecoder
from physattn.tqs.vmc import VMC

# --- a server of commands: it imports once, and each command is a process of its own

KITCHEN = """
import json, os, resource, signal, sys
from dataclasses import replace
from physattn import cli
import physattn.slmc.sampling, physattn.slmc.training, physattn.tqs.vmc
from physattn.foundations.runs import Run
from physattn.sho import one_token
if sys.argv[1:] == ["small"]:
    path, every, *others = Run.__init__.__defaults__
    Run.__init__.__defaults__ = (path, 0.0, *others)
    adamw = one_token.RECIPES["adamw"]
    one_token.RECIPES["adamw"] = replace(adamw, steps=40)
for line in sys.stdin:
    folder, words, most = json.loads(line)
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.chdir(folder)
            for stream, name in enumerate((os.devnull, "out.txt", "err.txt")):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), stream)
            if most:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            sys.argv = ["physattn", *words]
            try:
                cli.main()
                code = 0
            except SystemExit as end:
                code = end.code or 0
            sys.stdout.flush(), sys.stderr.flush()
        finally:
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Kitchen:
    def __init__(self, *words):
        command = [sys.executable, "-c", KITCHEN, *words]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(command, **pipes)

    def run(self, folder, words, kill=None, most=0):
        """The exit code and what was said on stderr; `kill` is when and a signal: seconds, or a
        file that has appeared."""
        self.process.stdin.write(json.dumps([str(folder), words, most]) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        if kill is not None:
            when, how = kill
            end = time.monotonic() + (300 if isinstance(when, Path) else when)
            while time.monotonic() < end and not (isinstance(when, Path) and when.exists()):
                time.sleep(0.002)
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                pass
        code = int(self.process.stdout.readline())
        return code, (Path(folder) / "err.txt").read_text()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="module")
def kitchen():
    kitchen = Kitchen("small")
    yield kitchen
    kitchen.close()


@pytest.fixture(scope="module")
def model(kitchen, tmp_path_factory):
    "A trained effective model, for what samples with one."
    folder = tmp_path_factory.mktemp("model")
    words = "slmc train -L 2 -T 0.5 --samples 64 --chains 8 --tries 1 --out model".split()
    assert kitchen.run(folder, words)[0] == 0
    return folder / "model"


def one_sentence(code, err, *said):
    assert code == 1 and "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("physattn: ")]
    assert len(lines) == 1 and err.endswith(lines[0] + "\n"), err
    assert all(word in lines[0] for word in said), err


# --- killed at a random moment

DECODER = "train-decoder -d 4 --grow 4 --checkpoint-every 0 --out run".split()
SAMPLE = "slmc sample MODEL --out run --checkpoint-every 0 --seed 5".split()
TRAIN = "slmc train -L 2 --chains 8 --checkpoint-every 0 --out run".split()
TRAINED = ("run/model.safetensors", "run/linear.safetensors", "run/quality.json")

#: By name: the command, the sizes of the fast and of the slow test, the file whose presence
#: asks for `--resume`, and what it leaves.
COMMANDS = {
    "train-decoder": (
        DECODER,
        "-s 6 --samples 16 --steps 12",
        "-s 8 --samples 64 --steps 40",
        "run/params.json",
        ("run/decoder.safetensors", "run/decoder.json", "run/history.csv"),
    ),
    "slmc sample": (
        SAMPLE,
        "--steps 60 --chains 8",
        "--steps 600 --chains 16",
        "run/params.json",
        ("run/observables.json",),
    ),
    "slmc train": (
        [*TRAIN, *"-T 0.5 -b ca".split()],
        "--samples 64 --tries 1",
        "--samples 512 --tries 3",
        "run/params.json",
        TRAINED,
    ),
    "slmc train, adamw": (
        [*TRAIN, *"-T 0.5 --method adamw".split()],
        None,
        "--samples 256 --tries 1",
        "run/params.json",
        TRAINED,
    ),
    "slmc train, by cooling": (
        [*TRAIN, *"-T 0.2 --self-learn".split()],
        "--samples 64",
        "--samples 512 -b ca",
        "run/params.json",
        TRAINED,
    ),
    "sho train": (
        "sho train run/spring --gamma 0.1 --recipe adamw".split(),
        "",
        "",
        None,
        ("run/spring.safetensors", "run/spring.json"),
    ),
    "tensortrain train": (
        "tensortrain train run/net --data gratings --size 16 --width 0.25".split(),
        "--images 80 --test-images 20 --batch 40 --epochs 3",
        "--images 400 --test-images 40 --batch 40 --epochs 12",
        None,
        ("run/net.safetensors", "run/net.json"),
    ),
    "reproduce": (
        "reproduce tqs/hundred --out out".split(),
        None,
        "",
        None,
        ("out/tqs/hundred.json", "out/tqs/hundred.safetensors"),
    ),
}


def timeless(thing):
    "What a result says, less how long it took."
    if not isinstance(thing, dict):
        return thing
    clocks = ("seconds", "cpu", "curve_cpu")
    return {key: timeless(value) for key, value in thing.items() if key not in clocks}


def bits(path):
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.suffix != ".safetensors":
        return path.read_bytes()
    tensors, about = load_tensors(path)
    return {k: t.numpy().tobytes() for k, t in tensors.items()}, about


def killed_and_resumed(kitchen, name, size, model, folder, kills):
    "How many kills met a running process, after asserting that the results are the same bits."
    words, small, large, begun, files = COMMANDS[name]
    words = [w.replace("MODEL", str(model)) for w in words]
    words += {"small": small, "large": large}[size].split()
    (folder / "whole").mkdir(), (folder / "killed").mkdir()
    start = time.monotonic()
    code, err = kitchen.run(folder / "whole", words)
    assert code == 0, err
    took, rng, met = time.monotonic() - start, random.Random(name), 0
    for _ in range(kills):
        again = begun is not None and (folder / "killed" / begun).exists()
        # Later ones would find a run that is done: what was computed before is kept.
        when = rng.uniform(0, 2 * took / kills)
        moment = when, rng.choice([signal.SIGKILL, signal.SIGTERM])
        kill = words + ["--resume"] * again
        code, err = kitchen.run(folder / "killed", kill, moment)
        assert code in (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM), err
        met += code != 0
    again = begun is not None and (folder / "killed" / begun).exists()
    code, err = kitchen.run(folder / "killed", words + ["--resume"] * again)
    assert code == 0, err
    for file in files:
        assert bits(folder / "killed" / file) == bits(folder / "whole" / file), file
    return met


@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if COMMANDS[name][1] is not None]
)
def test_killed_twice_it_ends_with_the_same_bits(kitchen, model, tmp_path, name):
    killed_and_resumed(kitchen, name, "small", model, tmp_path, 2)


@pytest.mark.slow  # twenty kills of each long command: minutes
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_twenty_times_it_ends_with_the_same_bits(model, tmp_path, name):
    kitchen = Kitchen()
    try:
        met = killed_and_resumed(kitchen, name, "large", model, tmp_path, 20)
    finally:
        kitchen.close()
    print(f"{name}: {met} of 20 kills met a running process")
    assert met >= 10


def weights(model):
    return torch.cat([w.detach().flatten() for w in model.parameters()])


def chains_kept(path):
    given = dict(chains=4, thermalize=3, sweeps=2, path=path, every=0.0)
    return dataset(DoubleExchange(2, T=0.5), 12, **given)


def fitted(path):
    model = Effective(Effective.Config(2, "c"), seed=1)
    S, action = dataset(DoubleExchange(2, T=0.5), 64, chains=8)
    run = fit(model, S, action, path=path, every=0.0, tolerance=1e-9)
    return weights(model), torch.tensor([mse for _, mse in run.history["mse"]])


def fitted_by_adamw(path):
    model = Effective(Effective.Config(2, "c"), seed=1)
    S, action = dataset(DoubleExchange(2, T=0.5), 64, chains=8)
    fit(model, S, action, "adamw", steps=12, path=path, every=0.0, batch=16)
    return (weights(model),)


def cooled(path):
    start, system = Effective(Effective.Config(2, "c"), seed=1), DoubleExchange(2, T=0.2)
    given = dict(n=32, chains=8, thermalize=2, path=path, every=0.0)
    model, S, history = self_learn(system, start, **given)
    history.append({"T": 0.0, **model.about["trained"]})
    return weights(model), S, torch.tensor([[h["T"], h["mse"]] for h in history])


@pytest.mark.parametrize("part", [chains_kept, fitted, fitted_by_adamw, cooled])
def test_interrupted_after_each_step_it_ends_with_the_same_bits(
    part, tmp_path, monkeypatch
):
    save, steps, ends = Run.save, 0, None

    def save_and_leave(run):
        save(run)
        raise KeyboardInterrupt

    whole = part(None)
    monkeypatch.setattr(Run, "save", save_and_leave)
    while ends is None:
        try:
            ends = part(tmp_path / "run")
        except KeyboardInterrupt:
            steps += 1
    assert steps > 3 and all(torch.equal(a, b) for a, b in zip(whole, ends))


# --- a full disk: no file may grow beyond some bytes


@pytest.mark.parametrize(
    "words, kept",
    [
        ("train-decoder -s 6 -d 4 --samples 8 --steps 2000 --out run", "run/grow-6"),
        ("slmc sample MODEL --steps 20000 --chains 8 --out run", "run/checkpoint"),
        ("slmc train -L 2 --samples 80000 --chains 8 --out run", "run/checkpoint-data"),
        ("sho train run/spring --recipe cosine", "run/spring.checkpoint.safetensors"),
    ],
)
def test_a_full_disk_keeps_the_last_checkpoint(kitchen, model, tmp_path, words, kept):
    words = words.replace("MODEL", str(model)).split()
    flag = [] if words[0] == "sho" else ["--resume"]
    now = [] if words[0] == "sho" else ["--checkpoint-every", "0"]
    assert kitchen.run(tmp_path, words + now, (tmp_path / kept, signal.SIGTERM))[0] == 143
    step = load_tensors(tmp_path / kept)[1]["step"]
    code, err = kitchen.run(tmp_path, words + flag + now, most=4500)
    one_sentence(code, err, "could not write", kept, "free space", "untouched")
    assert load_tensors(tmp_path / kept)[1]["step"] == step
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    "words",
    [
        "train-decoder -s 6 -d 4 --out run",
        "slmc train --out run",
        "slmc sample MODEL --out run",
        "sho train run/spring",
        "reproduce tqs/ising --out run",
        "norms minilm --json run/report.json",
    ],
)
def test_a_disk_that_is_full_before_the_work_is_said_at_once(
    kitchen, model, tmp_path, words
):
    "Each of these would take minutes."
    words = words.replace("MODEL", str(model)).split()
    code, err = kitchen.run(tmp_path, words, most=1000)
    one_sentence(code, err, "could not write", "run", "free space")
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.parent != tmp_path]


def test_a_full_disk_leaves_the_old_result_whole(tmp_path, monkeypatch):
    def result(x):
        about = {"profile": "full", "seed": 0}
        tensors = {"w": torch.full((3,), x)}
        return lab.Result("part/name", {"x": Estimate(x, 0.1, 9)}, about, tensors)

    lab.record(result(1.0), tmp_path)
    writes, sync = [], os.fsync

    def full(fd):
        writes.append(fd)
        if len(writes) == 2:
            raise OSError(28, "No space left on device")
        sync(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*untouched"):
        lab.record(result(2.0), tmp_path)
    back = lab.recall("part/name", tmp_path)
    assert back["x"].value == 1 and back.tensors["w"].tolist() == [1, 1, 1]
    assert not list(tmp_path.rglob("*.part"))


# --- a folder that cannot be written


@pytest.mark.parametrize(
    "words",
    [
        "train-decoder -s 6 -d 4 --out file/run",
        "slmc train --out file/run",
        "slmc sample MODEL --out file/run",
        "sho train file/spring",
        "reproduce tqs/ising --out file/out",
        "reproduce tqs/ising --runs file/runs",
        "norms minilm --json file/report.json",
    ],
)
def test_a_folder_that_cannot_be_written_is_said_at_once(shell, model, tmp_path, words):
    (tmp_path / "file").write_text("precious")
    code, _, err = shell(*words.replace("MODEL", str(model)).split())
    one_sentence(code, err, "could not write", "file/")
    assert (tmp_path / "file").read_text() == "precious"


# --- files cut short, of another version, or of another model


@pytest.fixture
def decoder(shell, tmp_path):
    words = "train-decoder -s 4 -d 4 --samples 8 --steps 4 --out run".split()
    assert shell(*words)[0] == 0
    return [*words, "--resume"]


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", ["grow-4", "params.json"])
def test_a_cut_run_is_refused(shell, decoder, tmp_path, name, part):
    file = tmp_path / "run" / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    code, _, err = shell(*decoder)
    one_sentence(code, err, str(Path("run", name)), "damaged")


@pytest.mark.parametrize("name", ["decoder.safetensors", "decoder.json"])
def test_a_cut_model_is_refused(shell, decoder, tmp_path, name):
    file = tmp_path / "run" / name
    file.write_bytes(file.read_bytes()[:99])
    code, _, err = shell("tqs", "observe", "run")
    one_sentence(code, err, f"run/{name}", "damaged or cut short")


def test_a_cut_result_of_a_run_is_refused(shell, model, tmp_path):
    words = f"slmc sample {model} --steps 12 --warmup 4 --chains 4 --out run".split()
    assert shell(*words)[0] == 0
    for name, *again in (("observables.json", "slmc", "observe", "run"),):
        file = tmp_path / "run" / name
        file.write_bytes(file.read_bytes()[:-40])
        code, _, err = shell(*again)
        one_sentence(code, err, f"run/{name}", "damaged")
    for cut in (b"", b"[]", b"\xff\xfe", b'{"steps": 12}'):
        (tmp_path / "run/params.json").write_bytes(cut)
        code, _, err = shell(*words, "--resume")
        one_sentence(code, err, "run/params.json", "--overwrite")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"values": 3}'])
def test_a_broken_record_is_refused(shell, monkeypatch, tmp_path, content):
    monkeypatch.setenv("PHYSATTN_RESULTS", str(tmp_path))
    (tmp_path / "sho").mkdir()
    (tmp_path / "sho/integrators.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"sho/integrators.json is damaged .*reproduce"):
        lab.recall("sho/integrators")
    (tmp_path / "report.json").write_bytes(content)
    code, _, err = shell("quantum", "resources", "report.json")
    one_sentence(code, err, "report.json is no report of norms")


def test_a_checkpoint_of_another_version_or_run_is_refused(shell, decoder, tmp_path):
    file = tmp_path / "run/grow-4"
    good = file.read_bytes()
    tensors, about = load_tensors(file)
    for change, said in [
        ({"checkpoint": 0}, "not a checkpoint of this version"),
        ({"total": 5}, "another run"),
        ({"of": "something else"}, "another run (4 steps of something else)"),
    ]:
        save_tensors(file, tensors, about | change)
        changed = file.read_bytes()
        code, _, err = shell(*decoder)
        one_sentence(code, err, "run/grow-4", said, "delete it")
        assert file.read_bytes() == changed
    save_tensors(file, {"w": torch.zeros(2)})
    one_sentence(*shell(*decoder)[::2], "run/grow-4", "not a checkpoint of this version")
    file.write_bytes(good)
    assert shell(*decoder)[0] == 0
    (tmp_path / "run/params.json").write_text('{"system_size": 4}')
    one_sentence(*shell(*decoder)[::2], "run/params.json", "another version")


def test_no_run_goes_on_from_the_checkpoint_of_another(tmp_path):
    "The same shapes, the same number of steps, and another Hamiltonian, optimiser or seed."

    def vmc(g=1.0, seed=0, **options):
        decoder = SpinDecoder(SpinDecoder.Config(4, 2), seed=0)
        return VMC(decoder, TransverseFieldIsing(4, g=g), 8, seed=seed, **options)

    path = tmp_path / "run"
    vmc().run(3, path)
    vmc().run(3, path)
    for other in (vmc(g=2.0), vmc(seed=1), vmc(lr=0.3)):
        with pytest.raises(ValueError, match="another run"):
            other.run(3, path)


def test_no_oscillator_goes_on_from_the_checkpoint_of_another(kitchen, tmp_path):
    words = "sho train spring --recipe adamw --omega0 2".split()
    begun = tmp_path / "spring.checkpoint.safetensors", signal.SIGKILL
    assert kitchen.run(tmp_path, words, begun)[0] == -signal.SIGKILL
    for other in ("--omega0 3", "--energy 2", "--seed 1", "--integrator leapfrog"):
        code, err = kitchen.run(tmp_path, words + other.split())
        one_sentence(code, err, "spring.checkpoint.safetensors", "another run")
    assert kitchen.run(tmp_path, words)[0] == 0


def test_checkpoints_of_another_profile_or_version_are_refused(tmp_path, monkeypatch):
    @lab.experiment("test/claimed", quick=dict(n=1), full=dict(n=2))
    def claimed(n, *, seed=0, folder=None):
        return dict(n=n)

    lab.reproduce("test/claimed", folder=tmp_path)
    lab.reproduce("test/claimed", folder=tmp_path)
    with pytest.raises(ValueError, match="another run .*'n': 1.* delete it"):
        lab.reproduce("test/claimed", "full", folder=tmp_path)
    monkeypatch.setattr(physattn, "__version__", "99")
    with pytest.raises(ValueError, match="another run .*delete it"):
        lab.reproduce("test/claimed", folder=tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json is damaged"):
        lab.reproduce("test/claimed", folder=tmp_path)


def test_cut_images_are_refused(tmp_path, monkeypatch):
    from physattn.tensortrain import networks

    path = tmp_path / "cifar10_jpeg_q75.npz"
    zeros = np.zeros(3, np.uint8)
    np.savez(path, data=zeros, offsets=zeros, labels=zeros, test=zeros)
    whole = path.read_bytes()
    for content in (b"", b"\x80\x04", whole[: len(whole) // 2], whole[:-4]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cifar10_jpeg_q75.npz is damaged"):
            networks._grey(str(tmp_path))


# --- no network


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError(101, "Network is unreachable")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PHYSATTN_DATA", raising=False)


def test_images_that_cannot_be_downloaded(offline):
    pytest.importorskip("pooch")
    from physattn.tensortrain import networks

    with pytest.raises(FileNotFoundError, match="CIFAR-10 cannot be had .*PHYSATTN_DATA"):
        networks._download()


def test_a_model_that_cannot_be_downloaded(offline, shell):
    pytest.importorskip("transformers")
    code, _, err = shell("norms", "nobody/has-this-model", "--random")
    assert code == 1 and "Traceback" not in err
    assert "could not be had from the hub: use 'minilm', which works offline" in err


# --- no library


def test_a_missing_library_is_named_with_its_extra(shell, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, _, err = shell("norms", "minilm", "--random")
    one_sentence(code, err, "pip install physattn[hub]")


# --- no file that is read can run anything


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_by_whatever_reads(shell, tmp_path, protocol):
    from physattn.tensortrain import networks

    boom, bomb = tmp_path / "boom", pickle.dumps(Bomb(tmp_path / "boom"), protocol)
    names = ["m.safetensors", "run.json", "part/name.json", "part/name.safetensors"]
    for name in (*names, "cifar10_jpeg_q75.npz", "report.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bomb)
    reads = [
        lambda: load_tensors(tmp_path / "m.safetensors"),
        lambda: SpinDecoder.load(tmp_path / "m"),
        lambda: list(Run(1, {}, tmp_path / "m.safetensors")),
        lambda: lab.recall("part/name", tmp_path),
        lambda: lab.reproduce("tqs/hundred", folder=tmp_path),
        lambda: networks._grey(str(tmp_path)),
    ]
    for read in reads:
        with pytest.raises(ValueError, match="damaged"):
            read()
    one_sentence(*shell("quantum", "resources", "report.json")[::2], "no report")
    assert not boom.exists()
    pickle.loads(bomb)
    assert boom.exists(), "the bomb was none"


def test_an_array_of_objects_is_refused(tmp_path):
    from physattn.tensortrain import networks

    bomb = np.array([Bomb(tmp_path / "boom")], dtype=object)
    rest = dict.fromkeys(("offsets", "labels", "test"), np.zeros(2, np.uint8))
    np.savez(tmp_path / "cifar10_jpeg_q75.npz", data=bomb, **rest)
    with pytest.raises(ValueError, match="damaged .*allow_pickle=False"):
        networks._grey(str(tmp_path))
    assert not (tmp_path / "boom").exists()


#: Calls that can run what a file holds, by the name they are called by.
DANGEROUS = {
    *("eval", "exec", "compile", "__import__", "execfile"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "yaml.load", "runpy.run_path"),
    *("keras.models.load_model", "load_model", "read_pickle", "shelve.open", "os.system"),
}


def dangers(tree):
    "What in a module could read a pickle or run the content of a file."
    unsafe = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for name in [module, *(alias.name for alias in node.names)]:
                if name.split(".")[0] in unsafe:
                    yield node, name
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in DANGEROUS or name.endswith(".read_pickle"):
            yield node, name
        if (
            options.get("allow_pickle", "False") != "False"
            or "trust_remote_code" in options
        ):
            yield node, name
        if name.endswith("np.load") and options.get("allow_pickle") != "False":
            yield node, name
        weights = name.endswith(".from_pretrained") and "Tokenizer" not in name
        if weights and options.get("use_safetensors") != "True":
            yield node, name
        if options.get("shell", "False") != "False":
            yield node, name


def test_no_module_reads_what_could_run():
    root = Path(physattn.__file__).parent
    files = sorted(root.rglob("*.py"))
    assert len(files) > 40
    for file in files:
        found = [(n.lineno, what) for n, what in dangers(ast.parse(file.read_text()))]
        assert not found, (file, found)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(path.read_text())",
        "AutoModel.from_pretrained(place)",
        "load_dataset(place, trust_remote_code=True)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_for_what_could_run_finds_it(line):
    assert list(dangers(ast.parse(line)))
    assert not list(dangers(ast.parse("model.eval()\nnp.load(p, allow_pickle=False)")))
