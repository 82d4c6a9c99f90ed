"""What teachers get: plans that add up, exercises by level, handouts and pages without solutions, slides, paper."""

import ast
import builtins
import functools
import os
import re
import shutil
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "book"), str(ROOT / "book/_ext")]
import handouts
import nbdev_book as book
import slides
import teaching
from bs4 import BeautifulSoup

PAGES = handouts.pages()
HTML = ROOT / "book/_build/html"
each_page = pytest.mark.parametrize("page", PAGES)
built = pytest.mark.skipif(
    not (HTML / "sho/01_oscillator.html").exists(),
    reason="the book is not built: make book",
)

# --- exercises and plans


def written():
    "The exercises of the notebooks by part: label -> page."
    found = {}
    for page in PAGES:
        part = found.setdefault(page.partition("/")[0], {})
        part |= {label: page for label, _ in teaching.exercises(page)}
    return {part: labels for part, labels in found.items() if labels}


def test_every_exercise_has_a_level_and_every_level_an_exercise():
    table = yaml.safe_load((ROOT / "book/exercises.yml").read_text(encoding="utf-8"))
    assert {p: set(t) for p, t in table.items()} == {
        p: set(t) for p, t in written().items()
    }
    assert {level for part in table.values() for level in part.values()} == {1, 2, 3}


def test_the_list_shows_every_exercise_once_and_the_easiest_first():
    tables = teaching.exercise_list().split("\n## ")[1:]
    listed = [re.findall(r"^\| (\S+) \|.*<([\w-]+)>`", t, flags=re.M) for t in tables]
    assert sorted(label for t in listed for _, label in t) == sorted(
        label for part in written().values() for label in part
    )
    for table in listed:
        full = [mark.count("●") for mark, _ in table]
        assert full == sorted(full) and full == [teaching.levels()[n] for _, n in table]


def test_the_hours_of_a_chapter_are_those_of_its_sections():
    text = (ROOT / "nbs/teaching/chapters.md").read_text(encoding="utf-8")
    total = dict(re.findall(r"^\| ([A-Z][^|{]+?) \| (\d+) \|", text, flags=re.M))
    for section in text.split("\n## ")[1:]:
        rows = re.findall(r"^\| \{doc\}[^|]*\| ([\d.]+) \|", section, flags=re.M)
        assert sum(map(float, rows)) == float(total.pop(section.split("\n")[0]))
    assert not total


def test_the_plans_name_exercises_and_pages_that_exist():
    text = "".join(
        p.read_text(encoding="utf-8") for p in (ROOT / "nbs/teaching").glob("*.md")
    )
    assert set(re.findall(r"\bex-[\w-]+", text)) <= set(teaching.levels())
    for page in re.findall(r"\{doc\}`(?:[^`<]*<)?/([\w/]+)>?`", text):
        assert any((ROOT / f"nbs/{page}.{kind}").exists() for kind in ("ipynb", "md")), page


# --- handouts


@functools.cache
def handout(page):
    return handouts.handout(page, PAGES[page])


def code(nb):
    return [c.source for c in nb.cells if c.cell_type == "code"]


def prose(nb):
    return "\n\n".join(c.source for c in nb.cells if c.cell_type == "markdown")


@each_page
def test_a_handout_has_the_stubs_and_not_the_solutions(page):
    original, student = nbformat.read(PAGES[page], as_version=4), handout(page)
    nbformat.validate(student)
    kinds = [(book.split(c.source), c) for c in original.cells if c.cell_type == "code"]
    stubs = [source for (d, source), _ in kinds if "exercise" in d]
    assert [
        s.removeprefix("# Your turn.\n") for s in code(student) if "Your turn" in s
    ] == stubs
    for (directives, source), _ in kinds:
        assert "solution" not in directives or source not in code(student)
    solved = [
        m[5].strip()
        for c in original.cells
        if c.cell_type == "markdown"
        for m in teaching.BLOCK.finditer(c.source)
        if m[2] == "solution"
    ]
    assert not any(s in c.source for s in solved for c in student.cells)
    assert len(solved) == prose(student).count("### Exercise ")


