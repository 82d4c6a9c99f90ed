"""Make a deck of slides from the built pages of each chapter, one file that needs no network: slides.py [part ...]

A page gives its title, its question, its numbered equations with the sentence that leads to them, its figures, the table
of what the source says, its summary and its exercises. Nothing is written for the slides alone, so nothing can disagree."""
import html, importlib.util, re, sys
from pathlib import Path

from pages import HTML, ROOT, article, colours, whole, shape

from nbdev_book import settings
from teaching import chapters

OUT, ASSETS = HTML/'_static/slides', ROOT/'book/_slides'
VOID = {'br', 'img', 'hr', 'input'}

def decks():
    "The parts of the book that are chapters: folder -> (caption, pages)."
    return {pages[0].partition('/')[0]: (caption, pages) for caption, pages in chapters().items() if (ROOT/'nbs'/f'{pages[-1]}.ipynb').exists() and '/' in pages[0]}

def balanced(markup):
    "Whether every tag that is opened is closed, and no formula is cut."
    open_tags = re.findall(r'<(/?)(\w+)[^>]*>', markup)
    depth = sum(-1 if slash else 1 for slash, tag in open_tags if tag not in VOID)
    return depth == 0 and markup.count(r'\(') == markup.count(r'\)')

def sentences(paragraph):
    "The sentences of a paragraph, as markup."
    found = ['']
    for piece in re.split(r'(?<=[.?!:])\s+(?=[A-Z<*“(])', paragraph.decode_contents().strip()):
        found[-1] += (' ' if found[-1] else '') + piece
        if balanced(found[-1]) and not re.search(r'\b(?:Fig|Eq|al|e\.g|i\.e)\.$', found[-1]): found.append('')
    return [s for s in found if s]

def length(markup):
    return len(re.sub('<[^>]*>', '', markup))

def clip(found, most, end=False):
    "As many sentences as fit into `most` characters, from the beginning or from the end, and at least one."
    kept = []
    for s in reversed(found) if end else found:
        if kept and sum(map(length, kept)) + length(s) > most: break
        kept.append(s)
    return ' '.join(reversed(kept) if end else kept)

def text(heading):
    "A heading without its number."
    for number in heading.select('.section-number'): number.extract()
    return heading.decode_contents().strip()

def slide(body, kind, title, page):
    return {'body': body, 'kind': kind, 'title': re.sub('<[^>]*>', '', title), 'page': page}

def equation_slide(math, heading, page):
    "An equation, the sentences that lead to it, and the one that goes on behind it."
    before, after = math.find_previous_sibling(), math.find_next_sibling()
    lead = clip(sentences(before), 420, end=True) if before and before.name == 'p' else ''
    trail = sentences(after)[0] if after and after.name == 'p' and re.match(r'[a-z]', after.get_text().strip()) else ''
    return slide(f'<h2>{heading}</h2><p>{lead}</p>{math}<p>{trail}</p>', 'equation', heading, page)

def figure_slide(figure, heading, page):
    caption = figure.find('figcaption')
    words = ' '.join(p.decode_contents() for p in caption.find_all('p')) if caption else ''
    if caption: caption.extract()
    kind = 'figure wide' if shape(figure) > 1.75 else 'figure'
    return slide(f'<h2>{heading}</h2><figure><div class="drawing">{figure.decode_contents()}</div><figcaption>{words}</figcaption></figure>', kind, heading, page)

def table_slides(table, heading, page, most=620):
    "A long table goes on on the next slide."
    head, chunks = table.find('thead'), [[]]
    for row in table.find('tbody').find_all('tr'):
        if chunks[-1] and sum(len(r.get_text()) for r in chunks[-1]) + len(row.get_text()) > most: chunks.append([])
        chunks[-1].append(row)
    for rows in chunks:
        yield slide(f'<h2>{heading}</h2><table>{head or ""}<tbody>{"".join(map(str, rows))}</tbody></table>', 'table', heading, page)

