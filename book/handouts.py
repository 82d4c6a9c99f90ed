"""Write a notebook for students from every page that has code: stubs, no solutions, and plain Markdown.

The notebooks of the book speak to Jupyter Book and nbdev. A handout speaks to a student in Jupyter or on Colab: references
are numbers and links between the handouts, a caption stands below its figure, and nothing is left that only the book understands."""
import ast, os, re, shutil, sys
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent/'_ext'))
import nbformat
from nbformat.v4 import new_markdown_cell
from pybtex.database import parse_file
from pybtex.richtext import Text

from nbdev_book import MAGIC, ROOT, figure, imports, settings, split
from teaching import BLOCK, chapters, levels, mark, option, without_solutions

OUT = ROOT/'book/_build/handouts'
#: Packages whose modules are called otherwise.
MODULE = {'pillow': 'PIL', 'tensorflow-cpu': 'tensorflow'}
NOT_FOR_STUDENTS = {'bench', 'dev', 'book', 'genomics'}
LABEL = re.compile(r'^\(([\w:-]+)\)=[ \t]*\n', flags=re.M)
MATH = re.compile(r'^```\{math\}\n:label: *(\S+)\n(.*?)^```$|^\$\$(?!\s*\$)((?:(?!\$\$).)*?)\$\$ *\((eq-[\w-]+)\)', flags=re.S | re.M)
TABLE = re.compile(r'^```\{list-table\} *(.*)\n:name: *(\S+)\n(?::.*\n)*\n((?:(?!```).*\n)*)```$', flags=re.M)
ROLE = re.compile(r'\{([\w:]+)\}`([^`]+)`')

def pages():
    "The pages that are notebooks, in the order of the book, by name; not the front page."
    return {name: path for part in chapters().values() for name in part if (path := ROOT/'nbs'/f'{name}.ipynb').exists()}

