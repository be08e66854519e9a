"""The tutorial runs from end to end, and what it shows is what its cells put out."""

import re
import runpy
import socket

import pytest
from script_runs import REPOSITORY, TOOLS, run_here

nbformat = pytest.importorskip('nbformat')

NOTEBOOK = REPOSITORY / 'demo' / 'tutorial.ipynb'
SCRIPT = TOOLS / 'misc' / 'run_tutorial.py'
HOME = 'https://github.com/mmlska/mmlska/blob/main/'


def read(path=NOTEBOOK):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def printed(notebook):
    """What each cell of code put out as text, by its id."""
    return {
        cell.id: '\n'.join(
            output.get('text') or output.data.get('text/markdown', '') for output in cell.outputs
        )
        for cell in code_cells(notebook)
    }


def figures(text):
    return [float(figure) for figure in re.findall(r'mean IoU ([\d.]+) %', text)]


def check_results(texts):
    """The laws of what any run of the notebook shows."""
    assert texts['check'].strip() == 'Everything that is needed is there.'
    assert texts['layer-code'].strip() == '(1, 32, 64, 64) sees 23 x 23'
    assert 'Nearest legal sizes: 19 and 23' in texts['sizes-code']
    assert re.search(r'error.*000003\.png', texts['fault-code']), texts['fault-code']
    assert texts['mend-code'].count('no fault') == 2
    start, _, end = figures(texts['train-code'])
    assert start < 50 < end
    assert figures(texts['resume-code']) == [end]
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in texts['ablation-code'].splitlines()
    ]
    assert [row[:2] for row in rows[2:]] == [
        ['base', '2'],
        ['LSKA kernel_size=7', '2'],
        ['ECA', '2'],
    ]
    assert all(float(row[2].split()[0]) > 30 for row in rows[2:])
    assert texts['verdict-code'].count('after 2 seeds') == 2


def test_outputs_are_those_of_the_cells():
    notebook = read()
    code_hash = runpy.run_path(str(SCRIPT))['code_hash']
    assert notebook.metadata.executed_code == code_hash(notebook), 'run make tutorial'
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert [cell.id for cell in code_cells(notebook) if not cell.outputs] == ['setup']
    check_results(printed(notebook))


def test_outputs_tell_nothing_of_the_machine_that_ran_them():
    notebook = read()
    assert NOTEBOOK.stat().st_size < 600_000
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert {output.get('name', 'stdout') for output in outputs} == {'stdout'}, 'a warning'
    text = '\n'.join(printed(notebook).values())
    assert not re.findall(r'(?<![\w.])/[\w.-]+', text)
    assert socket.gethostname() not in text
    assert not re.search(r'warn(ing)?:', text, re.IGNORECASE)


def test_links_lead_to_files_and_headings():
    text = '\n'.join(cell.source for cell in read().cells if cell.cell_type == 'markdown')
    links = re.findall(r'\]\(([^)\s]+)\)', text)
    assert len(links) > 10
    for target in links:
        path, _, anchor = target.removeprefix(HOME).partition('#')
        if path.startswith('https://'):
            assert path == HOME.removesuffix('/blob/main/')
            continue
        page = REPOSITORY / path
        assert page.is_file(), target
        headings = re.findall(r'^#+ (.*)', page.read_text(encoding='utf-8'), re.MULTILINE)
        anchors = {re.sub(r'[^\w\- ]', '', line.lower()).replace(' ', '-') for line in headings}
        assert not anchor or anchor in anchors, target


def test_it_is_installed_as_the_readme_says():
    text = '\n'.join(cell.source for cell in read().cells if cell.cell_type == 'markdown')
    readme = (REPOSITORY / 'README.md').read_text(encoding='utf-8')
    lines = re.findall(r'^pip install .*', text, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        assert f'\n{line.replace(",demo", "")}\n' in readme, line


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    for module in ('nbclient', 'ipykernel', 'mmseg.models', 'sklearn', 'skimage', 'matplotlib'):
        pytest.importorskip(module)
    out = tmp_path / 'tutorial.ipynb'
    run_here(SCRIPT, '--out', out, cwd=tmp_path)
    notebook = read(out)
    check_results(printed(notebook))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert {output.get('name', 'stdout') for output in outputs} == {'stdout'}
    assert sum('image/jpeg' in output.get('data', {}) for output in outputs) == 3
