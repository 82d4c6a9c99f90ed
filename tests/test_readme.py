"What the README promises: its examples run and print what stands beside them, its commands exist, its tables are those of the results."

import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from physattn import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def part_of(code):
    "The part of the library that an example is about: foundations, if it is about no other."
    parts = set(re.findall(r"^from physattn\.(\w+)\.", code, flags=re.M))
    return (sorted(parts - {"foundations"}) or ["foundations"])[0]


BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.S | re.M)
EXAMPLES = {part_of(code): code for code in BLOCKS}
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"^```\n(.*?)^```$", README, flags=re.S | re.M)
    for line in block.splitlines()
]
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")

NUMBER = re.compile(r"(-?\d+\.?\d*)(?:\((\d+)\))?(e[+-]\d+)?")


def numbers(text):
    "Every number of a text with its standard error, or None: 1.23(4) is (1.23, 0.04)."
    for digits, error, power in NUMBER.findall(text):
        scale = float("1" + power)
        decimals = len(digits.partition(".")[2])
        yield (
            float(digits) * scale,
            int(error) * 10.0**-decimals * scale if error else None,
        )


def promised(code):
    "What stands beside the prints of an example, line by line."
    inline = re.findall(r"print\(.*\)  # (.*)$", code, flags=re.M)
    return inline + re.findall(r"^# (.*)$", code, flags=re.M)


def test_numbers_are_read_with_their_errors():
    found = list(numbers("energy -25.1060(10), exact -25.10780, error 3e-05, 2.5(3)e+03"))
    want = [(-25.106, 0.001), (-25.1078, None), (3e-5, None), (2.5e3, 300.0)]
    assert [x for x, _ in found] == pytest.approx([x for x, _ in want])
    assert [e for _, e in found] == pytest.approx([e for _, e in want])


@pytest.mark.parametrize("part", sorted(EXAMPLES))
def test_an_example_prints_what_stands_beside_it(part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    out, names = io.StringIO(), {}
    with contextlib.redirect_stdout(out):
        exec(compile(EXAMPLES[part], f"README.md: {part}", "exec"), names)
    printed, beside = out.getvalue().splitlines(), promised(EXAMPLES[part])
    assert len(printed) == len(beside) > 0
    for line, comment in zip(printed, beside):
        assert NUMBER.sub("#", line) == NUMBER.sub("#", comment)
        for (x, error), (y, expected) in zip(numbers(line), numbers(comment), strict=True):
            if error is None:  # not sampled: the same up to the order of additions
                assert x == pytest.approx(y, rel=0.02) or 0 < x < 2 * y < 1e-3, line
            else:  # other processors round otherwise and draw other samples
                assert abs(x - y) <= 5 * (error**2 + expected**2) ** 0.5, line
    PHYSICS[part](names, printed)


def foundations(names, _):
    assert abs(names["tau"].sigma(19)) < 4 and abs(names["mean"].sigma(0)) < 4


def sho(names, printed):
    assert abs(names["found"].omega0 - 2.0) < 1e-12 > abs(names["found"].gamma - 0.1)
    assert printed[1] == "['leapfrog']"


def tqs(names, _):
    energy, exact = names["energy"], names["exact"]
    assert exact - 4 * energy.error < energy.value < exact * (1 - 4e-4)


def slmc(_, printed):
    local, poor, good = (list(numbers(line))[-1] for line in printed)
    for (x, a), (y, b) in ((local, poor), (local, good), (poor, good)):
        assert abs(x - y) < 4 * (a**2 + b**2) ** 0.5
    accepted = [next(numbers(line))[0] for line in printed[1:]]
    assert accepted[0] < 0.6 < 0.85 < accepted[1]


def quantum(_, printed):
    first, second = ([x for x, _ in numbers(line)] for line in printed)
    assert second[0] < first[0] and second[1] > first[1] and max(first[2], second[2]) < 1e-3


def tensortrain(_, printed):
    found = [dict(enumerate(numbers(line))) for line in printed]
    assert [f[0][0] for f in found] == [551_146, 498_282]


PHYSICS = {f.__name__: f for f in (foundations, sho, tqs, slmc, quantum, tensortrain)}


def test_every_chapter_has_an_example_of_some_ten_lines():
    parts = {p.name for p in (ROOT / "physattn").iterdir() if (p / "__init__.py").exists()}
    assert set(EXAMPLES) == parts == set(PHYSICS) and len(BLOCKS) == len(EXAMPLES)
    for part, code in EXAMPLES.items():
        lines = [line for line in code.splitlines() if line and line[0] not in "#"]
        own = [line for line in lines if not line.startswith(("from ", "import "))]
        assert len(own) <= 10 and len(lines) <= 16, part


# --- commands


def words(program):
    return [shlex.split(line)[1:] for line in COMMANDS if line.split()[:1] == [program]]


def command(given):
    "The click command that a line names, and what is left of the line."
    found, given = typer.main.get_command(cli.app), list(given)
    while hasattr(found, "commands"):
        assert given[0] in found.commands, f"physattn has no command {given[0]}"
        found = found.commands[given.pop(0)]
    return found, given


@pytest.mark.parametrize("given", words("physattn"), ids=" ".join)
def test_a_command_exists_with_its_options(given):
    found, rest = command(given)
    known = {o for p in found.params for o in (*p.opts, *p.secondary_opts)}
    assert {w for w in rest if w.startswith("-")} <= known
    # The parser takes the line as it stands, with nothing missing and nothing left over.
    context = found.make_context(given[0], list(rest), resilient_parsing=True)
    needed = [p for p in found.params if p.required]
    assert not context.args and all(context.params[p.name] is not None for p in needed)
    done = CliRunner().invoke(cli.app, [*given[: len(given) - len(rest)], "--help"])
    assert done.exit_code == 0, done.output


#: Lines that are run, with what makes them small.
SMALL = {
    "sho train": [],
    "sho identify": [],
    "train-decoder": ["--steps", "2", "--samples", "64"],
    "tqs observe": ["--samples", "64"],
    "slmc train": ["--samples", "256", "--tries", "1"],
    "slmc sample": ["--steps", "6", "--warmup", "2", "--chains", "8"],
    "reproduce": [],
}


def test_commands_run_in_the_order_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = 0
    for given in words("physattn"):
        name = " ".join(given[: 1 if given[0] in ("reproduce", "train-decoder") else 2])
        if name in SMALL:
            done = CliRunner().invoke(cli.app, [*given, *SMALL[name]])
            assert done.exit_code == 0, f"{given}: {done.output}"
            run += 1
    assert run == len(SMALL)


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.M)[1].split())
    named = set(re.findall(r"`make (\w+)[^`]*`", README)) | {w[0] for w in words("make")}
    assert {"book", "test"} <= {w[0] for w in words("make")}
    assert named <= targets


