"""What a reader finds around a page: how long it takes, the words of the glossary at their first use, the index, and the pages that refer to it.

Nothing of this is typed into the pages. Words, formulas and lines of code are counted when a page is read, seconds are those of the execution cache, terms are
those of the glossary, and references are followed backwards."""
import html, re
from functools import lru_cache

from docutils import nodes
from nbdev_book import ROOT
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util.osutil import relative_uri

#: A student reads this many words of a textbook in a minute, and as many for a displayed formula or a line of code as stand here.
WORDS_A_MINUTE, FORMULA, LINE = 180, 20, 6
#: A page is named in the index for a term that its prose has this often.
INDEXED = 4
#: Pages whose own text is about the words of others.
APART = re.compile(r'api/|(index|glossary|notation|genindex|bibliography|cli)$')
TITLE = re.compile(r'<h1>.*?</h1>(\s*<blockquote>.*?</blockquote>)?', flags=re.S)

# --- the words of the glossary

@lru_cache(None)
def terms():
    "Every term of the glossary with the pattern that finds it in a sentence, the longest first."
    page = ROOT/'nbs/glossary.md'
    block = re.search(r'^```\{glossary\}\n(.*?)^```$', page.read_text(encoding='utf-8'), flags=re.S | re.M)[1] if page.exists() else ''
    names = [line.strip() for line in block.splitlines() if line and line[0] not in ' :']
    return {n: re.compile(r'(?<![\w-])' + re.escape(n).replace(r'\ ', r'\s+') + r's?(?![\w-])', flags=re.I) for n in sorted(names, key=len, reverse=True)}

def prose(document):
    "The pieces of running text: paragraphs of sections, without code, formulas, links, tables, captions and outputs."
    return [t for t in document.findall(nodes.Text) if isinstance(t.parent, nodes.paragraph) and isinstance(t.parent.parent, nodes.section)]

class Words(SphinxTransform):
    "Counts what there is to read, and links each term of the glossary where a page uses it first."
    default_priority = 700  # before the index is collected

    def apply(self):
        env = self.env
        env.physattn_reading[env.docname] = {'words': reading_words(self.document), 'refers': list(references(self.document, env.docname))}
        env.note_dependency(str(ROOT/'nbs/glossary.md'))
        if APART.search(env.docname): return
        texts = prose(self.document)
        whole = ' '.join(t.astext() for t in texts)
        first = {name: True for name, pattern in terms().items() if pattern.search(whole)}
        often = {name for name in first if len(terms()[name].findall(whole)) >= INDEXED}
        for text in texts: self.link(text, first, often)

    def link(self, text, first, often):
        found, taken, raw = [], [], text.astext()
        for name in [n for n in first if first[n]]:
            for m in terms()[name].finditer(raw):
                if any(m.start() < end and start < m.end() for start, end in taken): continue
                found.append((m, name)); taken.append(m.span()); first[name] = False
                break
        if not found: return
        pieces, end, paragraph = [], 0, text.parent
        for m, name in sorted(found, key=lambda f: f[0].start()):
            pieces += [nodes.Text(raw[end:m.start()]), self.reference(name, m[0])]
            end = m.end()
            if name in often: self.index(name, paragraph)
        paragraph.replace(text, [p for p in [*pieces, nodes.Text(raw[end:])] if p.astext()])

    def reference(self, name, shown):
        return addnodes.pending_xref('', nodes.inline(shown, shown, classes=['physattn-term']), refdomain='std', reftype='term', reftarget=name, refdoc=self.env.docname, refexplicit=True, refwarn=True)

    def index(self, name, paragraph):
        mark = f'index-{self.env.new_serialno("index")}'
        paragraph.insert(0, [addnodes.index(entries=[('single', name, mark, '', None)]), nodes.target('', '', ids=[mark])])

# --- how long a page takes

def reading_words(document):
    "Words of a page, a formula or a line of shown code counted as several."
    def folded(node): return any(c in ('tag_hide-input', 'tag_solution') for c in node.get('classes', ())) or isinstance(node, (nodes.comment, nodes.raw))
    def written(node): return isinstance(node, nodes.Element) and node.get('mime_type') == 'text/markdown'
    def count(node):
        if isinstance(node, nodes.Text): return len(node.astext().split())
        if isinstance(node, nodes.Element):
            if 'cell_output' in node.get('classes', ()): return sum(sum(map(count, n.children)) for n in node.findall(written))
            if folded(node): return sum(map(count, node.findall(lambda n: isinstance(n, nodes.Element) and 'cell_output' in n.get('classes', ()))))
            if isinstance(node, nodes.math_block): return FORMULA
            if isinstance(node, nodes.literal_block): return LINE*len(node.astext().splitlines())
        return sum(map(count, node.children))
    return count(document)

def minutes(seconds):
    "A time as people say it."
    if seconds < 90: return f'{max(1, round(seconds))} s'
    if seconds < 5400: return f'{round(seconds/60)} min'
    return f'{seconds/3600:.{int(seconds < 36000)}f} h'

def pages_of(env, docname):
    "The pages that an index page stands for: those of its folder, or of the whole book."
    folder = docname.removesuffix('index')
    return [d for d in env.found_docs if d.startswith(folder) and not d.startswith('api/')]

