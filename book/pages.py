"""The built pages of the book, for whatever is made from them: slides and a PDF."""
import re, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent/'_ext'))
from bs4 import BeautifulSoup

from nbdev_book import ROOT

HTML = ROOT/'book/_build/html'
OPAQUE = re.compile(r'<(svg|pre)\b.*?</\1>', flags=re.S)
#: Figures and listings that were taken out of pages, so that nobody has to parse them: they are most of a page.
kept = []

def _keep(match):
    "Leave a mark; the ids of a figure, which other figures may use too, become its own."
    kept.append(re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>d{len(kept)}-', match[0]) if match[1] == 'svg' else match[0])
    return f'<i class="kept {match[1]}">{len(kept) - 1}</i>'

def article(name):
    "The text of a page, without buttons and scripts."
    path = HTML/f'{name}.html'
    if not path.exists(): sys.exit(f'{path.relative_to(ROOT)} is missing: build the book first, with make html')
    text = path.read_text(encoding='utf-8')
    text = text[text.index('<article class="bd-article"'):text.index('</article>')] + '</article>'
    found = BeautifulSoup(OPAQUE.sub(_keep, text), 'html.parser').article
    for e in found.select('script, a.headerlink, button, .physattn-times, .physattn-backlinks'): e.decompose()
    return found

def whole(html):
    "Put figures and listings back."
    return re.sub(r'<i class="kept \w+">(\d+)</i>', lambda m: kept[int(m[1])], html)

def shape(figure):
    "Width over height of the first drawing in a figure."
    mark = figure.select_one('i.svg')
    box = mark and re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', kept[int(mark.text)])
    return float(box[1])/float(box[2]) if box else 1.6

def colours(theme):
    "What the style sheet of the book says about colours."
    css = (ROOT/'book/_static/physattn.css').read_text(encoding='utf-8')
    return ' '.join(re.findall(r'--physattn-\w+: #\w+;', re.search(rf'html\[data-theme="{theme}"\] \{{(.*?)\}}', css, flags=re.S)[1]))
