"""Decoders from the shell: what a run leaves behind, how it survives, and what is refused."""

import csv
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
from physattn.foundations.files import load_tensors, save_tensors
from physattn.foundations.runs import generator
from physattn.tqs.chains import TransverseFieldIsing
from physattn.tqs.decoder import SpinDecoder
from physattn.tqs.observables import observe, renyi_entropy
from physattn.tqs.saliency import saliency
from physattn.tqs.vmc import VMC, exact_energy_of

SMALL = ["-s", "8", "-d", "4", "--samples", "32", "--steps", "10", "--grow", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = CliRunner().invoke(app, ["train-decoder", *SMALL, "--out", str(folder)])
    assert done.exit_code == 0, done.output
    return folder, done.stdout


def test_the_sources_letters_mean_what_they_mean_there(shell, tmp_path):
    words = "-s 4 -d 2 -h 3 -r 1 -w 2500 -e 1 -c 7 --steps 2 --samples 4 --out run"
    code, out, err = shell("train-decoder", *words.split())
    assert code == 0 and "a warm-up of 2500 steps is longer than the 2" in err
    decoder = SpinDecoder.load(tmp_path / "run/decoder")
    assert decoder.config == SpinDecoder.Config(
        4, 1, n_heads=3, n_layers=1, d_mlp=64, clip=7
    )
    assert (decoder.about["seed"], decoder.about["warmup"]) == (1, 2500)


def test_the_weights_are_the_trained_ones_and_know_their_chain(trained):
    folder, said = trained
    decoder = SpinDecoder.load(folder / "decoder")
    chain = TransverseFieldIsing(decoder.config.n_sites)
    options = dict(lr=0.05, shift=1e-5)
    short = SpinDecoder(SpinDecoder.Config(4, 2, d_mlp=64))
    VMC(short, TransverseFieldIsing(4), 32, **options).run(10)
    ours = VMC(short.resize(8), chain, 32, **options)
    run = ours.run(10)
    for a, b in zip(ours.decoder.parameters(), decoder.parameters()):
        assert torch.equal(a, b)
    assert f"energy     {ours.measure().energy}" in said
    assert f"exact {chain.exact_energy():.8g}" in said and "<P>" in said
    about = json.loads((folder / "decoder.json").read_text())["about"]
    assert about == json.loads((folder / "params.json").read_text())
    assert about["hamiltonian"] == "tfim" and about["system_size"] == 8
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert len(rows) == 20 and rows[-1]["n"] == "8"
    assert float(rows[-1]["energy"]) == pytest.approx(run.history["energy"][-1][1])


@pytest.mark.parametrize(
    "words, chain, magnetization",
    [
        ("--hamiltonian mhs --magnetization 0", "mhs", 0),
        ("--hamiltonian hs --phase --optimizer adam --lr 0.5", "hs", None),
        ("--field 0.5 --positions sinusoidal --no-relative", "tfim", None),
    ],
)
def test_other_chains(shell, tmp_path, words, chain, magnetization):
    brief = "-s 6 -d 4 --samples 8 --steps 2 --out run"
    code, out, err = shell("train-decoder", *brief.split(), *words.split())
    assert (code, err) == (0, "") and "exact" in out
    decoder = SpinDecoder.load(tmp_path / "run/decoder")
    assert decoder.about["hamiltonian"] == chain
    assert decoder.config.magnetization == magnetization
    assert decoder.config.phase == ("--phase" in words)
    assert (decoder.config.clip is None) == ("--no-relative" in words)
    exact = {"mhs": -14.4, "hs": -(torch.pi**2) / 6 * (6 + 5 / 6), "tfim": None}[chain]
    if chain == "hs":
        assert f"exact {exact:.8g}" in out
    if chain == "tfim":
        assert f"exact {TransverseFieldIsing(6, g=0.5).exact_energy():.8g}" in out


def killed(folder, kill, when, *words):
    "Start a run in a process of its own, and kill it as soon as a file appears."
    command = [sys.executable, "-m", "physattn", "train-decoder", "--out", str(folder)]
    command += [*words, "--checkpoint-every", "0"]
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=null, stderr=null)
    end = time.monotonic() + 120
    while not (folder / when).exists():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(kill)
    return process.wait()


