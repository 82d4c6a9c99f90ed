"""What holds of every notebook, of the library that they export, and of every page that is built from them."""

import ast
import functools
import inspect
import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book/_ext"))
import nbdev_book as book

SETTINGS = book.settings()
NOTEBOOKS = [
    p
    for p in sorted((ROOT / "nbs").rglob("*.ipynb"))
    if not any(part[0] in "._" for part in p.relative_to(ROOT).parts)
]
MODULES = sorted(p for p in (ROOT / "physattn").rglob("*.py") if p.name != "_modidx.py")
TEXTS = [*NOTEBOOKS, *sorted((ROOT / "nbs").rglob("*.md"))]
COLAB = (
    '#| hide\nimport sys\n\nif "google.colab" in sys.modules:\n'
    f'    %pip install -q "physattn[book] @ git+{SETTINGS["git_url"]}@v{SETTINGS["version"]}"'
)


def name(path):
    return str(path.relative_to(ROOT))


@functools.cache
def cells(path):
    if path.suffix == ".md":
        return [nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))]
    return nbformat.read(path, as_version=4).cells


def markdown(path):
    return "\n\n".join(c.source for c in cells(path) if c.cell_type == "markdown")


def directives(path):
    return [book.split(c.source)[0] for c in cells(path) if c.cell_type == "code"]


def trees(path):
    "The parsed code of a notebook, cell by cell, or of a module; stubs of exercises need not be Python."
    if path.suffix == ".py":
        return [ast.parse(path.read_text(encoding="utf-8"))]
    sources = [
        c.source
        for c in cells(path)
        if c.cell_type == "code" and "exercise" not in book.split(c.source)[0]
    ]
    return [ast.parse(book.MAGIC.sub(r"\1pass", s)) for s in sources]


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
each_module = pytest.mark.parametrize("path", MODULES, ids=name)

# --- the notebooks


def toc_files(node):
    if isinstance(node, list):
        return [f for item in node for f in toc_files(item)]
    if not isinstance(node, dict):
        return []
    return [node[k] for k in ("root", "file") if k in node] + [
        f for v in node.values() for f in toc_files(v)
    ]


def test_the_table_of_contents_lists_every_notebook_once():
    listed = toc_files(yaml.safe_load((ROOT / "book/_toc.yml").read_text(encoding="utf-8")))
    pages = {str(p.relative_to(ROOT / "nbs").with_suffix("")) for p in TEXTS}
    assert sorted(listed) == sorted(pages)


@functools.cache
def labels(path):
    marked = re.findall(
        r"^\(([\w:-]+)\)=\s*$|^\s*:(?:label|name): *(\S+)|^\$\$ *\(([\w:-]+)\)",
        markdown(path),
        flags=re.M,
    )
    drawn = [
        d.partition(":")[2].strip()
        for ds in (directives(path) if path.suffix == ".ipynb" else [])
        for d in ds
        if d.startswith("label:")
    ]
    return [next(filter(None, groups)) for groups in marked] + drawn


def test_labels_are_unique():
    found = Counter(label for path in TEXTS for label in labels(path))
    assert not [label for label, n in found.items() if n > 1]


def test_references_lead_somewhere():
    known = {label for path in TEXTS for label in labels(path)}
    for path in TEXTS:
        text = "\n".join(c.source for c in cells(path))
        for title in re.findall(r"\{+(?:ref|numref|eq)\}+`([^`{]+)`", text):
            label = title.rpartition("<")[2].rstrip(">")
            assert label in known, f"{name(path)} refers to {label}, which is nowhere"


@each_notebook
def test_directives_are_known(path):
    known = {*book.TAGS, "label", "fig-cap", "notest"}
    used = {
        d if d in book.TAGS else re.split(r"[:\s]", d)[0]
        for ds in directives(path)
        for d in ds
    }
    assert used <= known


@each_notebook
def test_a_figure_has_label_caption_and_mention(path):
    text = markdown(path)
    for ds in directives(path):
        figure = book.figure(ds)
        assert len(figure) in (0, 2), f"label and fig-cap go together: {ds}"
        if figure:
            assert figure["name"].startswith("fig-") and len(figure["caption"].split()) > 5
            assert "\\\\" not in figure["caption"], "a caption is literal: one backslash"
            assert (
                f"{{numref}}`{figure['name']}`" in text or f"<{figure['name']}>`" in text
            ), f"the text never refers to {figure['name']}"