@each_page
def test_a_handout_speaks_plain_markdown(page):
    text = prose(handout(page))
    odd = r"\{[\w:]+\}`|^```\{|^\([\w-]+\)=|<div|^:label:|\$\$ *\(eq-"
    assert not re.findall(odd, text, flags=re.M)
    for link in re.findall(r"\]\(([^)\s:]+\.ipynb)\)", text):
        assert os.path.normpath(os.path.join(os.path.dirname(page), link[:-6])) in PAGES, (
            link
        )
    assert text.count("$$") % 2 == 0


def names(tree, context):
    found = {
        n.id
        for n in ast.walk(tree)
        if isinstance(n, ast.Name) and isinstance(n.ctx, context)
    }
    if context is ast.Load:
        return found
    for n in ast.walk(tree):
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
            found.add(n.name)
        elif isinstance(n, ast.alias):
            found.add((n.asname or n.name).partition(".")[0])
        elif isinstance(n, ast.arg):
            found.add(n.arg)
        elif isinstance(n, ast.ExceptHandler) and n.name:
            found.add(n.name)
    return found


@each_page
def test_no_cell_of_a_handout_waits_for_a_solution(page):
    tree = ast.parse("\n".join(book.MAGIC.sub(r"\1pass", s) for s in code(handout(page))))
    known = names(tree, ast.Store) | {*dir(builtins), "display", "get_ipython", "__class__"}
    assert not names(tree, ast.Load) - known


def test_handouts_are_a_folder_and_a_zip_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(handouts, "OUT", tmp_path / "handouts")
    monkeypatch.setattr(handouts, "ROOT", tmp_path)
    few = dict(list(PAGES.items())[:2])
    monkeypatch.setattr(handouts, "pages", lambda: few)
    handouts.main()
    packed = zipfile.ZipFile(tmp_path / "handouts.zip").namelist()
    assert {f"handouts/{page}.ipynb" for page in few} < set(packed)
    assert "handouts/README.txt" in packed


def test_a_handout_installs_what_its_page_imports():
    for page, extra in {"tqs/06_dmrg": "dmrg", "tensortrain/05_keras": "keras"}.items():
        assert f'"physattn[book,{extra}] @' in "".join(code(handout(page)))
    assert '"physattn[book] @' in "".join(code(handout("sho/01_oscillator")))


def test_the_page_on_rooms_says_which_sections_need_more():
    text = (ROOT / "nbs/teaching/rooms.md").read_text(encoding="utf-8")
    said = {
        (page, extra)
        for extra, row in re.findall(
            r"^\| `physattn\[(\w+)\]` \| (.*) \|$", text, flags=re.M
        )
        for page in re.findall(r"\{doc\}`/([\w/]+)`", row)
    }
    found = {
        (page, extra)
        for page, path in PAGES.items()
        for extra in handouts.extras(nbformat.read(path, as_version=4).cells)[1:]
    }
    assert said == found


@pytest.mark.slow  # executes a whole notebook
def test_a_handout_runs_from_the_first_cell_to_the_last(tmp_path):
    from nbclient import NotebookClient

    for page in ("foundations/02_attention", "sho/01_oscillator"):
        NotebookClient(
            handout(page), timeout=300, resources={"metadata": {"path": tmp_path}}
        ).execute()


# --- the book without solutions


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A small book, built with solutions and then without; what was read again in between."
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    base = tmp_path_factory.mktemp("book")
    (source := base / "pages").mkdir()
    shutil.copy(PAGES["foundations/05_runs"], source / "index.ipynb")
    options = {
        "extensions": ["myst_nb", "sphinx_exercise", "sphinxcontrib.bibtex", "teaching"],
        "bibtex_bibfiles": [str(ROOT / "book/references.bib")],
        "nb_custom_formats": {".ipynb": ["nbdev_book.read", {}, False]},
        "nb_execution_mode": "off",
        "html_sourcelink_suffix": "",
        "myst_enable_extensions": ["dollarmath"],
        "exercise_style": "solution_follow_exercise",
    }
    found, read = {}, []
    for solutions in ("1", "0"):
        with pytest.MonkeyPatch.context() as patch, patch_docutils(), docutils_namespace():
            patch.setenv("SOLUTIONS", solutions)
            app = Sphinx(
                source,
                None,
                base / "out",
                base / "trees",
                "html",
                options,
                status=None,
                warning=None,
            )
            app.connect("source-read", lambda app, name, text: read.append(name))
            app.build()
        out = base / "out"
        found[solutions] = {
            "page": BeautifulSoup(
                (out / "index.html").read_text(encoding="utf-8"), "html.parser"
            ),
            "search": (out / "searchindex.js").read_text(encoding="utf-8"),
            "download": next((out / "_sources").glob("*.ipynb")).read_text(
                encoding="utf-8"
            ),
            "read": read.copy(),
        }
    return found


