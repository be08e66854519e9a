"""The documentation builds without a warning, and each of its pages is reached."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / 'docs'
NEEDED = ('sphinx', 'myst_parser', 'furo', 'sphinx_copybutton', 'latex2mathml', 'nbformat')
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f'not installed: {", ".join(MISSING)}'),
]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The built pages; a warning of Sphinx, such as a link that leads nowhere, fails here."""
    from sphinx.cmd.build import build_main

    target = tmp_path_factory.mktemp('site')
    assert build_main(['--fail-on-warning', '--quiet', str(DOCS), str(target)]) == 0
    return target


def text_of(page: Path) -> str:
    return re.sub(r'<[^>]+>', '', page.read_text(encoding='utf-8'))


def test_every_document_is_a_page(site):
    sources = {path.relative_to(DOCS).with_suffix('') for path in DOCS.rglob('*.md')}
    pages = {path.relative_to(site).with_suffix('') for path in site.rglob('*.html')}
    assert len(sources) > 20
    assert sources <= pages


def test_sections_of_the_readme_stand_on_the_pages(site):
    started = text_of(site / 'get_started.html')
    assert 'make demo TASK=retinanet' in started
    assert 'README.md#' not in started
    assert 'soil' in text_of(site / 'own_data.html')
    assert '两条命令' not in text_of(site / 'index.html')
    assert 'mim download mmlska' in text_of(site / 'zh-CN' / 'get_started.html')


def test_the_tutorial_stands_on_its_page(site):
    page = (site / 'tutorial.html').read_text(encoding='utf-8')
    assert page.count('src="data:image/') >= 3
    assert 'has no exact decomposition' in text_of(site / 'tutorial.html')
    assert 'href="own_data.html"' in page
    assert re.search(r'<td[^>]*><p>LSKA kernel_size=7', page)


def test_formulas_need_no_script_of_another_site(site):
    layers = (site / 'layers.html').read_text(encoding='utf-8')
    assert layers.count('<math') > 20
    assert not re.findall(r'<script[^>]+src="(?:https?:)?//[^"]+', layers)


def test_links_that_leave_the_documentation_lead_to_the_repository(site):
    faq = (site / 'faq.html').read_text(encoding='utf-8')
    assert re.search(r'href="https://[^"]+/blob/main/configs/van_lska/README\.md', faq)
    assert 'href="get_started.html#when-something-fails"' in faq
    for page in site.rglob('*.html'):
        left = re.findall(
            r'(?:href|src)="(?:\.\./)+(?:configs|mmlska|tools|README)[^"]*', page.read_text()
        )
        assert left == [], page


def test_what_a_config_can_name_is_documented(site):
    import mmlska.models  # registers what configs name
    from mmlska import registry

    pages = ''.join(page.read_text('utf-8') for page in (site / 'api').glob('*.html'))
    documented = set(re.findall(r'<dt class="sig[^>]* id="[\w.]+\.(\w+)"', pages))
    names = {*mmlska.layers.__all__}
    for kind in ('HOOKS', 'METRICS', 'MODELS', 'STRATEGIES', 'TRANSFORMS', 'WEIGHT_INITIALIZERS'):
        getattr(registry, kind).import_from_location()
        names |= {*getattr(registry, kind).module_dict}
    assert len(names) > 40
    assert names - documented == set()


def test_chinese_words_are_found(site):
    index = (site / 'searchindex.js').read_text('utf-8').removeprefix('Search.setIndex(')
    assert {'权重', 'frozen'} <= {*json.loads(index.removesuffix(')'))['terms']}