@each_notebook
def test_an_exercise_has_a_solution(path):
    text = markdown(path)
    exercises = re.findall(r"\{exercise\}[^\n]*\n:label: *(\S+)", text)
    assert len(exercises) == text.count("{exercise}"), "an exercise has no label"
    assert not set(exercises) - set(re.findall(r"\{solution\} *(\S+)", text))
    stubs, solutions = (
        sum(kind in ds for ds in directives(path)) for kind in ("exercise", "solution")
    )
    assert stubs <= solutions, "a stub without its tested solution"


@each_notebook
def test_no_output_is_committed(path):
    assert not [
        i
        for i, c in enumerate(cells(path))
        if c.cell_type == "code" and (c.outputs or c.execution_count)
    ]


@each_notebook
def test_one_line_installs_the_release_on_colab(path):
    if not any(c.cell_type == "code" for c in cells(path)):
        pytest.skip("no code to run")
    assert [c.source.strip() for c in cells(path) if "google.colab" in c.source] == [COLAB]


def recalled(tree):
    "The names in `recall(...)`, but for results in another folder and for calls that are made to fail."
    expected = {
        n
        for t in ast.walk(tree)
        if isinstance(t, (ast.Try, ast.Lambda))
        for s in (t.body if isinstance(t, ast.Try) else [t.body])
        for n in ast.walk(s)
    }
    for n in ast.walk(tree):
        if (
            isinstance(n, ast.Call)
            and getattr(n.func, "id", getattr(n.func, "attr", "")) == "recall"
            and n not in expected
        ):
            if len(n.args) == 1 and isinstance(n.args[0], ast.Constant) and not n.keywords:
                yield n.args[0].value


@pytest.mark.parametrize("path", [*NOTEBOOKS, *MODULES], ids=name)
def test_what_is_recalled_is_stored(path):
    for result in sorted({result for t in trees(path) for result in recalled(t)}):
        stored = ROOT / "results" / f"{result}.json"
        assert stored.exists(), f"physattn reproduce {result} --profile full"
        json.loads(stored.read_text(encoding="utf-8"))


# --- how the book reads them


def notebook(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])


def test_the_cache_knows_what_a_notebook_depends_on():
    stored = next(
        p
        for p in sorted((ROOT / "results").rglob("*.json"))
        if p.with_suffix(".safetensors").exists()
    )
    recall = f"recall('{stored.relative_to(ROOT / 'results').with_suffix('')}')"
    found = book.depends(
        notebook(
            "def unfinished(",
            f"if True:\n    %pip list\nfrom physattn.foundations.attention import Attention\n{recall}",
        )
    )
    assert {stored, stored.with_suffix(".safetensors")} <= set(found)
    assert {
        ROOT / "physattn/foundations" / f for f in ("attention.py", "models.py", "files.py")
    } <= set(found), "modules of modules count"
    assert ROOT / "physattn/cli.py" not in found


def test_the_book_reads_directives():
    sources = (
        '#| label: fig-x\n#| fig-cap: "Of $\\omega_0$."\n#| hide_input\n1',
        "#| exercise\n...",
        "#| solution\n2",
        "#| export\n3",
        "#| hide\n4",
        "5",
    )
    figure, stub, solution, export, hidden, plain, stamp = book.read(
        nbformat.writes(notebook(*sources))
    ).cells
    assert figure.source == "1" and figure.metadata["tags"] == ["hide-input"]
    assert figure.metadata["mystnb"]["figure"] == {
        "name": "fig-x",
        "caption": r"Of $\omega_0$.",
    }
    assert stub.metadata["tags"] == ["exercise", "skip-execution"] and solution.metadata[
        "tags"
    ] == ["hide-input", "solution"]
    assert export.metadata["tags"] == ["export"] and hidden.metadata[
        "tags"
    ] == stamp.metadata["tags"] == ["remove-cell"]
    assert "tags" not in plain.metadata and "figure" not in plain.metadata["mystnb"]


# --- the library

EXPORTED = book.modules("physattn")


def part(path):
    "foundations, a chapter, or cli."
    parts = path.relative_to(ROOT).parts[1:]
    return parts[0] if len(parts) > 1 else Path(parts[0]).stem


@pytest.mark.parametrize("path", [*MODULES, *NOTEBOOKS], ids=name)
def test_imports_point_one_way(path):
    """foundations <- chapters <- command line: a chapter imports foundations and itself, and no other chapter."""
    allowed = {"foundations", part(path), "__init__"}
    if allowed & {"cli", "__main__", "api", "teaching", "index", "scale"}:
        return
    if path.suffix == ".ipynb" and path.stem.endswith("_cli"):
        allowed.add("cli")  # the page shows the command; its module is imported by it
    package = path.relative_to(ROOT).parent.parts
    used = {part(f) for t in trees(path) for f in book.imports(t, package)}
    assert used <= allowed