def test_the_book_has_solutions_unless_they_are_left_out(site):
    assert site["1"]["page"].select(".solution") and site["1"]["page"].select(
        ".tag_solution"
    )
    assert not site["0"]["page"].select(".solution, .tag_solution")
    for made in site.values():
        assert made["page"].select(".exercise") and made["page"].select(".tag_exercise")


def test_neither_search_nor_download_gives_a_solution_away(site):
    words = {k: set(re.findall(r"\w+", made["search"])) for k, made in site.items()}
    assert words["0"] < words["1"]
    assert "#| solution" in site["1"]["download"] and "{solution}" in site["1"]["download"]
    assert not re.search(r"#\| solution|\{solution\}", site["0"]["download"])


def test_leaving_solutions_out_reads_and_runs_nothing_again(site):
    assert site["1"]["read"] == site["0"]["read"] == ["index"]


def test_an_exercise_shows_its_level(site):
    mark = site["1"]["page"].select_one(".exercise .admonition-title abbr")
    assert mark.text == teaching.mark(teaching.levels()["ex-runs-forgotten"])
    assert mark["title"] == "level 1 of 3"


# --- slides


def markup(text):
    return BeautifulSoup(f"<p>{text}</p>", "html.parser").p


def test_sentences_are_cut_between_tags_and_formulas():
    formula = r'<span class="math">\(a. B\)</span>'
    first, second = f"It is {formula} here.", "See <em>this. And</em> Fig. 3. shows."
    assert slides.sentences(markup(f"{first} {second}")) == [first, second]
    assert slides.clip(["a" * 9, "b" * 9, "c" * 9], 20) == "a" * 9 + " " + "b" * 9
    assert slides.clip(["a" * 9, "b" * 9, "c" * 9], 20, end=True) == "b" * 9 + " " + "c" * 9
    assert slides.clip(["a" * 99], 20) == "a" * 99


def test_a_long_table_goes_on_without_losing_a_row():
    rows = "".join(f"<tr><td>row {i} {'x' * 100}</td></tr>" for i in range(12))
    table = BeautifulSoup(
        f"<table><thead><tr><th>head</th></tr></thead><tbody>{rows}</tbody></table>",
        "html.parser",
    ).table
    made = [s["body"] for s in slides.table_slides(table, "T", "p")]
    assert len(made) > 1 and all("head" in m for m in made)
    assert re.findall(r"row (\d+)", "".join(made)) == [str(i) for i in range(12)]


DECKS = sorted((HTML / "_static/slides").glob("*.html"))


@built
def test_there_is_a_deck_for_each_chapter_and_the_book_links_it():
    page = (ROOT / "nbs/teaching/index.md").read_text(encoding="utf-8")
    linked = re.findall(r'href="\.\./_static/slides/(\w+)\.html"', page)
    assert linked == list(slides.decks())


@built
def test_a_deck_has_every_figure_summary_and_exercise_of_its_pages_and_no_solution():
    for page in ("sho/02_integrators", "slmc/05_sampling"):
        made = list(slides.lesson(page))
        text = PAGES[page].read_text(encoding="utf-8")
        kinds = [s["kind"].split()[0] for s in made]
        assert kinds.count("figure") == text.count("#| label: fig-")
        assert sum("exercise" in s["kind"] for s in made) == text.count("{exercise}")
        assert sum(s["title"].startswith("Summary") for s in made) == 1
        assert not any("Show the solution" in s["body"] for s in made)