@lru_cache(None)
def titles():
    "Where each label of the book stands, and the title there: label -> (page, title)."
    found = {}
    for page, path in pages().items():
        text = '\n\n'.join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'markdown') + '\n'
        found[page] = page, re.search(r'^# (.+)$', text, flags=re.M)[1]
        found |= {m[1]: (page, m[2]) for m in re.finditer(r'^\(([\w:-]+)\)=\s+#+ (.+)$', text, flags=re.M)}
        found |= {option(m[4], 'label'): (page, m[3].strip()) for m in BLOCK.finditer(text) if m[2] == 'exercise'}
        found |= {m[1] or m[4]: (page, None) for m in MATH.finditer(text)}
        found |= {m[2]: (page, None) for m in TABLE.finditer(text)}
        found |= {f['name']: (page, None) for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code' and (f := figure(split(c.source)[0]))}
    return found

@lru_cache(None)
def bibliography():
    return parse_file(str(ROOT/'book/references.bib')).entries

def online(page=''):
    "The address of a page of the book."
    return settings()['doc_host'] + settings()['doc_baseurl'] + '/' + (page and f'{page}.html')

def plain(latex):
    "What a name or a title says, without its markup."
    return str(Text.from_latex(latex))

def author_year(key):
    "Who, and when: `Vaswani et al.`, `2017`."
    entry = bibliography()[key]
    names = [plain(' '.join(p.prelast_names + p.last_names)) for p in entry.persons.get('author', [])] or [key]
    return names[0] if len(names) == 1 else ' and '.join(names) if len(names) == 2 else f'{names[0]} et al.', entry.fields.get('year', 'n.d.')

def reference(key):
    "A line of the list of references."
    fields, (who, year) = bibliography()[key].fields, author_year(key)
    title = plain(fields.get('title', key))
    url = fields.get('url') or (f"https://doi.org/{fields['doi']}" if 'doi' in fields else f"https://arxiv.org/abs/{fields['eprint']}" if 'eprint' in fields else '')
    return f'{who} ({year}). ' + (f'[{title}]({url}).' if url else f'{title}.')

class Translation:
    "Markdown of one page of the book as plain Markdown."

    def __init__(self, page, cells):
        self.page, self.cited = page, []
        text = '\n\n'.join(c.source for c in cells if c.cell_type == 'markdown') + '\n'
        equations = [m[1] or m[4] for m in MATH.finditer(text)]
        figures = [f['name'] for c in cells if c.cell_type == 'code' and (f := figure(split(c.source)[0]))]
        tables = [m[2] for m in TABLE.finditer(text)]
        self.number = {label: i for labels in (equations, figures, tables) for i, label in enumerate(labels, 1)}
        self.exercises = 0

    def link(self, target, text=None):
        "A link to the handout of a page or label, or to the book where there is none."
        page, title = titles().get(target, (None, None))
        if page == self.page and title and not text: return f'*{title}*'
        if page: return f'[{text or title or titles()[page][1]}]({os.path.relpath(page, os.path.dirname(self.page))}.ipynb)'
        return f'[{text or "the book"}]({online(target if (ROOT/"nbs"/f"{target}.md").exists() else "")})'

    def role(self, match):
        kind, content = match.groups()
        named = re.fullmatch(r'(.+?)\s*<([^>]+)>', content, flags=re.S)
        text, target = (named[1], named[2]) if named else (None, content)
        if kind.startswith('cite'):
            keys = [k.strip() for k in content.split(',')]
            self.cited += [k for k in keys if k not in self.cited]
            who = [author_year(k) for k in keys]
            return ' and '.join(f'{a} ({y})' for a, y in who) if kind == 'cite:t' else '(' + '; '.join(f'{a}, {y}' for a, y in who) + ')'
        if kind == 'doc':
            return self.link(os.path.normpath(os.path.join('' if target[0] == '/' else os.path.dirname(self.page), target.lstrip('/'))), text)
        if kind == 'eq': return f'({self.number[target]})' if target in self.number else f'of {self.link(target)}'
        if kind == 'numref':
            what = 'Table' if target.startswith('tab-') else 'Figure'
            return f'{what} {self.number[target]}' if target in self.number else f'a {what.lower()} of {self.link(target)}'
        return self.link(target, text) if kind == 'ref' else f'`{content}`'

    def block(self, match):
        self.exercises += 1
        level = levels().get(option(match[4], 'label'))
        return f'### Exercise {self.exercises}: {match[3].strip()}' + (f' {mark(level)}' if level else '') + f'\n\n{match[5].strip()}\n'

    def table(self, match):
        rows = [re.split(r'\n  - ', row.strip()) for row in re.split(r'^\* - ', match[3], flags=re.M)[1:]]
        lines = ['| ' + ' | '.join(' '.join(cell.split()) for cell in row) + ' |' for row in rows]
        lines.insert(1, '|' + '---|'*len(rows[0]))
        return f'**Table {self.number[match[2]]}.** {match[1]}\n\n' + '\n'.join(lines)

    def __call__(self, text):
        text = LABEL.sub('', text + '\n')
        text = TABLE.sub(self.table, text)
        text = re.sub(r'^```\{raw\} html\n(.*?)^```$', r'\1', text, flags=re.S | re.M)
        text = re.sub(r'<div class="physattn-play".*?</div>', f'*Here the book has [a figure to play with]({online(self.page)}).*', text, flags=re.S)
        text = BLOCK.sub(self.block, text)
        text = MATH.sub(lambda m: f'$$\n{(m[2] or m[3]).strip()} \\tag{{{self.number[m[1] or m[4]]}}}\n$$', text)
        text = re.sub(r'^```\{math\}\n(.*?)^```$', r'$$\n\1$$', text, flags=re.S | re.M)
        return ROLE.sub(self.role, text).strip()

def extras(cells):
    "The extras of the library that the code of a page itself imports."
    wanted = {key[6:]: {MODULE.get(n, n).replace('-', '_') for r in value.split() for n in [re.split(r'[<>=\[]', r)[0].lower()]}
              for key, value in settings().items() if key.startswith('extra_') and key[6:] not in NOT_FOR_STUDENTS}
    tree = ast.parse('\n'.join(MAGIC.sub(r'\1pass', c.source) for c in cells if c.cell_type == 'code' and 'exercise' not in split(c.source)[0]))
    used = {a.name.split('.')[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    used |= {(n.module or '').split('.')[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    return ['book', *sorted(e for e, modules in wanted.items() if used & modules)]

def handout(page, path):
    "The notebook for students of a page of the book."
    nb = without_solutions(nbformat.read(path, as_version=4))
    translate, cells = Translation(page, nb.cells), []
    needs = ','.join(extras(nb.cells))
    for c in nb.cells:
        c.metadata = {}
        if c.cell_type == 'markdown':
            c.source = translate(c.source)
            if c.source: cells.append(c)
            continue
        directives, c.source = split(c.source)
        if 'google.colab' in c.source: c.source = c.source.replace('[book]', f'[{needs}]')
        if any(d in ('hide', 'hide_input') for d in directives): c.metadata = {'jupyter': {'source_hidden': True}}
        if 'exercise' in directives: c.source = f'# Your turn.\n{c.source}'
        if not c.source.strip(): continue
        if 'eval: false' in directives or 'slow' in directives: c = new_markdown_cell(f'```python\n{c.source}\n```', id=c.id)
        cells.append(c)
        if f := figure(directives):
            cells.append(new_markdown_cell(f"**Figure {translate.number[f['name']]}.** {translate(f['caption'])}", id=f'{c.id[:24]}-caption'))
    about = f'*A handout of the book {settings()["lib_name"]}; the page itself, with its figures, is [{titles()[page][1]}]({online(page)}). Run the cells in order, from the first.*'
    nb.cells = [cells[0], new_markdown_cell(about, id='about'), *cells[1:]]
    if translate.cited: nb.cells.append(new_markdown_cell('## References\n\n' + '\n\n'.join(map(reference, sorted(translate.cited))), id='references'))
    return nb

README = """Handouts of {name} {version}
{line}

One notebook for each page of the book, with its exercises and without their solutions. They run in Jupyter, in this order
or another: no notebook needs what another one has computed. Python {python} or newer, then once, in a terminal:

    python -m venv physattn-env
    . physattn-env/bin/activate          (Windows: physattn-env\\Scripts\\activate)
    pip install jupyterlab "physattn[book] @ git+{git}@v{version}"
    jupyter lab

Some pages need more: their first code cell, which is folded, names it in square brackets. On Colab
that cell installs everything by itself: upload the notebook at https://colab.research.google.com.
"""

def main():
    cfg = settings()
    shutil.rmtree(OUT, ignore_errors=True)
    for page, path in pages().items():
        to = OUT/f'{page}.ipynb'
        to.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(handout(page, path), to)
    title = f"Handouts of {cfg['lib_name']} {cfg['version']}"
    (OUT/'README.txt').write_text(README.format(name=cfg['lib_name'], version=cfg['version'], line='='*len(title), python=cfg['min_python'], git=cfg['git_url']), encoding='utf-8')
    archive = shutil.make_archive(str(OUT), 'zip', OUT.parent, OUT.name)
    print(f'{len(pages())} notebooks: {OUT.relative_to(ROOT)}, {Path(archive).relative_to(ROOT)}')

if __name__ == '__main__': main()