def test_every_module_is_exported_from_a_notebook():
    exported = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in MODULES
        if p.stem not in ("__init__", "__main__")
    }
    assert exported == set(EXPORTED)


#: Packages whose modules are called otherwise.
IMPORTED_AS = {"pillow": "PIL", "tensorflow-cpu": "tensorflow", "tensorly-torch": "tltorch"}


@each_module
def test_the_library_needs_only_what_it_declares(path):
    declared = {
        IMPORTED_AS.get(name := re.split(r"[<>=\[]", r)[0], name).replace("-", "_")
        for key in SETTINGS
        if key == "requirements" or key.startswith("extra_") and key != "extra_dev"
        for r in SETTINGS[key].split()
    }
    found = {
        (n.module if isinstance(n, ast.ImportFrom) else a.name).split(".")[0]
        for t in trees(path)
        for n in ast.walk(t)
        if isinstance(n, ast.Import) or isinstance(n, ast.ImportFrom) and not n.level
        for a in n.names
    }
    assert found - set(sys.stdlib_module_names) - {"physattn"} <= declared


def test_import_is_light():
    code = "import sys, physattn; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )
    assert not loaded & {
        "matplotlib",
        "IPython",
        "nbdev",
        "fastcore",
        "pandas",
        "typer",
        "jupyter_book",
        "sphinx",
    }


def public(module):
    "The public names of a module with the objects themselves."
    found = __import__(module, fromlist=["__all__"])
    return {n: getattr(found, n) for n in found.__all__}


@pytest.mark.parametrize("module", EXPORTED)
def test_public_names_have_docstrings(module):
    from sphinx.pycode import ModuleAnalyzer  # finds the `#:` comment above a constant

    constants = {n for _, n in ModuleAnalyzer.for_module(module).find_attr_docs()}
    own = {
        n: o
        for n, o in public(module).items()
        if inspect.isclass(o) or inspect.isroutine(o)
    }
    assert not [n for n, o in own.items() if not (o.__doc__ or "").strip()]
    assert not public(module).keys() - own.keys() - constants, (
        "a constant is described by a comment that starts with #:"
    )


def test_the_reference_shows_every_module():
    shown = [
        m
        for p in sorted((ROOT / "nbs/api").glob("*.md"))
        for b in re.findall(
            r"^```\{api\} ([\w.]+)\n```$", p.read_text(encoding="utf-8"), flags=re.M
        )
        for m in book.modules(b)
    ]
    assert sorted(shown) == sorted(EXPORTED)


# --- the house

#: Extras that neither the book nor its tests install: peers, and a loader that needs a network.
UNLOCKED = ("extra_bench", "extra_genomics")


def test_the_lock_pins_what_settings_ask_for():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").split()
    pins = dict(
        line.lower().replace("_", "-").split("==") for line in lines
    )  # any path or address fails here
    asked = {
        re.split(r"[<>=\[]", r)[0].lower()
        for key in SETTINGS
        if key == "requirements" or key.startswith("extra_") and key not in UNLOCKED
        for r in SETTINGS[key].split()
    }
    assert asked <= set(pins)
    exact = dict(r.lower().split("==") for r in SETTINGS["extra_dev"].split() if "==" in r)
    assert exact.items() <= pins.items()


def test_the_version_is_the_same_everywhere():
    version = SETTINGS["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert (
        re.search(
            r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M
        )[1]
        == version
    )
    for pinned in re.findall(
        r"@v([\d.]+)", (ROOT / "README.md").read_text(encoding="utf-8")
    ):
        assert pinned.rstrip(".") == version


def palette(theme):
    css = (ROOT / "book/_static/physattn.css").read_text(encoding="utf-8")
    block = re.search(rf'html\[data-theme="{theme}"\] \{{(.*?)\}}', css, flags=re.S)[1]
    return dict(re.findall(r"--physattn-(\w+): (#\w{6})", block))


def contrast(a, b):
    def luminance(colour):
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(
            w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
            for w, c in zip((0.2126, 0.7152, 0.0722), rgb)
        )

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_can_be_read(theme):
    colours = palette(theme)
    for i in range(6):
        assert contrast(colours[f"c{i}"], colours["bg"]) >= 3
    for text in ("fg", "muted"):
        assert contrast(colours[text], colours["bg"]) >= 4.5