def spent(env, docnames):
    "Seconds of reading, and of running as the execution cache recorded it."
    reading = sum(env.physattn_reading.get(d, {}).get('words', 0) for d in docnames)/WORDS_A_MINUTE*60
    return reading, sum((env.nb_metadata.get(d, {}).get('exec_data') or {}).get('runtime') or 0 for d in docnames)

def duration(env, docnames):
    "What the pages take, in words."
    reading, running = spent(env, docnames)
    return f'{minutes(max(reading, 90))} to read' + (f', {minutes(running)} to run' if running >= 0.5 else '')

def times(env, docname):
    "The line below the title: of a page, of a chapter at its index, of the book."
    if docname.startswith('api/') or docname not in env.physattn_reading: return ''
    if not (docname == 'index' or docname.endswith('/index')): return f'<p class="physattn-times">About {duration(env, [docname])}</p>'
    docnames = pages_of(env, docname)
    return f'<p class="physattn-times">The {"book" if docname == "index" else "chapter"}: {len(docnames)} pages, about {duration(env, docnames)}</p>'

# --- who refers to a page

def references(document, docname):
    "What a page refers to: kind and name."
    for x in document.findall(addnodes.pending_xref):
        kind, target = x.get('reftype'), x.get('reftarget')
        if kind == 'doc': yield kind, re.sub(r'[^/]+/\.\./', '', f'{docname.rpartition("/")[0]}/{target}').lstrip('/')
        elif kind in ('ref', 'numref', 'eq'): yield kind, target

def home(env, kind, target):
    "The page on which a label stands."
    if kind == 'doc': return target
    if kind == 'eq': return env.get_domain('math').equations.get(target, (None,))[0]
    return env.get_domain('std').anonlabels.get(target, (None,))[0]

def referring(env):
    "For each page the pages that refer to it, in the order of the book."
    found = {}
    for docname, page in env.physattn_reading.items():
        for target in {home(env, *r) for r in page['refers']} - {docname, None}: found.setdefault(target, set()).add(docname)
    order = {d: i for i, d in enumerate([*env.toctree_includes.get('index', []), *env.found_docs])}
    return {d: sorted((s for s in sources if s != 'index' and s != d.rpartition('/')[0] + '/index'), key=lambda s: (order.get(s, 0), s)) for d, sources in found.items()}

def backlinks(app, docname):
    "The line at the end."
    if docname == 'index' or docname.startswith('api/'): return ''
    def link(d): return f'<a class="reference internal" href="{relative_uri(app.builder.get_target_uri(docname), app.builder.get_target_uri(d))}">{html.escape(app.env.titles[d].astext())}</a>'
    sources = [d for d in app.physattn_referring.get(docname, ()) if d in app.env.titles]
    return f'<p class="physattn-backlinks">Referred to from {" · ".join(map(link, sources))}</p>' if sources else ''

# --- into the page

def dress(app, pagename, templatename, context, doctree):
    "Put both lines into the page, and mend what docutils writes and screen readers stumble over."
    body = context.get('body')
    if not body or pagename not in app.env.found_docs: return
    if not hasattr(app, 'physattn_referring'): app.physattn_referring = referring(app.env)
    body = TITLE.sub(lambda m: m[0] + times(app.env, pagename), body, count=1) + backlinks(app, pagename)
    body = re.sub(r'<span data-times="([\w/]+)"></span>', lambda m: f'<span data-times="{m[1]}">{duration(app.env, pages_of(app.env, m[1]))}</span>', body)
    # An empty corner of a table heads nothing, and the roles of a bibliography have been withdrawn from the standard.
    body = re.sub(r'<th class="head[^>]*>\s*(<p>\s*</p>)?\s*</th>', '<td></td>', body)
    context['body'] = body.replace('<div role="list" class="citation-list">', '<div class="citation-list">').replace(' role="doc-biblioentry"', '')

def configure(app, config):
    "Colours of code that are dark, or light, enough to be read; a script that paper needs."
    config.html_theme_options |= {'pygments_light_style': 'a11y-high-contrast-light', 'pygments_dark_style': 'a11y-high-contrast-dark'}
    config.html_js_files.append('reader.js')

def remember(app, env, docnames):
    if not hasattr(env, 'physattn_reading'): env.physattn_reading = {}
    app.physattn_read = set(docnames)

def rewrite(app, env):
    "The pages whose lines change when others do."
    read = {d for d in getattr(app, 'physattn_read', ()) if d in env.physattn_reading}
    chapters = {i for d in read for i in ('index', d.rpartition('/')[0] + '/index') if i in env.found_docs}
    return sorted(chapters | {t for d in read for t in {home(env, *r) for r in env.physattn_reading[d]['refers']} if t in env.found_docs})

def purge(app, env, docname): getattr(env, 'physattn_reading', {}).pop(docname, None)

def merge(app, env, docnames, other):
    if not hasattr(env, 'physattn_reading'): env.physattn_reading = {}
    env.physattn_reading |= {d: other.physattn_reading[d] for d in docnames if d in other.physattn_reading}

def setup(app):
    app.add_transform(Words)
    app.connect('config-inited', configure)
    app.connect('env-purge-doc', purge)
    app.connect('env-merge-info', merge)
    app.connect('env-before-read-docs', remember)
    app.connect('env-updated', rewrite)
    app.connect('html-page-context', dress, priority=400)
    return {'parallel_read_safe': True}
