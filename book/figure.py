"Print a figure of the executed book as an SVG file that follows light and dark mode by itself: figure.py fig-integrators > book/_static/readme.svg"
import re, sys
from pathlib import Path

BOOK = Path(__file__).parent
sys.path.insert(0, str(BOOK/'_ext'))
from jupyter_cache import get_cache
from nbdev_book import ROOT, read

def drawn(label):
    "The inline SVG of the cell with this label."
    cache = get_cache(str(ROOT/'.cache/notebooks'))
    for path in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if f'label: {label}' not in (text := path.read_text(encoding='utf-8')): continue
        for cell in cache.merge_match_into_notebook(read(text))[1].cells:
            if cell.metadata.get('mystnb', {}).get('figure', {}).get('name') != label: continue
            return re.search('<svg.*</svg>', ''.join(o.get('data', {}).get('text/html', '') for o in cell.outputs), flags=re.S)[0]
    sys.exit(f'no figure {label} in nbs/')

def colours(theme):
    "What the style sheet of the book says about the colours of figures."
    css = (BOOK/'_static/physattn.css').read_text(encoding='utf-8')
    return ''.join(re.findall(r'--physattn-\w+: #\w+;', re.search(rf'html\[data-theme="{theme}"\] \{{(.*?)\}}', css, flags=re.S)[1]))

if __name__ == '__main__':
    style = f'<style>svg{{{colours("light")}}}@media (prefers-color-scheme:dark){{svg{{{colours("dark")}}}}}</style>'
    print(re.sub('<svg[^>]*>', lambda m: m[0] + style, drawn(sys.argv[1]), count=1))