def test_figures_have_the_colours_of_the_page():
    from physattn.foundations.plots import PALETTE

    assert list(PALETTE) == [palette("light")[f"c{i}"] for i in range(6)]


# --- the pages (make book runs these)

HTML = ROOT / "book/_build/html"
PAGES = (
    sorted(
        str(p.relative_to(HTML)) for p in HTML.rglob("*.html") if "_static" not in p.parts
    )
    if (HTML / "index.html").exists()
    else []
)
built = pytest.mark.skipif(not PAGES, reason="the book is not built: make book")
each_page = pytest.mark.parametrize("page", PAGES or ["index.html"])


class Visit:
    "A page in a fresh tab, and everything that went wrong while it loaded."

    def __init__(self, browser, site, page, theme="light", width=1280):
        self.trouble = []
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme
        )
        self.tab = self.context.new_page()
        self.tab.on(
            "console",
            lambda m: (
                self.trouble.append(m.text) if m.type in ("error", "warning") else None
            ),
        )
        self.tab.on("pageerror", lambda e: self.trouble.append(str(e)))
        self.tab.on("requestfailed", lambda r: self.trouble.append(f"failed: {r.url}"))
        self.tab.on(
            "response",
            lambda r: (
                self.trouble.append(f"{r.status}: {r.url}") if r.status >= 400 else None
            ),
        )
        self.tab.on(
            "request",
            lambda r: (
                None
                if r.url.startswith((site, "data:", "blob:"))
                else self.trouble.append(f"external: {r.url}")
            ),
        )
        self.tab.goto(site + page, wait_until="load")
        self.tab.evaluate(
            "async () => { if (window.MathJax?.startup) await MathJax.startup.promise; await document.fonts.ready }"
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.context.close()


WIDE = """() => {
  const scrolls = e => ['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX);
  const boxed = e => { for (let a = e.parentElement; a && !a.matches('article'); a = a.parentElement) if (scrolls(a)) return true; return false };
  const wide = [...document.querySelectorAll('article *')].filter(e =>
      e.getBoundingClientRect().right > innerWidth + 1 && !boxed(e) && !e.closest('mjx-assistive-mml, svg'));
  return [document.documentElement.scrollWidth - innerWidth, wide.slice(0, 5).map(e => e.outerHTML.slice(0, 160))]
}"""


@pytest.mark.browser
@built
@pytest.mark.parametrize("theme, width", [("light", 1280), ("dark", 390)])
@each_page
def test_page_loads_cleanly(browser, site, page, theme, width):
    with Visit(browser, site, page, theme, width) as visit:
        assert not visit.trouble
        assert visit.tab.evaluate("document.documentElement.dataset.theme") == theme
        excess, wide = visit.tab.evaluate(WIDE)
        assert excess <= 0 and not wide
        assert visit.tab.locator("mjx-merror").count() == 0
        assert visit.tab.evaluate(
            "[...document.querySelectorAll('article figure svg')].every(e => e.getAttribute('aria-label'))"
        )
        assert (
            visit.tab.evaluate(
                "(ids => [...ids].filter((id, i) => ids.indexOf(id) < i))([...document.querySelectorAll('article figure [id]')].map(e => e.id))"
            )
            == []
        )
        assert visit.tab.evaluate(
            "[...document.querySelectorAll('article .math')].every(e => e.querySelector('mjx-container'))"
        )


@pytest.mark.browser
@built
def test_search_finds_the_oscillator(browser, site):
    with Visit(browser, site, "search.html?q=oscillator") as visit:
        visit.tab.wait_for_selector("#search-results li a", timeout=60_000)


def pages_that_play(name):
    playing = f'data-play="{name}"'
    pages = [p for p in PAGES if playing in (HTML / p).read_text(encoding="utf-8")]
    return pages or pytest.skip(f"no page has the playable figure {name}")


@pytest.mark.browser
@built
def test_the_oscillator_plays_without_a_kernel(browser, site):
    for page in pages_that_play("oscillator"):
        with Visit(browser, site, page) as visit:
            slider = visit.tab.locator(".physattn-play input[type=range]").first
            drawing = visit.tab.locator(".physattn-play").first.locator("svg, canvas").first
            drawing.scroll_into_view_if_needed()
            before = drawing.screenshot()
            slider.focus()
            for _ in range(10):
                visit.tab.keyboard.press("ArrowRight")
            visit.tab.wait_for_timeout(300)
            assert drawing.screenshot() != before and not visit.trouble


@pytest.mark.browser
@built
def test_the_chain_plays_without_a_kernel(browser, site):
    for page in pages_that_play("decoder"):
        with Visit(browser, site, page) as visit:
            spins = visit.tab.locator(".pd-spins button")
            bars = visit.tab.locator("[data-play=decoder] [role=img]").first
            before, told = (
                spins.nth(3).get_attribute("aria-label"),
                bars.get_attribute("aria-label"),
            )
            spins.nth(3).focus()
            visit.tab.keyboard.press("Enter")
            assert spins.count() == 12 and not visit.trouble
            assert spins.nth(3).get_attribute("aria-label") != before
            assert bars.get_attribute("aria-label") != told


@pytest.mark.browser
@built
def test_the_lattice_plays_without_a_kernel(browser, site):
    for page in pages_that_play("lattice"):
        with Visit(browser, site, page) as visit:
            figure = visit.tab.locator("[data-play=lattice]")
            buttons, spins = figure.locator("button"), figure.locator("canvas").first
            sweeps, reference = (figure.locator("dd").nth(k) for k in (0, 2))
            buttons.nth(0).focus()
            visit.tab.keyboard.press("Enter")
            assert buttons.nth(0).text_content() == "Play"
            before, picture = int(sweeps.text_content()), spins.screenshot()
            visit.tab.wait_for_timeout(300)
            assert int(sweeps.text_content()) == before
            buttons.nth(1).focus()
            visit.tab.keyboard.press("Enter")
            assert int(sweeps.text_content()) == before + 1
            assert spins.screenshot() != picture
            figure.locator("input[type=checkbox]").focus()
            visit.tab.keyboard.press("Space")
            assert spins.get_attribute("aria-label").startswith("Effective spins")
            expected = float(reference.text_content())
            figure.locator("input[type=range]").focus()
            visit.tab.keyboard.press("ArrowRight")
            assert float(reference.text_content()) > expected
            assert int(sweeps.text_content()) == 0 and not visit.trouble


@pytest.mark.browser
@built
def test_the_cost_of_a_head_plays_without_a_kernel(browser, site):
    for page in pages_that_play("quantum"):
        with Visit(browser, site, page) as visit:
            figure = visit.tab.locator("[data-play=quantum]")
            queries, price = figure.locator("dd").last, figure.locator("canvas").first
            before, told = queries.text_content(), price.get_attribute("aria-label")
            figure.locator("input[type=range]").first.focus()
            for _ in range(20):
                visit.tab.keyboard.press("ArrowRight")
            assert queries.text_content() != before and not visit.trouble
            assert price.get_attribute("aria-label") != told


@pytest.mark.browser
@built
def test_the_rank_of_a_train_plays_without_a_kernel(browser, site):
    for page in pages_that_play("trains"):
        with Visit(browser, site, page) as visit:
            figure = visit.tab.locator("[data-play=trains]")
            numbers, shown = figure.locator("dd"), figure.locator("canvas").nth(1)
            before, told = numbers.all_text_contents(), shown.get_attribute("aria-label")
            figure.locator("input[type=range]").focus()
            visit.tab.keyboard.press("ArrowRight")
            after = numbers.all_text_contents()
            assert all(a != b for a, b in zip(before, after)) and not visit.trouble
            assert shown.get_attribute("aria-label") != told
            picture = figure.locator("canvas").first.screenshot()
            figure.locator("select").select_option("1")
            assert figure.locator("canvas").first.screenshot() != picture


class Anchors(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "a" and attrs.get("name"):
            self.ids.append(attrs["name"])
        if tag in ("a", "link", "img", "script"):
            self.links += [attrs[k] for k in ("href", "src") if attrs.get(k)]


@functools.cache
def anchors(path):
    return Anchors(path.read_text(encoding="utf-8"))


@pytest.mark.browser
@built
@each_page
def test_internal_links_resolve(page):
    for link in anchors(HTML / page).links:
        url = urlparse(link)
        if url.scheme or url.netloc:
            continue
        target = (HTML / page).parent / unquote(url.path) if url.path else HTML / page
        assert target.exists(), link
        if url.fragment and target.suffix == ".html":
            assert unquote(url.fragment) in anchors(target).ids, link


@pytest.mark.browser
@built
def test_the_reference_has_every_public_name():
    from sphinx.util.inventory import InventoryFile

    with open(HTML / "objects.inv", "rb") as f:
        inventory = InventoryFile.load(f, "", lambda base, uri: uri)
    documented = {
        n for kind, names in inventory.items() if kind.startswith("py:") for n in names
    }
    assert not {f"{m}.{n}" for m in EXPORTED for n in public(m)} - documented