def lesson(name):
    "The slides of one page."
    page = article(name)
    for e in page.select('.solution, .tag_solution'): e.decompose()
    number = page.h1.select_one('.section-number')
    number = number.text.strip(' .') if number else ''
    title, sentence = text(page.h1), page.select_one('h1 + blockquote')
    yield slide(f'<p class="number">{number}</p><h2>{title}</h2>' + (f'<p class="sentence">{sentence.p.decode_contents()}</p>' if sentence else ''), 'lesson', title, name)
    question = sentence.find_next_sibling('p') if sentence else None
    if question: yield slide(f'<h2>The question</h2><p>{clip(sentences(question), 620)}</p>', 'words', 'The question', name)
    heading = title
    for e in page.select('h2, h3, figure, div.math, table, div.exercise'):
        inside = e.find_parent(['figure', 'table']) or e.find_parent(class_='exercise')
        if inside: continue
        if e.name in ('h2', 'h3'):
            heading = text(e)
            if heading == 'Summary':
                points = [s for p in e.parent.find_all('p', recursive=False) for s in sentences(p)]
                yield slide('<h2>Summary</h2><ul>' + ''.join(f'<li>{s}</li>' for s in points) + '</ul>', 'words', f'Summary: {title}', name)
        elif e.name == 'figure': yield figure_slide(e, heading, name)
        elif e.name == 'table':
            if heading.startswith('What the source says') or name.endswith('_verdict'): yield from table_slides(e, heading, name)
        elif 'exercise' in e['class']:
            about = e.select_one('.admonition-title')
            about.extract()
            yield slide(f'<h2>{about.decode_contents()}</h2>{e.decode_contents()}', 'words exercise', about.get_text(), name)
        elif e.select_one('.eqno'): yield equation_slide(e, heading, name)

def clean(body):
    "Links into the book go nowhere from a file that stands alone."
    body = re.sub(r'<a\b(?![^>]*href="https?:)[^>]*>(.*?)</a>', r'\1', body, flags=re.S)
    return whole(re.sub(r' id="[^"]*"', '', body))

def render(part, caption, pages):
    "The deck of a chapter, as one HTML file."
    cfg = settings()
    address = cfg['doc_host'] + cfg['doc_baseurl']
    slides = [s for name in pages if not name.endswith(('/index', '_cli')) for s in lesson(name)]
    sentence = article(pages[0]).select_one('h1 ~ blockquote p') if pages[0].endswith('/index') else None
    cover = f'<h1>{caption}</h1>' + (f'<p class="sentence">{sentence.decode_contents()}</p>' if sentence else '') + f'<p class="source">{cfg["title"]}</p>'
    slides = [slide(cover, 'cover', caption, pages[0]), *slides]
    body, contents = [], []
    for i, s in enumerate(slides, 1):
        body.append(f'<section class="slide {s["kind"]}" id="{i}" aria-label="Slide {i} of {len(slides)}"><div class="content">{clean(s["body"])}</div>'
                    f'<footer><a href="{address}/{s["page"]}.html">{html.escape(caption)}</a><span>{i}</span></footer></section>')
        contents.append(f'<li class="{s["kind"].split()[0]}"><a href="#{i}">{html.escape(html.unescape(s["title"]))}</a></li>')
    mathjax = Path(importlib.util.find_spec('sphinx-mathjax-offline').origin).parent/'static/mathjax/tex-svg-full.js'
    parts = {'title': f'{caption} · {cfg["lib_name"]}', 'language': 'en', 'body': '\n'.join(body), 'contents': '\n'.join(contents),
             'style': f':root {{ {colours("light")} }}\nhtml[data-theme="dark"] {{ {colours("dark")} }}\n' + (ASSETS/'slides.css').read_text(encoding='utf-8'),
             'script': (ASSETS/'slides.js').read_text(encoding='utf-8'), 'mathjax': mathjax.read_text(encoding='utf-8').replace('</script', '<\\/script')}
    page = (ASSETS/'deck.html').read_text(encoding='utf-8')
    return re.sub(r'\{\{(\w+)\}\}', lambda m: parts[m[1]], page), len(slides)

def fresh(deck, pages):
    "Whether a deck is younger than everything that it is made from."
    sources = [*(HTML/f'{p}.html' for p in pages), *ASSETS.iterdir(), *Path(__file__).parent.glob('*.py'), ROOT/'book/_static/physattn.css']
    return deck.exists() and deck.stat().st_mtime > max(f.stat().st_mtime for f in sources)

def main(wanted):
    OUT.mkdir(parents=True, exist_ok=True)
    for part, (caption, pages) in decks().items():
        deck = OUT/f'{part}.html'
        if wanted and part not in wanted or fresh(deck, pages): continue
        page, count = render(part, caption, pages)
        deck.write_text(page, encoding='utf-8')
        print(f'{count:4d} slides  {deck.relative_to(ROOT)}', flush=True)

if __name__ == '__main__': main(sys.argv[1:])
