"""Teach Jupyter Book to read nbdev notebooks.

nbdev says what a cell is for with a comment (`#| export`), Jupyter Book with a tag (`remove-cell`).
`read` is the one place where the first is turned into the second; the notebook on disk is never changed."""
import ast, hashlib, importlib.util, re
from configparser import ConfigParser
from functools import lru_cache
from pathlib import Path

import nbformat

LIB, ROOT = 'physattn', Path(__file__).resolve().parents[2]
DIRECTIVE = re.compile(r'^\s*#\s*\|\s*(.+?)\s*$')
MAGIC = re.compile(r'^([ \t]*)[%!].*$', flags=re.M)
TAGS = {'hide': ['remove-cell'], 'default_exp': ['remove-cell'], 'export': ['export'], 'exporti': ['export'],
        'hide_input': ['hide-input'], 'hide_output': ['hide-output'],
        'eval: false': ['skip-execution'], 'slow': ['skip-execution'],
        'exercise': ['exercise', 'skip-execution'], 'solution': ['solution', 'hide-input']}
PROMPTS = {'solution': 'Show the solution', 'hide_input': 'How this is made'}
FIGURE = {'label': 'name', 'fig-cap': 'caption'}

def settings():
    "What settings.ini says about the project."
    parser = ConfigParser(delimiters=['='])
    parser.read(ROOT/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']

# --- reading a notebook

def split(source):
    "Separate the leading directives of a cell from its code."
    lines, directives = source.splitlines(), []
    while lines and (m := DIRECTIVE.match(lines[0])): directives.append(m[1]); lines.pop(0)
    return directives, '\n'.join(lines)

def tags(directives):
    "The Jupyter Book tags that mean what these nbdev directives mean."
    keys = [d if d in TAGS else d.split()[0] for d in directives]
    return [t for k in keys for t in TAGS.get(k, [])]

def figure(directives):
    "Name and caption of the figure that a cell draws: `label: fig-x` and `fig-cap: \"...\"`, taken literally, so that TeX needs no escapes."
    pairs = (d.partition(':')[::2] for d in directives)
    return {FIGURE[k]: re.sub(r'''^(["'])(.*)\1$''', r'\2', v.strip()) for k, v in pairs if k in FIGURE}

def code(nb):
    "The code of each code cell, as Python that can be parsed."
    return [MAGIC.sub(r'\1pass', split(c.source)[1]) for c in nb.cells if c.cell_type == 'code']

def read(text):
    "Read an nbdev notebook the way Jupyter Book wants it."
    nb = nbformat.reads(text, as_version=4)
    stamp = hashlib.sha256(b''.join(f.read_bytes() for f in depends(nb))).hexdigest()[:16]
    for c in nb.cells:
        if c.cell_type != 'code': continue
        directives, c.source = split(c.source)
        if not c.source.strip(): directives.append('hide')
        if ts := sorted({*c.metadata.get('tags', []), *tags(directives)}): c.metadata['tags'] = ts
        show = next((prompt for d, prompt in PROMPTS.items() if d in directives), 'Show the code')
        c.metadata['mystnb'] = {'code_prompt_show': show, 'code_prompt_hide': 'Hide the code'}
        if f := figure(directives): c.metadata['mystnb']['figure'] = f
    # The execution cache knows only the notebook: a last, invisible cell tells it about the library.
    nb.cells.append(nbformat.v4.new_code_cell(f'# depends on {stamp}', id='depends', metadata={'tags': ['remove-cell']}))
    return nb

# --- what a notebook depends on

def imports(tree, package=()):
    "The library files that a piece of code imports; `package` resolves its relative imports."
    for n in ast.walk(tree):
        if isinstance(n, ast.Import): names = [a.name.split('.') for a in n.names]
        elif isinstance(n, ast.ImportFrom):
            base = [*package[:len(package) - n.level + 1]] if n.level else []
            base += (n.module or '').split('.')
            names = [base] + [base + [a.name] for a in n.names]
        else: continue
        for parts in names:
            path = ROOT.joinpath(*filter(None, parts))
            if parts[0] == LIB: yield from (f for f in (path.with_suffix('.py'), path/'__init__.py') if f.exists())

def results(tree):
    "The stored results that a piece of code names in a string."
    names = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and re.fullmatch(r'\w+(/[\w-]+)+', n.value)}
    yield from (f for name in names for f in ((ROOT/'results'/name).with_suffix(s) for s in ('.json', '.safetensors')) if f.exists())

