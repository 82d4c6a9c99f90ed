"The command line as a user meets it: exit codes, one-sentence errors, no tracebacks."

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import physattn
from physattn.cli import app


def test_the_installed_command():
    done = subprocess.run(
        [sys.executable, "-m", "physattn", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"physattn {physattn.__version__}\n",
        "",
    )


def test_help(shell):
    code, out, _ = shell("--help")
    assert code == 0 and "reproduce" in out and "sho" in out


def test_misspelt_command_is_exit_2(shell):
    code, _, err = shell("reproduse")
    assert code == 2 and "Traceback" not in err


def test_reproduce_without_a_name_is_exit_2(shell):
    code, _, err = shell("reproduce")
    assert code == 2 and "--list" in err


@pytest.mark.parametrize(
    "words, said",
    [
        (["reproduce", "sho/nothing"], "no experiment is called 'sho/nothing'"),
        (["reproduce", "sho/identify", "--profile", "huge"], "profile = 'huge'"),
        (["reproduce", "sho/identify", "--device", "abacus"], "device = 'abacus'"),
        (["sho", "identify", "nowhere"], "there is no file nowhere.safetensors"),
        (["sho", "train", "spring", "--gamma", "-1"], "gamma"),
        (["sho", "train", "spring", "--recipe", "magic"], "recipe"),
        (["sho", "train", "spring", "--integrator", "magic"], "integrator"),
        (["sho", "rollout", "nowhere", "--steps", "0"], "steps = 0"),
    ],
)
def test_a_users_mistake_is_one_sentence(shell, tmp_path, words, said):
    code, out, err = shell(*words)
    assert code == 1 and said in err and err.count("\n") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_cut_checkpoint_is_refused(shell, tmp_path):
    assert shell("sho", "train", "spring")[0] == 0
    whole = (tmp_path / "spring.safetensors").read_bytes()
    (tmp_path / "spring.safetensors").write_bytes(whole[: len(whole) // 2])
    code, _, err = shell("sho", "identify", "spring")
    assert code == 1 and "damaged or cut short" in err and err.count("\n") == 1


def test_an_unwritable_folder_is_named(shell, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = shell("sho", "train", "file/spring")
    assert code == 1 and "could not write" in err and err.count("\n") == 1


def test_every_command_teaches():
    runner = CliRunner()

    def walk(command, words):
        result = runner.invoke(app, [*words, "--help"])
        assert result.exit_code == 0 and len(result.output) > 100, words
        for name, sub in getattr(command, "commands", {}).items():
            walk(sub, [*words, name])

    walk(typer.main.get_command(app), [])


def test_the_list_names_every_experiment_with_a_summary(shell):
    code, out, _ = shell("reproduce", "--list")
    lines = out.splitlines()
    assert code == 0 and {"sho/blog", "sho/identify", "sho/integrators"} <= {
        line.split()[0] for line in lines
    }
    assert all(len(line.split()) > 4 for line in lines if not line.startswith("test/"))


def test_a_quick_run_is_compared_with_the_recorded_one(shell, tmp_path):
    code, out, err = shell("reproduce", "sho/integrators", "--out", "here")
    assert code == 0, err
    assert (tmp_path / "here/sho/integrators.json").exists() and "profile" in out


def test_a_result_far_from_the_record_is_exit_3(shell, tmp_path, monkeypatch):
    from physattn.foundations.estimates import Estimate
    from physattn.foundations.experiments import experiment, record, reproduce

    @experiment("test/drift", quick=dict(value=1.0), full=dict(value=2.0))
    def drift(value):
        "A value that depends on the profile."
        return dict(value=Estimate(value, 0.1, 10))

    monkeypatch.setenv("PHYSATTN_RESULTS", str(tmp_path))
    record(reproduce("test/drift", "full"))
    code, out, err = shell("reproduce", "test/drift")
    assert (
        code == 3 and "recorded 2.00(10), -7.1 sigma" in out and "5 standard errors" in err
    )
    code, out, _ = shell("reproduce", "test/drift", "--profile", "full")
    assert code == 0 and "written to" in out
