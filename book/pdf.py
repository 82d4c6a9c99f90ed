"""Print the built book, or some of its parts: pdf.py [part ...]. `SOLUTIONS=1` in the environment prints the solutions too.

All pages become one document, in which every link leads to another place of the same document. It is printed twice: the
first time tells on which pages the sections begin, and the second has these numbers in its table of contents."""
import html, os, re, sys
from pathlib import Path

from pygments.formatters import HtmlFormatter

from browser import chromium
from pages import HTML, ROOT, article, whole

from nbdev_book import settings
from teaching import chapters

OUT = ROOT/'book/_build/pdf'
#: Width of the text on paper, in pixels: what is wider gets smaller.
WIDTH = round((210 - 2*20)/25.4*96)
SHORT = 22
FIT = """() => { for (const e of document.querySelectorAll('mjx-container[display="true"], table')) {
  const room = e.parentElement.clientWidth - (e.matches('table') ? 0 : 60), wide = e.matches('table') ? e.scrollWidth : Math.max(...[...e.children].map(c => c.getBoundingClientRect().width));
  if (wide > room) e.style.fontSize = `${Math.max(.55, room/wide)*100*(e.matches('table') ? .88 : 1)}%`;
} }"""

NUMBER = "pages => document.querySelectorAll('nav a').forEach(a => { a.dataset.page = pages[a.hash.slice(1)] })"
FOOTER = '<div style="width:100%;text-align:center;font:8pt sans-serif;color:#5d6875"><span class="pageNumber"></span></div>'

def slug(name):
    return name.replace('/', '-')

def anchor(here, link):
    "Where a link of the site leads in the document, or None if it leaves it."
    if re.match(r'[a-z]+:', link): return None
    path, _, label = link.partition('#')
    page = os.path.normpath(os.path.join(os.path.dirname(here), path))[:-len('.html')] if path else here
    return f'#{slug(page)}' + (f'--{label}' if label else '')

def printed(name, included, solutions):
    "A page as a part of the document, and its title. A link to a page that is not `included` becomes plain text."
    page = article(name)
    for e in page.select('noscript, .tag_hide-input:not(.tag_solution) details, .tag_remove-cell' + ('' if solutions else ', .solution, .tag_solution')): e.decompose()
    for e in page.select('details'): e['open'] = ''
    for e in page.select('.physattn-play'):
        e.name, e['class'], e.string = 'p', 'playable', 'Here the book on the screen has a figure to play with.'
    for e in page.select('[id]'): e['id'] = f"{slug(name)}--{e['id']}"
    for e in page.select('a[href]'):
        target = anchor(name, e['href'])
        if not target: e['class'] = 'external'
        elif target[1:].partition('--')[0] in included: e['href'] = target
        else: del e['href']
    for e in page.select('img[src]'):
        if not re.match(r'[a-z]+:', e['src']): e['src'] = (HTML/name).parent.joinpath(e['src']).resolve().as_uri()
    for e in page.select('.cell_input'):
        if sum(m.count('\n') for m in re.findall(r'<pre>.*?</pre>', whole(str(e)), flags=re.S)) <= SHORT: e['class'] = [*e['class'], 'short']
    page['id'] = slug(name)
    title = page.h1.decode_contents()
    return title, re.sub(r'(<pre>.*?</pre>)', lambda m: re.sub(r'</?a\b[^>]*>', '', m[0]), whole(str(page)), flags=re.S)

def compose(parts, solutions):
    "The document."
    cfg = settings()
    contents, body, included = [], [], {slug(name) for pages in parts.values() for name in pages}
    def entry(target, title, kind=''): contents.append(f'<li class="{kind}"><a href="#{target}" data-page=""><span>{title}</span></a></li>')
    for caption, pages in parts.items():
        if caption:
            entry(f'part-{slug(pages[0])}', html.escape(caption), 'of-part')
            body.append(f'<div class="part" id="part-{slug(pages[0])}">{html.escape(caption)}</div>')
        for name in pages:
            title, text = printed(name, included, solutions)
            entry(slug(name), title)
            body.append(text)
    name, _, subtitle = cfg['title'].partition(': ')
    cover = f'<div class="cover"><h1>{name}</h1><p>{subtitle}</p><p class="about">Version {cfg["version"]}. {cfg["author"]}. {cfg["git_url"]}</p></div>'
    style = HtmlFormatter(style='a11y-high-contrast-light').get_style_defs('.highlight')
    figures = (ROOT/'book/_static/physattn.css').read_text(encoding='utf-8').split('html[data-theme="dark"]')[0]
    return f'''<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>{cfg["title"]}</title><style>{style}</style><style>{figures}</style>
<style>{(Path(__file__).parent/"pdf.css").read_text(encoding="utf-8")}</style>
<script>window.MathJax = {{options: {{processHtmlClass: "tex2jax_process|mathjax_process|math|output_area", ignoreHtmlClass: "tex2jax_ignore", enableMenu: false}}}}</script>
<script src="{(HTML/"_static/mathjax/tex-chtml-full.js").as_uri()}"></script></head>
<body>{cover}<nav><h1>Contents</h1><ol>{"".join(contents)}</ol></nav>{"".join(body)}</body></html>'''

def starts(path):
    "On which page of a PDF each named place lies."
    from pypdf import PdfReader
    pdf = PdfReader(path)
    return {name.lstrip('/'): pdf.get_destination_page_number(place) + 1 for name, place in pdf.named_destinations.items()}

def pack(path):
    "Compress what Chromium leaves plain: the structure by which a screen reader finds its way, most of a large document."
    import pikepdf
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        pdf.save(path, object_stream_mode=pikepdf.ObjectStreamMode.generate)

def listed(entries):
    "All pages of a part of the table of contents, with those below them."
    return [name for e in entries for name in (e['file'], *listed(e.get('sections', [])))]

def main(wanted):
    import yaml
    toc = yaml.safe_load((ROOT/'book/_toc.yml').read_text(encoding='utf-8'))
    parts = {} if wanted else {'': [toc['root']]}
    parts |= {p['caption']: pages for p in toc['parts'] if (pages := listed(p['chapters'])) and (not wanted or pages[0].partition('/')[0] in wanted)}
    if list(parts) in ([], ['']): sys.exit(f'no part {" ".join(wanted)}: there are ' + ', '.join(sorted({pages[0].partition("/")[0] for pages in chapters().values() if "/" in pages[0]})))
    solutions = os.environ.get('SOLUTIONS') == '1'
    OUT.mkdir(parents=True, exist_ok=True)
    paper = OUT/('-'.join([settings()['lib_name'], *wanted, *(['with-solutions'] if solutions else [])]) + '.pdf')
    draft = OUT/'book.html'
    draft.write_text(compose(parts, solutions), encoding='utf-8')
    with chromium() as browser:
        tab = browser.new_page(viewport={'width': WIDTH, 'height': 1000})
        tab.set_default_timeout(1_800_000)
        tab.emulate_media(media='print')
        tab.goto(draft.as_uri(), wait_until='load')
        tab.evaluate('async () => { await MathJax.startup.promise; await document.fonts.ready }')
        tab.evaluate(FIT)
        for _ in range(2):
            tab.pdf(path=paper, prefer_css_page_size=True, print_background=True, outline=True, tagged=True, display_header_footer=True,
                    header_template='<span></span>', footer_template=FOOTER)
            tab.evaluate(NUMBER, starts(paper))
    pack(paper)
    print(f'{paper.relative_to(ROOT)}: {paper.stat().st_size/1e6:.1f} MB')

if __name__ == '__main__': main(sys.argv[1:])
