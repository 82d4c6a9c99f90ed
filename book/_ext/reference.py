"""Write the reference: every public name of the library, every command of the command line.

A page asks for it with a block: `api` names a module or a package, `commands` a module with a typer application."""
import importlib, inspect, re
from pathlib import Path
from typing import get_type_hints

import typer
from sphinx.util.inspect import stringify_signature

from nbdev_book import LIB, ROOT, modules

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
    return stringify_signature(found.replace(parameters=params, return_annotation=inspect.Signature.empty), unqualified_typehints=True), returns

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
    "Replace the blocks of a page by what they ask for."
    def replace(match):
        kind, target = match.groups()
        for f in (ROOT/LIB/'_modidx.py', *(ROOT/LIB).rglob('cli.py')): app.env.note_dependency(str(f))
        if kind == 'api': return '\n'.join(map(api, modules(target)))
        return '\n'.join(commands(typer.main.get_command(importlib.import_module(target).app), LIB))
    source[0] = re.sub(r'^```\{(api|commands)\} ([\w.]+)\n```$', replace, source[0], flags=re.M)

def setup(app):
    app.connect('source-read', write_reference)
    app.connect('autodoc-process-docstring', plain_docstring, priority=400)
    app.connect('autodoc-process-signature', plain_signature)
    return {'parallel_read_safe': True}
