"""Settings of the documentation; `make docs` builds it.

On the site a line that is nothing but a link to a section of the README, or to a notebook, becomes
that section or notebook, so that a text stands in one place; on a hosting page it stays the link.
Other links to it lead there, and links to further files outside this folder to the repository.
"""

import configparser
import re
from pathlib import Path

import nbformat
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.search.en import SearchEnglish

import mmlska

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
METADATA = configparser.RawConfigParser()
METADATA.read(ROOT / 'setup.cfg', encoding='utf-8')
HOME = METADATA['metadata']['url']

project = 'mmlska'
author = METADATA['metadata']['author']
copyright = f'{author}, Apache-2.0'
version = release = mmlska.__version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
]
exclude_patterns = ['_build']
myst_heading_anchors = 4
myst_enable_extensions = ['dollarmath']
copybutton_exclude = '.linenos, .gp'
copybutton_selector = 'div:not(.output) > div.highlight pre'
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
autodoc_default_options = {'members': True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
linkcheck_ignore = [rf'{HOME}/security']

html_math_renderer = 'mathml'
html_search_language = 'en'
html_theme = 'furo'
html_static_path = ['_static']
html_css_files = ['site.css']
html_title = f'mmlska {version}'
html_theme_options = {
    'source_repository': f'{HOME}/',
    'source_branch': 'main',
    'source_directory': 'docs/',
}

HEADING_AT_END = re.compile(r'^#+ .*\s+\Z', re.M)
# To a section of a README, or to a notebook.
WHOLE_LINK = re.compile(
    r'^\[[^\]\n]+\]\((?:([./]*README[\w-]*\.md)#([^)\n]+)|([./\w]+\.ipynb))\)$', re.M
)
CHINESE_PAIR = re.compile(r'(?=([\u4e00-\u9fff]{2}))')
LINK = re.compile(r'(\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(\))')


def slug(heading: str) -> str:
    """Return the anchor that a hosting page gives to a heading."""
    return re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-')


def read_section(readme: Path, anchor: str) -> str:
    """Return a section of the README, whose first line is its heading.

    Raises:
        ValueError: If there is no such section.
    """
    sections = re.split(r'^(?=## )', readme.read_text(encoding='utf-8'), flags=re.M)
    for section in sections:
        heading, _, _ = section.partition('\n')
        if slug(heading.removeprefix('## ')) == anchor:
            return section.replace('](#', f']({readme.name}#')
    raise ValueError(f'{readme.name} has no section #{anchor}')


def read_notebook(path: Path) -> str:
    """Return a notebook as a section, whose first line is its heading."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == 'markdown':
            parts.append(cell.source)
        else:
            parts.append(f'```python\n{cell.source}\n```')
            parts += [output_text(output) for output in cell.outputs]
    up = '../' * len(path.relative_to(ROOT).parent.parts)
    return '\n\n'.join(parts).replace(f']({HOME}/blob/main/', f']({up}')


def output_text(output: nbformat.NotebookNode) -> str:
    """Return what a cell put out, as a part of a page.

    Raises:
        ValueError: If it is of a kind that no page shows.
    """
    data = {'text/plain': output.text} if output.output_type == 'stream' else output.get('data', {})
    for kind in ('image/png', 'image/jpeg'):
        if kind in data:
            return f'![Picture that the cell draws](data:{kind};base64,{data[kind].strip()})'
    if 'text/markdown' in data:
        return data['text/markdown']
    if 'text/plain' in data:
        text = data['text/plain'].strip('\n')
        return f'```{{code-block}} text\n:class: output\n\n{text}\n```'
    raise ValueError(f'a cell put out {output.output_type} of {", ".join(data) or "nothing"}')


def find_wholes() -> dict[tuple[Path, str], tuple[Path, str]]:
    """Tell which page holds a section or notebook, and under which anchor, by file and anchor."""
    found = {}
    for page in DOCS.rglob('*.md'):
        text = page.read_text(encoding='utf-8')
        for match in WHOLE_LINK.finditer(text):
            readme, section, notebook = match.groups(default='')
            is_headless = notebook or HEADING_AT_END.search(text[: match.start()])
            anchor = '' if is_headless else f'#{section}'
            found[(page.parent / (readme or notebook)).resolve(), section] = page, anchor
    return found


WHOLES = find_wholes()


def link_from(page: Path, text: str, folder: Path) -> str:
    """Turn links that are relative to ``folder`` into those of a page in this folder."""

    def turn(match: re.Match[str]) -> str:
        start, target, anchor, end = match.groups(default='')
        path = (folder / target).resolve()
        path, anchor = WHOLES.get((path, anchor[1:]), (path, anchor))
        if path.is_relative_to(DOCS):
            return f'{start}{relative(path, page.parent)}{anchor}{end}'
        return f'{start}{HOME}/blob/main/{path.relative_to(ROOT)}{anchor}{end}'

    return LINK.sub(turn, text)


def relative(path: Path, folder: Path) -> str:
    """Return ``path`` as seen from ``folder``; either lies below the documentation."""
    up = len(folder.relative_to(DOCS).parts)
    return '../' * up + path.relative_to(DOCS).as_posix()


def complete_page(app, docname: str, source: list[str]) -> None:
    """Put sections of the README and notebooks in, and turn links that leave the documentation."""
    page = Path(app.env.doc2path(docname))
    text = source[0]
    pieces, start = [], 0
    for match in WHOLE_LINK.finditer(text):
        file = (page.parent / (match[1] or match[3])).resolve()
        app.env.note_dependency(str(file))
        pieces.append(link_from(page, text[start : match.start()], page.parent))
        section = read_section(file, match[2]) if match[2] else read_notebook(file)
        if HEADING_AT_END.search(text[: match.start()]):
            _, _, section = section.partition('\n')
        pieces.append(link_from(page, section, file.parent))
        start = match.end()
    pieces.append(link_from(page, text[start:], page.parent))
    source[0] = ''.join(pieces)


def write_formula(writer, node: nodes.math | nodes.math_block) -> None:
    """Write MathML, which browsers draw by themselves: a page needs no script from elsewhere."""
    display = 'block' if isinstance(node, nodes.math_block) else 'inline'
    writer.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


class SearchBothLanguages(SearchEnglish):
    """Finds Chinese words of two characters too.

    The search takes what stands between two marks for a word, which Chinese has no spaces in, and
    looks for parts of words from three characters on.
    """

    def split(self, input: str) -> list[str]:
        """Return the words of a text, and every two Chinese characters in a row."""
        return super().split(input) + CHINESE_PAIR.findall(input)


def setup(app) -> None:
    """Register the completion of pages, the way to write formulas, and the search."""
    app.add_search_language(SearchBothLanguages)
    visit = (write_formula, None)
    app.add_html_math_renderer('mathml', inline_renderers=visit, block_renderers=visit)
    app.connect('source-read', complete_page)
