"""The figure that plays has the costs of the library and the numbers of the results; the commands read and refuse what they should."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from physattn.cli import app
from physattn.foundations.experiments import recall
from physattn.quantum.resources import designed_cost

PLAYER = Path(__file__).parents[1] / "book/_static/quantum.js"


def player(code):
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    code = (
        f"require({json.dumps(str(PLAYER))}); const q = globalThis.physattnQuantum; {code}"
    )
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_costs_in_the_page_are_those_of_the_library():
    cases = [
        (norm, temperature, length, 12, eps)
        for norm in (0.4, 1.0, 2.5)
        for temperature in (0.3, 3.0, 30.0)
        for length in (4, 62)
        for eps in (3e-2, 1e-3, 1e-5)
    ]
    shown = player(
        f"console.log(JSON.stringify({json.dumps(cases)}.map(c => q.cost(...c))))"
    )
    for case, found in zip(cases, shown):
        exact = designed_cost(*case)
        assert found.keys() == exact.keys()
        # Slopes are rounded in the page, so that a degree may be one off.
        assert abs(found["degree"] - exact["degree"]) <= 1 + 1e-4 * exact["degree"]
        for name in ("reach", "tau", "probability", "repetitions"):
            assert np.isclose(found[name], exact[name], rtol=1e-9), (case, name)


def test_accuracies_in_the_page_are_the_recorded_ones():
    recorded = recall("quantum/promoters").values["promoters"]
    for model in player("console.log(JSON.stringify(q.MODELS))"):
        run = recorded[model["name"].split(",")[0].lower()]
        assert np.isclose(model["accuracy"], run["accuracy, all frames"].value, atol=6e-5)
        assert np.isclose(model["error"], run["accuracy, all frames"].error, atol=6e-5)
        assert np.isclose(model["tau"], run["tau"].value, atol=0.06)


def shell(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


SMALL = ("norms", "bert", "--untrained", "--random", "--max-tokens", 16)


def test_a_report_goes_from_command_to_command(tmp_path):
    pytest.importorskip("transformers")
    report, png = tmp_path / "bert.json", tmp_path / "bert.png"
    first = shell(*SMALL, "--json", report, "--png", png)
    assert first.exit_code == 0, first.output
    assert png.read_bytes().startswith(b"\x89PNG")
    about = json.loads(report.read_text(encoding="utf-8"))
    assert about["model"] == "bert, untrained" and max(about["lengths"]) <= 16
    costs = {}
    for norm in ("spectral", "frobenius"):
        done = shell("quantum", "resources", report, "--norm", norm)
        assert done.exit_code == 0, done.output
        rows = [r.split("|") for r in done.output.splitlines() if r.startswith("| 0")]
        costs[norm] = float(rows[0][3])
    one = about["layers"][0]
    tau = max(one["S"]["spectral"]) ** 2 * one["W_q"]["spectral"] * one["W_k"]["spectral"]
    assert np.isclose(costs["spectral"], tau / one["head_dim"] ** 0.5, rtol=0.01)
    assert costs["frobenius"] > costs["spectral"]


@pytest.mark.parametrize(
    "words, part",
    [
        (("norms", "gpt5", "--untrained", "--random"), "gpt5"),
        ((*SMALL, "--batch-size", 0), "batch_size = 0"),
        ((*SMALL[:3], "--texts", "none.txt"), "none.txt"),
        (("quantum", "resources", "none.json"), "none.json"),
        (("quantum", "resources", "none.json", "--norm", "nuclear"), "nuclear"),
    ],
)
def test_bad_requests_are_one_sentence(words, part):
    if words[0] == "norms":
        pytest.importorskip("transformers")
    done = shell(*words)
    assert isinstance(done.exception, ValueError | FileNotFoundError)
    assert part in str(done.exception) and "\n" not in str(done.exception)