def test_the_installation_is_that_of_the_settings():
    cfg = SETTINGS["DEFAULT"]
    (line,) = [shlex.split(c) for c in COMMANDS if c.startswith("pip ")]
    assert line[:2] == ["pip", "install"]
    assert line[2] == f"{cfg['lib_name']} @ git+{cfg['git_url']}@v{cfg['version']}"
    assert f"Python {cfg['min_python']} or newer" in README
    needed = [re.split("[<>=]", r)[0].lower() for r in cfg["requirements"].split()]
    sentence = re.search(r"([^.]*) are all that `import physattn` needs", README)[1].lower()
    assert all(name in sentence for name in needed) and sentence.count(",") + 2 == len(
        needed
    )


# --- tables and links


def library():
    "Rows of the table of the library: part, names, extra."
    block = README.partition("| part |")[2].partition("\n\n")[0]
    part = ""
    for row in block.splitlines()[2:]:
        first, names, _, extra = (c.strip() for c in row.strip().strip("|").split("|"))
        part = first.strip("`") or part
        yield part, re.findall(r"`(\w+)`", names), extra.strip("`")


def test_what_is_in_the_library_is_there():
    rows = list(library())
    assert len(rows) > 20
    for part, names, extra in rows:
        files = sorted((ROOT / "physattn" / part).glob("[a-z]*.py"))
        modules = [importlib.import_module(f"physattn.{part}.{f.stem}") for f in files]
        public = {name for m in modules for name in getattr(m, "__all__", ())}
        assert names and set(names) <= public, part
        assert not extra or f"extra_{extra}" in SETTINGS["DEFAULT"]


def test_the_tables_of_numbers_are_those_of_the_results():
    done = subprocess.run(
        [sys.executable, str(ROOT / "book/readme.py"), "--check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


def test_links_work_where_the_page_is_read():
    "PyPI shows this page too, and knows no file of the repository: every link is absolute."
    cfg, seen = SETTINGS["DEFAULT"], 0
    for target in re.findall(r"\]\(([^)\s]+)\)", README):
        assert target.startswith("https://"), target
        for start in (f"{cfg['git_url']}/blob/main/", "https://raw.githubusercontent.com/"):
            if target.startswith(start):
                path = target.removeprefix(start).removeprefix("physattn/physattn/main/")
                assert (ROOT / path).is_file(), target
                seen += 1
        if target.startswith(cfg["doc_host"]):
            page = target.removeprefix(cfg["doc_host"] + cfg["doc_baseurl"] + "/")
            page = page.removesuffix(".html")
            assert any((ROOT / f"nbs/{page}{s}").exists() for s in (".md", ".ipynb")), (
                target
            )
            seen += 1
    assert seen > 10