def opened(browser, path, width, theme="light"):
    "A deck in a tab, when it is ready, and what it complained about or asked others for."
    tab = browser.new_context(
        viewport={"width": width, "height": 720}, color_scheme=theme
    ).new_page()
    tab.set_default_timeout(120_000)
    trouble = []
    tab.on(
        "console",
        lambda m: trouble.append(m.text) if m.type in ("error", "warning") else None,
    )
    tab.on("pageerror", lambda e: trouble.append(str(e)))
    tab.on(
        "request",
        lambda r: (
            None if r.url.startswith((path.as_uri(), "data:")) else trouble.append(r.url)
        ),
    )
    tab.goto(path.as_uri())
    tab.wait_for_function("document.documentElement.dataset.ready === 'yes'")
    return tab, trouble


FULL = """() => [...document.querySelectorAll('.slide .content')].map((c, i) => [i + 1, c.scrollHeight - c.clientHeight, c.scrollWidth - c.clientWidth])
    .filter(s => s[1] > 5 || s[2] > 5)"""


@pytest.mark.browser
@pytest.mark.skipif(not DECKS, reason="there are no slides: make slides")
@pytest.mark.parametrize("deck", DECKS, ids=lambda p: p.stem)
def test_a_deck_needs_nobody_and_nothing_is_cut_off(browser, deck):
    tab, trouble = opened(browser, deck, 1280, "dark")
    assert not trouble and tab.evaluate(FULL) == []
    assert tab.locator("mjx-merror, [data-mjx-error]").count() == 0
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    assert tab.evaluate("document.querySelectorAll('[id]').length") == tab.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size"
    )
    tab.context.close()


@pytest.mark.browser
@pytest.mark.skipif(not DECKS, reason="there are no slides: make slides")
def test_a_deck_obeys_the_keyboard_and_fits_a_phone(browser):
    deck = next(d for d in DECKS if d.stem == "foundations")
    tab, _ = opened(browser, deck, 1280)

    def shown():
        return tab.evaluate(
            "[...document.querySelectorAll('.slide')].filter(s => getComputedStyle(s).visibility === 'visible').map(s => +s.id)"
        )

    assert shown() == [1]
    for key, where in (
        ("ArrowRight", 2),
        (" ", 3),
        ("ArrowLeft", 2),
        ("End", None),
        ("Home", 1),
    ):
        tab.keyboard.press(key)
        assert shown() == [where or tab.locator(".slide").count()]
    tab.keyboard.press("o")
    tab.locator("dialog li.lesson a").first.click()
    assert shown() == [2] and not tab.locator("dialog").is_visible()
    tab.context.close()
    tab, _ = opened(browser, deck, 390)
    assert len(shown()) == tab.locator(".slide").count()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.context.close()


# --- paper


@built
def test_links_on_paper_lead_to_places_on_paper():
    import pdf

    text = pdf.compose(
        {"The oscillator": teaching.chapters()["The simple harmonic oscillator"]}, False
    )
    places = set(re.findall(r'\bid="([^"]+)"', text))
    assert set(re.findall(r'<a [^>]*href="#([^"]+)"', text)) <= places
    assert "tag_solution" not in text and "tag_exercise" in text
    drawn = [p for p in PAGES if p.startswith("sho/")]
    labels = sum(
        PAGES[p].read_text(encoding="utf-8").count("#| label: fig-") for p in drawn
    )
    assert len(re.findall("<figure", text)) == labels


@built
@pytest.mark.slow  # typesets and prints a chapter
def test_the_contents_on_paper_give_the_right_pages(browser, monkeypatch, tmp_path):
    import pdf
    from pypdf import PdfReader

    monkeypatch.setattr(pdf, "OUT", tmp_path)
    monkeypatch.setattr(pdf, "ROOT", tmp_path)
    monkeypatch.setattr(pdf, "chapters", dict)
    monkeypatch.setattr(pdf, "chromium", lambda: nullcontext(browser))
    pdf.main(["foundations"])
    paper = PdfReader(tmp_path / "physattn-foundations.pdf")
    text = [" ".join(p.extract_text().split()) for p in paper.pages]
    entries = re.findall(r"\d+\. ([A-Z][^\d]+?) (\d+)(?= \d+\.| 2$|$)", text[1])
    assert len(entries) >= 7
    for title, number in entries:
        assert title in text[int(number) - 1]