def test_a_run_killed_twice_ends_with_the_same_bits(shell, trained, tmp_path):
    whole, folder = trained[0], tmp_path / "run"
    assert killed(folder, signal.SIGTERM, "grow-4", *SMALL) == 143
    assert killed(folder, signal.SIGKILL, "grow-8", "--resume") == -signal.SIGKILL
    assert not (folder / "decoder.safetensors").exists()
    code, out, _ = shell("train-decoder", "--out", str(folder), "--resume")
    assert code == 0 and "n = 4" not in out
    for name in ("decoder.safetensors", "decoder.json", "history.csv", "params.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_folder_holds_one_run(shell, trained, tmp_path):
    folder = str(trained[0])
    code, _, err = shell("train-decoder", "--out", folder)
    assert code == 1 and "--resume" in err and "--overwrite" in err
    code, _, err = shell("train-decoder", "--out", folder, "--resume", "-e", "2")
    assert code == 1 and "seed = 2 now and 0 when" in err
    code, out, _ = shell("train-decoder", "--out", folder, "--resume")
    assert code == 0 and out.splitlines()[:3] == trained[1].splitlines()[-4:-1]
    brief = ["-s", "4", "-d", "4", "--samples", "8", "--steps", "2", "--out", "run"]
    assert shell("train-decoder", *brief)[0] == 0
    before = (tmp_path / "run/decoder.safetensors").read_bytes()
    assert shell("train-decoder", *brief, "-e", "3", "--overwrite")[0] == 0
    assert (tmp_path / "run/decoder.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    "words, said",
    [
        ("-d 3", "dictionary = 3 is no power of two"),
        ("-d 1", "dictionary = 1 is no power of two"),
        (
            "-s 10 -d 16",
            "words of 4 spins, which do not divide a chain of 10: give 2, 4, 32",
        ),
        ("-s 20 -d 16 --grow 10", "which do not divide a chain of 10"),
        ("--magnetization 3", "magnetization = 3 does not exist for 20 spins"),
        ("--hamiltonian mhs -s 9 -d 8", "n_sites = 9 is odd"),
        ("--hamiltonian heisenberg", "hamiltonian = 'heisenberg' is unknown"),
        ("--hamiltonian hs --field 2", "leave --field out"),
        ("--field -1", "g = -1.0 is negative"),
        ("--optimizer sgd", "optimizer = 'sgd' is unknown"),
        ("--optimizer adam --shift 1e-3", "leave --shift out"),
        ("--lr 0", "lr = 0 is not positive"),
        ("--positions here", "positions = 'here' is unknown"),
        ("-h 0", "heads = 0"),
        ("-c -1", "clip = -1"),
        ("--steps 1", "steps = 1"),
        ("--samples 1", "samples = 1"),
        ("--grow 40", "grow = '40'"),
        ("--grow ten", "grow = 'ten'"),
        ("--resume", "there is no run in"),
        ("--resume --overwrite", "give one of them"),
    ],
)
def test_a_users_mistake_is_one_sentence(shell, tmp_path, words, said):
    code, out, err = shell("train-decoder", *words.split())
    assert code == 1 and said in err and err.count("\n") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_help_is_not_h(shell):
    assert shell("train-decoder", "-h")[0] == 2
    code, out, _ = shell("train-decoder", "--help")
    assert code == 0 and "--heads" in out


def test_damaged_files_are_refused(shell, trained, tmp_path):
    brief = ["-s", "4", "-d", "4", "--samples", "8", "--steps", "2", "--out", "run"]
    assert shell("train-decoder", *brief)[0] == 0
    for name in ("grow-4", "params.json"):
        file = tmp_path / "run" / name
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        code, _, err = shell("train-decoder", "--out", "run", "--resume")
        assert code == 1 and "damaged" in err and name in err and err.count("\n") == 1
        file.write_bytes(whole)
    assert shell("train-decoder", "--out", "run", "--resume")[0] == 0


def test_observe_says_what_the_library_says(shell, trained, tmp_path):
    folder = str(trained[0])
    words = "--samples 300 --seed 4 --order 3 --region 1:4 --json seen.json".split()
    code, out, err = shell("tqs", "observe", folder, *words)
    assert (code, err) == (0, "")
    decoder, chain = SpinDecoder.load(trained[0] / "decoder"), TransverseFieldIsing(8)
    seen, entropy = (
        observe(decoder, chain, 300, 4),
        renyi_entropy(decoder, 3, 1, 4, 300, 4),
    )
    assert f"energy     {seen.energy}" in out
    assert f"exact {chain.exact_energy():.8g}" in out
    assert f"<P>        {seen.correlations.parity}" in out
    assert f"S_3(1:4)   {entropy}   exact {chain.exact_entropy(1, 4, 3):.6f}" in out
    assert f"{chain.exact_zz()[2, 5]:.6f}" in out and f"{chain.exact_xx()[2, 5]:.6f}" in out
    found = json.loads((tmp_path / "seen.json").read_text())
    assert found["zz"]["value"] == seen.correlations.zz.value.tolist()
    assert found["x"]["error"] == seen.correlations.x.error.tolist()
    assert found["entropy"]["value"] == entropy.value and found["entropy"]["start"] == 1


def test_weights_without_a_chain_are_observed_without_energy(shell, tmp_path):
    SpinDecoder(SpinDecoder.Config(6, 2, phase=True)).save(tmp_path / "weights")
    code, out, _ = shell("tqs", "observe", "weights.safetensors", "--samples", "50")
    assert code == 0 and "energy" not in out and "exact" not in out and "<P>" in out


@pytest.mark.parametrize("method", ["flip", "input", "attention"])
def test_saliency_says_what_the_library_says(shell, trained, tmp_path, method):
    words = ["--method", method, "--samples", "20", "--json", "map.json"]
    code, out, err = shell("tqs", "saliency", str(trained[0]), *words, "--png", "map.png")
    assert (code, err) == (0, "")
    decoder = SpinDecoder.load(trained[0] / "decoder")
    s = decoder.sample(20, generator(0, "saliency"))
    expected = saliency(decoder, s, method).mean(0)
    found = json.loads((tmp_path / "map.json").read_text())
    assert torch.allclose(torch.tensor(found["map"]).to(expected), expected)
    assert f"largest {expected.max():.4g}" in out and "@" in out
    assert out.startswith(f"{method}: from {'spins' if method == 'flip' else 'words'}")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_saliency_of_one_configuration(shell, trained, tmp_path):
    words = "--configuration 00101101 --json map.json".split()
    assert shell("tqs", "saliency", str(trained[0]), *words)[0] == 0
    decoder = SpinDecoder.load(trained[0] / "decoder")
    expected = saliency(decoder, torch.tensor([[0, 0, 1, 0, 1, 1, 0, 1]]))[0]
    found = torch.tensor(json.loads((tmp_path / "map.json").read_text())["map"])
    assert torch.allclose(found.to(expected), expected)


@pytest.mark.parametrize(
    "words, said",
    [
        ("observe nowhere", "there is no file nowhere.safetensors"),
        ("saliency nowhere", "there is no file nowhere.safetensors"),
        ("observe .", "there is no trained decoder in ."),
        ("observe RUN --order 1", "order = 1"),
        ("observe RUN --region 3:9", "sites 3:9"),
        ("observe RUN --region 5:3", "sites 5:3"),
        ("observe RUN --region left", "region = 'left'"),
        ("observe RUN --samples 1", "samples = 1"),
        ("saliency RUN --method shap", "method = 'shap'"),
        ("saliency RUN --samples 0", "n = 0 gives no samples"),
        ("saliency RUN --configuration 0101", "s has 4 spins"),
        ("saliency RUN --configuration 0101010x", "configuration = '0101010x'"),
    ],
)
def test_a_mistake_about_a_run_is_one_sentence(shell, trained, tmp_path, words, said):
    words = [str(trained[0]) if word == "RUN" else word for word in words.split()]
    code, _, err = shell("tqs", *words)
    assert code == 1 and said in err and err.count("\n") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_whole_or_not_theirs(shell, trained, tmp_path):
    whole = (trained[0] / "decoder.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    code, _, err = shell("tqs", "observe", "cut")
    assert code == 1 and "damaged or cut short" in err and err.count("\n") == 1
    (tmp_path / "other.safetensors").write_bytes(whole)
    text = (trained[0] / "decoder.json").read_text()
    (tmp_path / "other.json").write_text(text.replace('"n_heads": 4', '"n_heads": 2'))
    code, _, err = shell("tqs", "saliency", "other")
    assert code == 1 and "describes another model" in err and err.count("\n") == 1
    weights, about = load_tensors(trained[0] / "decoder.safetensors")
    about["config"]["n_heads"] = 2
    save_tensors(tmp_path / "third.safetensors", weights, about)
    code, _, err = shell("tqs", "observe", "third")
    assert code == 1 and "do not fit a SpinDecoder" in err and err.count("\n") == 1


def test_an_unfinished_run_says_how_to_finish(shell, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/params.json").write_text("{}")
    code, _, err = shell("tqs", "observe", "run")
    assert code == 1 and "--resume --out run" in err and err.count("\n") == 1


def vmc_of(seed):
    decoder = SpinDecoder(SpinDecoder.Config(8, 4), seed=4)
    options = dict(samples=64, lr=0.05, shift=1e-4, warmup=5)
    return VMC(decoder, TransverseFieldIsing(8), seed=seed, **options)


def ends(seeds):
    "Energies after short trainings, by full sums."
    vmcs = [vmc_of(seed) for seed in seeds]
    for vmc in vmcs:
        vmc.run(12)
    energies = [exact_energy_of(vmc.decoder, vmc.hamiltonian) for vmc in vmcs]
    return Estimate.from_samples(energies, independent=True)


def starts(seeds):
    "Sampled energies before any step, and the standard errors that the run gives them."
    histories = [vmc_of(seed).run(1).history for seed in seeds]
    return [[h[name][0][1] for h in histories] for name in ("energy", "error")]


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    end = ends(range(4))
    found = {"end": [end.value, end.error], "starts": starts(range(60))}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_result_of_one_within_errors(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    pair = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert pair[0] == pair[1]
    together, alone = Estimate(*pair[0]["end"], 4), ends(range(4, 8))
    start = vmc_of(0)
    exact = exact_energy_of(start.decoder, start.hamiltonian)
    assert alone.value < exact - 0.5 and alone.error < 0.05
    assert abs(together.sigma(alone)) < 4
    # 64 samples, and not 32 of them twice: the energies scatter as their errors say.
    energies, errors = torch.tensor(pair[0]["starts"])
    z = (energies - exact) / errors
    assert abs(z.mean()) < 4 / 60**0.5 and 0.6 < z.square().mean() < 1.5


def test_torchrun(tmp_path):
    words = "-s 8 -d 4 --samples 64 --steps 20 --out run"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        + ["--nproc-per-node", "2", "-m", "physattn", "train-decoder", *words.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("energy     ") == 1 and done.stdout.count("step 20/20") == 1
    decoder = SpinDecoder.load(tmp_path / "run/decoder")
    chain = TransverseFieldIsing(8)
    start = SpinDecoder(decoder.config, seed=0)
    energies = [exact_energy_of(d, chain) for d in (start, decoder)]
    assert energies[1] < energies[0] - 1
    seen = VMC(decoder, chain).measure()
    assert f"energy     {seen.energy}" in done.stdout
    assert abs(seen.energy.sigma(energies[1])) < 4
