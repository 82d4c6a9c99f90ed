"""What a reader finds: figures that can be heard, references with links, times, words and pages that lead to each other, and pages without a barrier."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from test_book import (
    HTML,
    NOTEBOOKS,
    PAGES,
    ROOT,
    Visit,
    built,
    contrast,
    each_page,
    markdown,
    pages_that_play,
)

# --- the sources


def test_every_reference_can_be_followed():
    text = (ROOT / "book/references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{([^,]+),(.*?)(?=^@|\Z)", text, flags=re.M | re.S)
    assert len(entries) > 100
    assert not [
        key
        for key, entry in entries
        if not re.search(r"\b(doi|url|eprint)\s*=|\\url", entry)
    ]


def glossary():
    page = (ROOT / "nbs/glossary.md").read_text(encoding="utf-8")
    block = re.search(r"^```\{glossary\}\n(.*?)^```$", page, flags=re.S | re.M)[1]
    return [line for line in block.splitlines() if line and not line.startswith(" ")]


def test_the_glossary_is_in_order_and_used():
    terms = glossary()
    assert terms == sorted(terms, key=str.lower) and len(set(terms)) == len(terms)
    prose = " ".join(markdown(p) for p in NOTEBOOKS).lower()
    assert not [t for t in terms if t.lower() not in re.sub(r"\s+", " ", prose)]


def test_one_notation_names_every_chapter():
    page = (ROOT / "nbs/notation.md").read_text(encoding="utf-8")
    for chapter in ("sho", "tqs", "slmc", "quantum", "tensortrain"):
        assert f"<ch-{chapter}>`" in page
        index = markdown(ROOT / f"nbs/{chapter}/index.ipynb")
        assert "## Notation" in index, f"{chapter} has no notation table"


def test_the_figure_that_attends_is_the_library_s():
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    from physattn.foundations.attention import softmax

    script = ROOT / "book/_static/attention.js"
    cases = [(25, 0.3, 0.0), (-140, 0.02, 0.2), (90, 8.0, 0.5)]
    code = (
        f"require({json.dumps(str(script))}); const a = globalThis.physattnAttention;"
        f"console.log(JSON.stringify([a.KEYS, {json.dumps(cases)}.map(c => a.gibbs(...c))]))"
    )
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    keys, played = json.loads(done.stdout)
    angle = torch.tensor(keys, dtype=torch.float64).deg2rad()
    k = torch.stack([angle.cos(), angle.sin()], 1)
    far = (torch.arange(15) - 7).abs().double()
    for (degrees, T, price), found in zip(cases, played):
        q = torch.tensor([degrees], dtype=torch.float64).deg2rad()
        scores = (torch.cat([q.cos(), q.sin()]) @ k.T - price * far) / T
        a = softmax(scores, None)
        torch.testing.assert_close(a, torch.tensor(found["weights"], dtype=torch.float64))
        torch.testing.assert_close(
            a @ k, torch.tensor(found["received"], dtype=torch.float64)
        )
        E = -T * scores
        exact = {
            "mean": a @ E,
            "free": -T * scores.logsumexp(0),
            "entropy": torch.special.entr(a).sum(),
            "heat": (a @ E**2 - (a @ E) ** 2) / T**2,
            "distance": a @ far,
        }
        for key, value in exact.items():
            assert abs(found[key] - value) < 1e-9, key


# --- the pages


@pytest.mark.browser
@built
@each_page
def test_a_picture_says_what_it_shows(page):
    """Every drawing of the text has a sentence; inside it nothing else is read aloud. Canvases get theirs from the scripts, which axe sees."""
    text = (HTML / page).read_text(encoding="utf-8")
    article = text[text.find("<article") : text.rfind("</article>")]
    for tag in re.findall(r"<svg\b[^>]*>", article):
        label = re.search(r'aria-label="([^"]*)"', tag)
        assert "sd-octicon" in tag or label and len(label[1].split()) > 3, tag[:200]
    for tag in re.findall(r"<img\b[^>]*>", article):
        assert re.search(r'\balt="[^"]+"', tag), tag[:200]


@pytest.mark.browser
@built
@each_page
def test_a_page_says_how_long_it_takes(page):
    text = (HTML / page).read_text(encoding="utf-8")
    if page.startswith("api/") or page in (
        "genindex.html",
        "py-modindex.html",
        "search.html",
    ):
        pytest.skip("is looked up, not read")
    (line,) = re.findall(r'<p class="physattn-times">(.*?)</p>', text)
    assert re.search(r"\d (min|h) to read", line), line
    if text.count("tag_export"):
        assert re.search(r"\d (s|min|h) to run$", line), line


@pytest.mark.browser
@built
def test_first_uses_lead_to_the_glossary_and_the_index_back():
    linked = {
        t
        for page in PAGES
        for t in re.findall(
            r'glossary\.html#term-([\w-]+)"><span class="physattn-term"',
            (HTML / page).read_text(encoding="utf-8"),
        )
    }
    assert len(linked) > 0.8 * len(glossary())
    index = (HTML / "genindex.html").read_text(encoding="utf-8")
    entry = re.search(r"<strong>free energy</strong></a>(.*?)</li>", index, flags=re.S)[1]
    assert "foundations/00_attention_as_physics.html#index-" in entry


@pytest.mark.browser
@built
def test_references_are_followed_backwards():
    home = (HTML / "foundations/00_attention_as_physics.html").read_text(encoding="utf-8")
    back = re.search(r'class="physattn-backlinks">(.*?)</p>', home, flags=re.S)[1]
    assert 'href="../answers.html"' in back and "index.html" not in back.split("/")


@pytest.mark.browser
@built
def test_every_entry_of_the_bibliography_is_a_link():
    text = (HTML / "bibliography.html").read_text(encoding="utf-8")
    entries = re.findall(r'<div class="citation".*?</div>', text, flags=re.S)
    assert len(entries) > 100
    assert not [e[:200] for e in entries if "reference external" not in e]


@pytest.mark.browser
@built
def test_attention_plays_without_a_kernel(browser, site):
    for page in pages_that_play("attention"):
        with Visit(browser, site, page) as visit:
            figure = visit.tab.locator("[data-play=attention]")
            seen, row = figure.locator("dd").first, figure.locator("svg").first
            warm, told = float(seen.text_content()), row.get_attribute("aria-label")
            figure.locator("input[type=range]").first.focus()
            visit.tab.keyboard.press("Home")
            assert float(seen.text_content()) < 2 < warm and not visit.trouble
            assert row.get_attribute("aria-label") != told


@pytest.mark.browser
@built
def test_paper_is_light(browser, site):
    with Visit(browser, site, "sho/index.html", theme="dark") as visit:
        visit.tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        visit.tab.emulate_media(media="print")
        assert visit.tab.evaluate("document.documentElement.dataset.theme") == "light"
        for part in (".bd-sidebar-primary", ".bd-header-article", ".prev-next-footer"):
            assert not visit.tab.locator(part).first.is_visible(), part
        visit.tab.evaluate("dispatchEvent(new Event('afterprint'))")
        assert visit.tab.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.browser
@built
@pytest.mark.parametrize("theme, surface", [("light", "#f3f4f5"), ("dark", "#222832")])
def test_code_can_be_read(theme, surface):
    "Every colour of the highlighter on the background of a cell (the theme's surface), which axe need not look for token by token."
    css = (HTML / "_static/pygments.css").read_text(encoding="utf-8")
    colours = re.findall(
        rf'html\[data-theme="{theme}"\] \.highlight \.\w+ \{{ color: (#\w{{6}})', css
    )
    assert len(colours) > 20
    assert not [c for c in colours if contrast(c.lower(), surface) < 4.5]


#: Findings of the theme, by rule and by a part of the element's HTML. Nothing that a page of ours contains belongs here.
THEIRS = {
    "region": (
        "logo__title",
    )  # the name of the book in the side bar stands outside a landmark
}

#: What is inside of formulas, drawings and code is made by MathJax, Matplotlib and Pygments, in thousands of elements; a picture is heard by its label, and
#: the colours of code have a test of their own. Entries of the reference are all made alike, so that two of a page will do.
SIMPLIFY = """() => {
  document.querySelectorAll('article pre').forEach(e => e.textContent = e.textContent);
  document.querySelectorAll('article mjx-container').forEach(e => e.replaceWith('x'));
  document.querySelectorAll('article .cell_output svg').forEach(e => e.replaceChildren());
  document.querySelectorAll('section > dl.py ~ dl.py ~ dl.py').forEach(e => e.remove());
  document.querySelectorAll('.bd-sidebar-primary li.toctree-l1 ~ li.toctree-l1 ~ li.toctree-l1:not(.has-children)').forEach(e => e.remove());
}"""

AXE = """async () => {
  const { violations } = await axe.run(document, { resultTypes: ['violations'], preload: false });
  return violations.flatMap(v => v.nodes.map(n => [v.id, n.html.slice(0, 200), n.failureSummary]));
}"""


@pytest.fixture(scope="session")
def axe():
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None:
        pytest.skip("axe-playwright-python, which brings axe-core, is not installed")
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


@pytest.mark.browser
@built
@each_page
def test_axe_finds_nothing_of_ours(browser, site, axe, page):
    theme = ("light", "dark")[PAGES.index(page) % 2]
    with Visit(browser, site, page, theme) as visit:
        visit.tab.evaluate(SIMPLIFY)
        visit.tab.evaluate(axe)
        found = visit.tab.evaluate(AXE)
    ours = [f for f in found if not any(part in f[1] for part in THEIRS.get(f[0], ()))]
    assert not ours, "\n".join(f"{rule}: {html}\n{why}" for rule, html, why in ours[:5])
