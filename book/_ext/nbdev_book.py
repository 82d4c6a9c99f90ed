"""Teach Jupyter Book to read nbdev notebooks.

nbdev says what a cell is for with a comment (`#| export`), Jupyter Book with a tag (`remove-cell`).
`read` is the one place where the first is turned into the second; the notebook on disk is never changed."""
import ast, hashlib, importlib, importlib.util, inspect, re
from configparser import ConfigParser
from functools import lru_cache
from pathlib import Path
from typing import get_type_hints

import nbformat
from sphinx.util.fileutil import copy_asset
from sphinx.util.inspect import stringify_signature

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
        if not c.source.strip() or 'nbdev_export(' in c.source: directives.append('hide')
        if ts := sorted({*c.metadata.get('tags', []), *tags(directives)}): c.metadata['tags'] = ts
        options = {'figure': figure(directives)} if figure(directives) else {}
        c.metadata['mystnb'] = options | {'code_prompt_show': next((p for d, p in PROMPTS.items() if d in directives), 'Show the code'), 'code_prompt_hide': 'Hide the code'}
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
    "Reread a chapter when a library file or result that it uses has changed."
    if str(app.env.doc2path(docname)).endswith('.ipynb'):
        for f in depends(nbformat.reads(source[0], as_version=4)): app.env.note_dependency(str(f))

# --- the reference pages

def modules(package):
    "The modules that notebooks export into `package`, in the order of the notebooks."
    order = {}
    for nb in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if m := re.search(r'default_exp ([\w.]+)', nb.read_text(encoding='utf-8')): order[f'{LIB}.{m[1]}'] = nb
    return [m for m in order if m == package or m.startswith(package + '.')]

MARKUP = re.compile(r':[\w:]+:`[^`]+`|``[^`]+``|`([^`]+)`')

def plain_docstring(app, what, name, obj, options, lines):
    "A docstring is plain text with `code` in it; reStructuredText would read more into its bars, stars and underscores."
    def escape(text): return re.sub(r'([|*])|(?<=\w)(_)(?!\w)', r'\\\g<0>', text)
    for i, line in enumerate(lines):
        out, end = '', 0
        for m in MARKUP.finditer(line):
            out += escape(line[end:m.start()]) + (f'``{m[1]}``' if m[1] else m[0]) + ('\\ ' if line[m.end():m.end() + 1].isalnum() else '')
            end = m.end()
        lines[i] = out + escape(line[end:])
    if what in ('data', 'attribute', 'property') and lines: lines[0] = ': ' + lines[0]  # or napoleon takes what stands before a colon for a type

def plain_signature(app, what, name, obj, options, signature, returns):
    "The types of a command's arguments without what only the command line needs to know."
    if not signature or 'Annotated[' not in signature: return None
    hints, found = get_type_hints(obj), inspect.signature(obj)
    params = [p.replace(annotation=hints.get(n, p.empty)) for n, p in found.parameters.items()]
    return stringify_signature(found.replace(parameters=params), unqualified_typehints=True), returns

def api(module):
    "The reference of one module, which autodoc writes."
    return f'## {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n   :undoc-members:\n```\n'

def commands(command, name):
    "The reference of a command and its subcommands: usage, what it does, and a row for each argument and option."
    context = command.make_context(name, [], resilient_parsing=True)
    subcommands = getattr(command, 'commands', {})
    usage = ' '.join([name, *command.collect_usage_pieces(context)])
    rows = [(', '.join(f'`{o}`' for o in (p.opts + p.secondary_opts if p.param_type_name == 'option' else [p.name.upper()])),
             (p.help or '').replace('|', '\\|'), f'`{p.default}`' if isinstance(p.default, (str, int, float, Path)) and not isinstance(p.default, bool) else '')
            for p in command.get_params(context) if getattr(p, 'help', None) and p.name not in ('help', 'install_completion', 'show_completion')]
    table = ['| | | default |', '|---|---|---|', *('| ' + ' | '.join(row) + ' |' for row in rows), ''] if rows else []
    yield '\n'.join([f'### `{name}`', '', '```text', usage, '```', '', command.help or '', '', *table])
    for sub, c in subcommands.items(): yield from commands(c, f'{name} {sub}')

def write_reference(app, docname, source):
    "Replace an `api` block, which names a module or a package, and a `commands` block, which names a typer application, by what they document."
    def replace(match):
        kind, target = match.groups()
        if kind == 'api': return '\n'.join(map(api, modules(target)))
        import typer
        for f in (ROOT/LIB).rglob('cli.py'): app.env.note_dependency(str(f))
        return '\n'.join(commands(typer.main.get_command(importlib.import_module(target).app), LIB))
    source[0] = re.sub(r'^```\{(api|commands)\} ([\w.]+)\n```$', replace, source[0], flags=re.M)

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
    if exception or app.builder.format != 'html': return
    source = Path(importlib.util.find_spec('sphinx-mathjax-offline').origin).parent/'static/mathjax'
    for part in ('tex-chtml-full.js', 'output/chtml/fonts/woff-v2'):
        copy_asset(source/part, (Path(app.outdir)/'_static/mathjax'/part) if (source/part).is_dir() else Path(app.outdir)/'_static/mathjax')

def drop_thebe(app, pagename, templatename, context, doctree):
    "sphinx-thebe, which nothing here uses, writes its configuration twice: browsers report it as an error."
    def thebe(f): return 'thebe' in str(getattr(f, 'filename', f) or '') + str(getattr(f, 'attributes', {}).get('body', ''))
    for key in ('script_files', 'css_files'): context[key] = [f for f in context.get(key, []) if not thebe(f)]

def load_players(app, pagename, templatename, context, doctree):
    "A figure to play with, `data-play=\"name\"`, brings its own script, on the pages where it stands."
    for name in sorted(set(re.findall(r'data-play="(\w+)"', context.get('body', '')))): app.add_js_file(f'{name}.js', loading_method='defer')

def setup(app):
    from sphinx_codeautolink.extension.block import CodeBlockAnalyser
    # Exercises and proofs are sections without a title, which codeautolink does not expect.
    CodeBlockAnalyser.depart_section = lambda self, node: self.title_stack.pop() if self.title_stack else None
    app.connect('config-inited', configure)
    app.connect('source-read', note_dependencies)
    app.connect('source-read', write_reference)
    app.connect('autodoc-process-docstring', plain_docstring, priority=400)
    app.connect('autodoc-process-signature', plain_signature)
    app.connect('html-page-context', load_players)
    app.connect('html-page-context', drop_thebe, priority=900)
    app.connect('build-finished', copy_mathjax)
    return {'parallel_read_safe': True}
