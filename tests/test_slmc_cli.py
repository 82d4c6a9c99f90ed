"""Self-learning Monte Carlo from the shell: what it leaves behind, how it survives, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from physattn.cli import app
from physattn.foundations.estimates import Estimate
from physattn.slmc.acceptance import predicted_acceptance
from physattn.slmc.effective import Effective
from physattn.slmc.lattice import DoubleExchange
from physattn.slmc.sampling import SLMC
from physattn.slmc.training import dataset, residuals

SMALL = "-L 4 -T 0.1 --mu 0.3 --samples 256 --chains 16 --tries 1 -e 3".split()
BRIEF = "--steps 16 --warmup 4 --chains 8 --sweeps 2 --repeats 2 -e 5".split()


@pytest.fixture
def shell(shell):
    return lambda *words: shell("slmc", *map(str, words))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slmc") / "model"
    words = ["slmc", "train", *SMALL, "-b", "c", "--out", str(folder)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return folder, done.stdout


@pytest.fixture(scope="module")
def sampled(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slmc") / "run"
    words = ["slmc", "sample", str(trained[0]), *BRIEF, "--out", str(folder)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return folder, done.stdout


def numbers(path):
    found = json.loads(path.read_text())
    return {name: Estimate(e["value"], e["error"], e["n"]) for name, e in found.items()}


def test_training_writes_models_that_know_their_system(trained):
    folder, said = trained
    linear, network = (Effective.load(folder / name) for name in ("linear", "model"))
    assert (linear.config.blocks, network.config.blocks) == ("", "c")
    for model in (linear, network):
        about = model.about["trained"]
        assert [about[k] for k in ("L", "t", "J", "mu", "T")] == [4, 1, 1, 0.3, 0.1]
    # What it claims holds on chains that the command never saw.
    S, action = dataset(DoubleExchange(4, mu=0.3, T=0.1), 512, seed=77, chains=32)
    quality = json.loads((folder / "quality.json").read_text())
    for name, model in dict(linear=linear, model=network).items():
        seen = predicted_acceptance(residuals(model, S, action).view(32, -1).numpy())
        claimed = Estimate(**quality[name]["predicted acceptance"])
        assert abs(claimed.sigma(seen)) < 4 and claimed.error < 0.03
        assert str(claimed) in said
    assert quality["model"]["mse"]["value"] < quality["linear"]["mse"]["value"]


def test_the_networks_and_methods_that_are_asked_for(shell, tmp_path):
    brief = "-L 2 -T 0.5 --samples 64 --chains 8 --tries 1".split()
    for i, (blocks, *words) in enumerate(
        [("a", "--method", "adamw"), ("cv", "-n", "1"), ("", "--self-learn")]
    ):
        code, _, err = shell("train", *brief, "-b", blocks, *words, "--out", f"m{i}")
        assert (code, err) == (0, "")
        model = Effective.load(tmp_path / f"m{i}/model")
        assert model.config.blocks == blocks
        assert len(model.config.shells) == (2 if blocks == "cv" else 3)
    assert shell("train", *brief, "-b", "c", "--self-learn", "--out", "m3")[0] == 0
    assert model.about["trained"]["T"] == 0.5


def test_sampling_is_the_librarys(trained, sampled):
    folder, said = sampled
    stages = [Effective.load(trained[0] / name) for name in ("linear", "model")]
    ours = SLMC(DoubleExchange(4, mu=0.3, T=0.1), stages, 8, sweeps=2, repeats=2, seed=5)
    ours.run(16, warmup=4)
    found = numbers(folder / "observables.json")
    assert found == {name: ours.estimate(name) for name in ours.series}
    assert f"exact {ours.acceptances[-1]}" in said and str(ours.estimate("mQ2")) in said


def test_the_linear_model_alone(shell, trained, tmp_path):
    words = [*BRIEF, "--no-network", "--out", "run"]
    assert shell("sample", str(trained[0]), *words)[0] == 0
    assert "acceptance 1" not in numbers(tmp_path / "run/observables.json")


def test_a_killed_run_goes_on_to_the_same_bits(shell, trained, sampled, tmp_path):
    words = ["sample", str(trained[0]), *BRIEF, "--out", "run", "--checkpoint-every", "0"]
    null = subprocess.DEVNULL
    command = [sys.executable, "-m", "physattn", "slmc", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=null, stderr=null)
    end = time.monotonic() + 120
    while not (tmp_path / "run/checkpoint").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    code, _, err = shell("observe", "run")
    assert code == 1 and "is not finished" in err and "--resume" in err
    checkpoint = tmp_path / "run/checkpoint"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    code, _, err = shell("sample", str(trained[0]), "--resume", "--out", "run")
    assert code == 1 and "damaged" in err and err.count("\n") == 1
    checkpoint.write_bytes(whole)
    assert shell("sample", str(trained[0]), "--resume", "--out", "run")[0] == 0
    ours, whole = (f / "observables.json" for f in (tmp_path / "run", sampled[0]))
    assert ours.read_text() == whole.read_text()


def test_observing_a_model_and_a_run(shell, trained, sampled, tmp_path):
    brief = "--samples 256 --chains 16 -e 9 --json seen.json".split()
    code, out, err = shell("observe", str(trained[0]), *brief)
    assert (
        (code, err) == (0, "") and "predicted acceptance" in out and "run" not in out[60:]
    )
    code, out, err = shell("observe", str(sampled[0]), *brief)
    assert (code, err) == (0, "") and "sigma" in out and "measured" in out
    seen = json.loads((tmp_path / "seen.json").read_text())
    S, action = dataset(DoubleExchange(4, mu=0.3, T=0.1), 512, seed=78, chains=32)
    action = Estimate.from_samples(action.view(32, -1).numpy())
    assert abs(action.sigma(Estimate(**seen["exact"]["action"]))) < 4
    run = numbers(sampled[0] / "observables.json")
    assert seen["run"]["mQ2"]["value"] == run["mQ2"].value
    assert abs(run["mQ2"].sigma(Estimate(**seen["exact"]["mQ2"]))) < 5


def test_folders_are_not_overwritten_by_accident(shell, trained, sampled, tmp_path):
    before = {
        file: file.read_bytes() for f in (trained, sampled) for file in f[0].iterdir()
    }
    code, _, err = shell("train", *SMALL, "--out", str(trained[0]))
    assert code == 1 and "--overwrite" in err and err.count("\n") == 1
    code, _, err = shell("sample", str(trained[0]), *BRIEF, "--out", str(sampled[0]))
    assert code == 1 and "--resume" in err and err.count("\n") == 1
    assert all(file.read_bytes() == content for file, content in before.items())
    for again in ([], ["--overwrite"]):
        words = "-L 2 -T 1 --samples 32 --chains 4 -b".split()
        assert shell("train", *words, "", "--out", "run", *again)[0] == 0


@pytest.mark.parametrize(
    "words, said",
    [
        ("train -b ax", "blocks = 'ax'"),
        ("train -n 99", "shells = 99"),
        ("train -T 0", "T = 0"),
        ("train -L 1", "L = 1"),
        ("train --method sgd", "method = 'sgd'"),
        ("train --method sgd --self-learn", "method = 'sgd'"),
        ("train --samples 0", "samples = 0"),
        ("train --chains 0", "chains = 0"),
        ("train --tries 0", "tries = 0"),
        ("train --seed -1", "seed = -1"),
        ("train -L 2 --samples 2 --chains 1", "do not determine"),
        ("sample nowhere", "there is no trained model in"),
        ("sample MODEL --chains 0 --out run", "chains = 0"),
        ("sample MODEL --sweeps 0 --out run", "sweeps = 0"),
        ("sample MODEL --steps 4 --out run", "steps = 4"),
        ("sample MODEL --resume --out run", "there is no run in run"),
        ("sample MODEL --resume --overwrite", "give one of them"),
        ("sample MODEL --resume --chains 4 --out RUN", "chains = 4 now and 8"),
        ("observe nowhere", "no model and no run in nowhere"),
        ("observe MODEL --samples 0", "samples = 0"),
    ],
)
def test_a_mistake_is_one_sentence(shell, trained, sampled, tmp_path, words, said):
    names = {"MODEL": str(trained[0]), "RUN": str(sampled[0])}
    code, _, err = shell(*(names.get(word, word) for word in words.split()))
    assert code == 1 and said in err and err.count("\n") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_what_is_damaged_or_changed_is_refused(shell, trained, sampled, tmp_path):
    for name in ("params.json", "model.safetensors", "model.json"):
        here = tmp_path / name
        here.mkdir()
        for file in trained[0].iterdir():
            data = file.read_bytes()
            (here / file.name).write_bytes(
                data[: len(data) // 2 if file.name == name else None]
            )
        code, _, err = shell("observe", str(here))
        assert code == 1 and err.count("\n") == 1 and "Traceback" not in err, err
    code, _, err = shell("sample", "--help-me")
    assert code == 2


def test_torchrun_divides_the_chains(trained, sampled, tmp_path):
    words = ["slmc", "sample", str(trained[0]), *BRIEF, "--out", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        + ["--nproc-per-node", "2", "-m", "physattn", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to run") == 1
    pair, alone = (numbers(f / "observables.json") for f in (tmp_path / "run", sampled[0]))
    assert pair.keys() == alone.keys() and pair["mQ2"].n == alone["mQ2"].n
    assert abs(pair["action"].sigma(alone["action"])) < 4
    assert torch.isfinite(torch.tensor(pair["residual"].value))