@lru_cache(None)
def needs(source, package=()):
    "The library files and stored results that a piece of code names itself."
    try: tree = ast.parse(source)
    except SyntaxError: return set()  # an exercise may be unfinished code
    return {*imports(tree, package), *results(tree)}

def depends(nb):
    "Every library file and stored result that a notebook depends on, directly or not."
    todo, seen = {f for source in code(nb) for f in needs(source)}, set()
    while todo:
        seen.add(f := todo.pop())
        if f.suffix == '.py': todo |= needs(f.read_text(encoding='utf-8'), f.relative_to(ROOT).parent.parts) - seen
    return sorted(seen)

def note_dependencies(app, docname, source):
    "Reread a page when this file, or a library file or result that it uses, has changed."
    app.env.note_dependency(__file__)
    if str(app.env.doc2path(docname)).endswith('.ipynb'):
        for f in depends(nbformat.reads(source[0], as_version=4)): app.env.note_dependency(str(f))

def modules(package):
    "The modules that notebooks export into `package`, in the order of the notebooks."
    order = {}
    for nb in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if m := re.search(r'default_exp ([\w.]+)', nb.read_text(encoding='utf-8')): order[f'{LIB}.{m[1]}'] = nb
    return [m for m in order if m == package or m.startswith(package + '.')]

# --- the pages

def configure(app, config):
    "Take from settings.ini what it alone decides; the buttons open the release, not the latest commit."
    cfg = settings()
    config.project = config.html_title = cfg['lib_name']
    config.author, config.copyright = cfg['author'], cfg['copyright']
    config.version = config.release = cfg['version']
    config.html_theme_options['repository_branch'] = 'v' + cfg['version']
    config.html_theme_options['logo'] = {'text': cfg['lib_name']}
    config.mathjax_path = 'mathjax/tex-chtml-full.js'

def copy_mathjax(app, exception):
    "Serve MathJax from the book itself: one script and its fonts."
    from sphinx.util.fileutil import copy_asset
    if exception or app.builder.format != 'html': return
    source = Path(importlib.util.find_spec('sphinx-mathjax-offline').origin).parent/'static/mathjax'
    for part in ('tex-chtml-full.js', 'output/chtml/fonts/woff-v2'):
        copy_asset(source/part, (Path(app.outdir)/'_static/mathjax'/part) if (source/part).is_dir() else Path(app.outdir)/'_static/mathjax')

def drop_thebe(app, pagename, templatename, context, doctree):
    "sphinx-thebe, which nothing here uses, writes its configuration twice: browsers report it as an error."
    def thebe(f): return 'thebe' in str(getattr(f, 'filename', f) or '') + str(getattr(f, 'attributes', {}).get('body', ''))
    for key in ('script_files', 'css_files'): context[key] = [f for f in context.get(key, []) if not thebe(f)]

def load_players(app, pagename, templatename, context, doctree):
    "A figure to play with, `data-play=\"name\"`, brings its own script, on the pages where it stands, behind what all of them share."
    names = sorted(set(re.findall(r'data-play="(\w+)"', context.get('body', ''))))
    for name in ['play', *names] if names else []: app.add_js_file(f'{name}.js', loading_method='defer')

def patch_codeautolink():
    "Two cases that it does not expect."
    from sphinx_codeautolink import extension
    from sphinx_codeautolink.extension.block import CodeBlockAnalyser
    from sphinx_codeautolink.extension.resolve import CouldNotResolve, resolve_location

    def resolve(chain, inventory):
        try: return resolve_location(chain, inventory)
        except RecursionError: raise CouldNotResolve from None
    # A class inside a class, such as `Config`, without a page of its own.
    extension.resolve_location = resolve
    # Exercises and proofs, which are sections without a title.
    CodeBlockAnalyser.depart_section = lambda self, node: self.title_stack.pop() if self.title_stack else None

def setup(app):
    patch_codeautolink()
    app.connect('config-inited', configure)
    app.connect('source-read', note_dependencies)
    app.connect('html-page-context', load_players)
    app.connect('html-page-context', drop_thebe, priority=900)
    app.connect('build-finished', copy_mathjax)
    return {'parallel_read_safe': True}
