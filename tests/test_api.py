"The reference: every public name is on a page of it, and says what it takes and what it raises."

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book/_ext"))
from nbdev_book import modules  # noqa: E402

FILES = {
    "physattn." + ".".join(f.relative_to(ROOT / "physattn").with_suffix("").parts): f
    for f in sorted(ROOT.glob("physattn/**/[a-z]*.py"))
}
TREES = {m: ast.parse(f.read_text(encoding="utf-8")) for m, f in FILES.items()}
#: A command's docstring is its help; what it raises reaches its user as a line and an exit code.
LIBRARY = {m: tree for m, tree in TREES.items() if not m.endswith("cli")}
#: Methods that Python calls, whose errors a user meets at the class.
CONSTRUCTION = ("__init__", "__post_init__", "__new__", "__call__")


def assigned(tree, name):
    "What a module assigns to a name at its top."
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    return []


def public(body, prefix="", inherited=""):
    "Functions, methods and constructors that a user may call, with the docstring that speaks for each."
    for node in body:
        name, own = getattr(node, "name", "_"), ""
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            own = ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef) and not name.startswith("_"):
            yield from public(node.body, f"{prefix}{name}.", f"{inherited}\n{own}")
        if isinstance(node, ast.FunctionDef):
            if name in CONSTRUCTION:
                yield prefix + name, node, f"{own}\n{inherited}"
            elif not name.startswith("_"):
                yield prefix + name, node, own


FUNCTIONS = {
    f"{module}.{name}": (node, doc)
    for module, tree in LIBRARY.items()
    for name, node, doc in public(tree.body)
}


def sections(doc, title):
    "The names that the sections with this title explain."
    for block in re.findall(rf"^{title}:\n((?: +.*\n)+)", f"{doc}\n", flags=re.M):
        indent = re.match(" +", block)[0]
        found = re.findall(rf"^{indent}(?! )([*\w, `]+):", block, flags=re.M)
        yield from (n.strip(" `*") for names in found for n in names.split(","))


def raised(node, helpers):
    "The exceptions that a body raises by name, those of a helper that makes one included."
    for n in ast.walk(node):
        if isinstance(n, ast.Raise) and n.exc is not None:
            made = n.exc.func if isinstance(n.exc, ast.Call) else n.exc
            name = getattr(made, "id", getattr(made, "attr", ""))
            helper = helpers.get(name)
            yield helper.returns.id if helper and helper.returns else name


def errors(node, helpers):
    "What a function raises itself, or a private helper that it calls."
    found = set(raised(node, helpers))
    for n in ast.walk(node):
        called = getattr(n, "func", None)
        name = getattr(called, "id", getattr(called, "attr", ""))
        if name in helpers:
            found |= set(raised(helpers[name], helpers))
    return {e for e in found if e.endswith("Error") and e != "NotImplementedError"}


def helpers(tree):
    return {
        n.name: n
        for n in ast.walk(tree)
        if isinstance(n, ast.FunctionDef) and re.match("_[a-z]", n.name)
    }


def test_every_public_name_is_on_one_page_of_the_reference():
    pages = {p: p.read_text(encoding="utf-8") for p in ROOT.glob("nbs/api/*.md")}
    blocks = [
        b for text in pages.values() for b in re.findall(r"^```\{api\} (\S+)$", text, re.M)
    ]
    shown = [module for block in blocks for module in modules(block)]
    with_names = [m for m, tree in TREES.items() if assigned(tree, "__all__")]
    assert sorted(shown) == sorted(with_names) and len(shown) > 50
    for page in pages:  # and every page is in the book
        assert f"api/{page.stem}" in (ROOT / "book/_toc.yml").read_text(encoding="utf-8")


def test_every_public_method_is_described():
    "And every function; tests/test_book.py asks the same of classes and constants."
    lacking = [name for name, (_, doc) in FUNCTIONS.items() if not doc.strip()]
    assert len(FUNCTIONS) > 500 and not lacking


def test_what_a_function_raises_stands_in_its_docstring():
    lacking, seen = {}, 0
    for name, (node, doc) in FUNCTIONS.items():
        tree = TREES[max((m for m in TREES if name.startswith(m + ".")), key=len)]
        wanted = errors(node, helpers(tree))
        seen += bool(wanted)
        if missing := wanted - set(sections(doc, "Raises")):
            lacking[name] = missing
    assert seen > 150 and not lacking


def test_arguments_are_explained_under_their_names():
    "All or none of them, and none that is not there."
    wrong, seen = {}, 0
    for name, (node, doc) in FUNCTIONS.items():
        told = list(sections(doc, "Args"))
        if not told or name.split(".")[-1] in CONSTRUCTION:
            continue
        a = node.args
        given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        names = {p.arg for p in given} - {"self", "cls"}
        seen += 1
        if names != set(told):
            wrong[name] = names ^ set(told)
    assert seen > 300 and not wrong


def test_the_reader_of_docstrings_reads_them():
    doc = "One.\n\nArgs:\n    x: of shape (n,):\n        more: words.\n    a, b: two.\n    **rest: see.\n\nRaises:\n    ValueError: if.\n    KeyError: else.\n"
    assert list(sections(doc, "Args")) == ["x", "a", "b", "rest"]
    assert list(sections(doc, "Raises")) == ["ValueError", "KeyError"]
    code = "def f(x):\n    if x: raise TypeError('x')\n    g = _help(x)\n\ndef _help(x) -> int:\n    raise _made(x)\n\ndef _made(x) -> OSError:\n    return OSError(x)\n"
    tree = ast.parse(code)
    assert errors(tree.body[0], helpers(tree)) == {"TypeError", "OSError"}
