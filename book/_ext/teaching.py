"""What a teacher needs of the book: exercises marked by level and listed by it, and the same pages without solutions.

The levels stand in book/exercises.yml. A page asks for the list with a block `exercises`. `SOLUTIONS=0` in the
environment leaves the solutions out where pages are written: nothing is executed, or even read, again."""
import os, re
from functools import lru_cache
from pathlib import Path

import nbformat, yaml
from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_exercise.nodes import is_exercise_node, solution_node

from nbdev_book import ROOT, settings, split

TABLE = ROOT/'book/exercises.yml'
BLOCK = re.compile(r'^(`{3,})\{(exercise|solution)\} *([^\n]*)\n((?::[\w-]+:[^\n]*\n)*)(.*?)^\1 *$\n?', flags=re.S | re.M)

@lru_cache(None)
def levels():
    "Level of each exercise, 1 to 3, by its label."
    return {label: level for part in yaml.safe_load(TABLE.read_text(encoding='utf-8')).values() for label, level in part.items()}

def mark(level):
    "Three dots, as many of them full as the level says."
    return '●'*level + '○'*(3 - level)

def option(options, name):
    "An option of a directive, such as `:label: ex-basin`."
    return m[1] if (m := re.search(rf'^:{name}: *(\S+)', options, flags=re.M)) else None

def without_solutions(nb):
    "The notebook with its stubs, and without solutions: neither text nor code."
    for c in nb.cells:
        if c.cell_type == 'markdown': c.source = BLOCK.sub(lambda m: '' if m[2] == 'solution' else m[0], c.source).strip()
    nb.cells = [c for c in nb.cells if c.source and not (c.cell_type == 'code' and 'solution' in split(c.source)[0])]
    return nb

# --- the list

@lru_cache(None)
def chapters():
    "The parts of the table of contents: caption and pages, in order."
    toc = yaml.safe_load((ROOT/'book/_toc.yml').read_text(encoding='utf-8'))
    return {part['caption']: [c['file'] for c in part['chapters']] for part in toc['parts']}

def exercises(page):
    "Label and title of each exercise on a page of the book."
    path = ROOT/'nbs'/f'{page}.ipynb'
    if not path.exists(): return
    for c in nbformat.read(path, as_version=4).cells:
        if c.cell_type == 'markdown':
            yield from ((option(m[4], 'label'), m[3].strip()) for m in BLOCK.finditer(c.source) if m[2] == 'exercise')

def exercise_list():
    "How many exercises of each level a chapter has, then its exercises from the easiest to the hardest."
    found = {caption: sorted((levels()[label], i, title, label, page) for i, page in enumerate(pages) for label, title in exercises(page))
             for caption, pages in chapters().items()}
    found = {caption: rows for caption, rows in found.items() if rows}
    counts = [[sum(row[0] == n for row in rows) for n in (1, 2, 3)] for rows in found.values()]
    lines = [f'| chapter | {mark(1)} | {mark(2)} | {mark(3)} | all |', '|---|--:|--:|--:|--:|']
    lines += [f'| {caption} | {" | ".join(map(str, (*row, sum(row))))} |' for caption, row in zip(found, counts)]
    lines += [f'| all | {" | ".join(map(str, map(sum, zip(*([*row, sum(row)] for row in counts)))))} |']
    for caption, rows in found.items():
        lines += ['', f'## {caption}', '', '| level | exercise | section |', '|---|---|---|']
        lines += [f'| {mark(level)} | {{ref}}`{title} <{label}>` | {{doc}}`/{page}` |' for level, _, title, label, page in rows]
    return '\n'.join(lines)

def write_list(app, docname, source):
    "Replace the block `exercises` of a page by the list; pages for teachers may name an entry of settings.ini as {{entry}}."
    if docname.startswith('teaching/'): source[0] = re.sub(r'\{\{(\w+)\}\}', lambda m: settings()[m[1]], source[0])
    if '```{exercises}' not in source[0]: return
    for path in (__file__, TABLE, ROOT/'book/_toc.yml', *(ROOT/'nbs').rglob('*.ipynb')): app.env.note_dependency(str(path))
    source[0] = re.sub(r'^```\{exercises\}\n```$', lambda m: exercise_list(), source[0], flags=re.M)

# --- the pages

class MarkLevels(SphinxPostTransform):
    "An exercise says how hard it is behind its title, which sphinx-exercise has made before."
    default_priority = 25

    def run(self):
        self.env.note_dependency(str(TABLE))
        for node in self.document.findall(is_exercise_node):
            if level := levels().get(node.get('label')):
                node['classes'].append(f'level-{level}')
                node[0] += [nodes.Text(' '), nodes.abbreviation('', mark(level), explanation=f'level {level} of 3', classes=['level'])]

class DropSolutions(SphinxPostTransform):
    "No solution, and no cell that computes one."
    default_priority = 26

    def run(self):
        if self.config.solutions: return
        for node in [*self.document.findall(lambda n: isinstance(n, solution_node) or 'tag_solution' in getattr(n, 'attributes', {}).get('classes', ()))]:
            node.parent.remove(node)

def choose(app, config):
    "Whether the pages get solutions."
    config.solutions = os.environ.get('SOLUTIONS', '1') != '0'

def hand_out_sources(app, exception):
    "The button that downloads a notebook keeps the secret too."
    if exception or app.builder.format != 'html' or app.config.solutions: return
    for path in (Path(app.outdir)/'_sources').rglob('*.ipynb'): nbformat.write(without_solutions(nbformat.read(path, as_version=4)), path)

def setup(app):
    app.add_config_value('solutions', True, 'html')
    app.add_css_file('teaching.css')
    app.connect('config-inited', choose)
    app.connect('source-read', write_list)
    app.add_post_transform(MarkLevels)
    app.add_post_transform(DropSolutions)
    app.connect('build-finished', hand_out_sources)
    return {'parallel_read_safe': True}
