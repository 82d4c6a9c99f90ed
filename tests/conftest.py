import functools
import http.server
import os
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# Before torch is imported, which reads it then: with two threads, sums have other last digits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same few examples on every run; HYPOTHESIS_PROFILE=many looks for new ones.
settings.register_profile("few", max_examples=12, derandomize=True, deadline=None)
settings.register_profile("many", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))


def pytest_addoption(parser):
    parser.addoption(
        "--slow",
        action="store_true",
        help="also re-run the quick profile of every experiment",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))


@pytest.fixture(autouse=True)
def seed():
    "Layers draw from the global generator: what a test gets does not depend on those before it."
    import torch

    torch.manual_seed(0)


@pytest.fixture
def shell(monkeypatch, capsys, tmp_path):
    "The command `physattn` in a folder of its own: exit code, output and errors."
    from physattn.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["physattn", *words])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def site():
    "The address of the built book."
    serve = functools.partial(Quiet, directory=str(ROOT / "book/_build/html"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    "One for all tests: Playwright does not start twice in a process."
    pytest.importorskip("playwright")
    from playwright.sync_api import sync_playwright

    sys.path.insert(0, str(ROOT / "book"))
    from browser import FLAGS, installed

    with sync_playwright() as playwright:
        if not (path := installed(playwright)):
            pytest.skip("no Chromium on this machine")
        chromium = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield chromium
        chromium.close()
