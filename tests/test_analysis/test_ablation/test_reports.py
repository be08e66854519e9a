import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from mmlska.analysis.ablation.cells import Cell
from mmlska.analysis.ablation.costs import Cost
from mmlska.analysis.ablation.course import course_rows
from mmlska.analysis.ablation.examples import Example, f1_of_boxes, mean_iou
from mmlska.analysis.ablation.page import draw_curves, page
from mmlska.analysis.ablation.table import (
    Row,
    comma_separated,
    failure_lines,
    latex,
    markdown,
    table_rows,
)

METRIC = 'coco/bbox_mAP'
COST = Cost(params=2_000_000, macs=3_000_000_000, step_bytes=2**20, time=[0.9, 1.25, 1.5])
ROWS = [
    Row('base', 'base', {METRIC: {0: 0.1, 1: 0.2, 2: 0.3}}, COST),
    Row('eca', 'ECA <b>', {METRIC: {0: 0.2, 1: 0.3, 2: 0.4}}, COST, start='equals the base'),
    Row('lska', 'LSKA_8', {}, failures={'seed 0': 'kernel', 'seed 1': 'kernel'}),
]


def test_figures_are_in_percent_and_compared_by_the_seed():
    header, base, cell, failed = table_rows(ROWS, [METRIC])
    assert header[:4] == ['cell', 'seeds', f'{METRIC} (%)', 'difference [95 % interval]']
    assert base[:4] == ['base', '3', '20.00 ± 10.00', '–']
    # Every seed gains ten points: the interval has no width, whatever the spread of the seeds.
    assert cell[2:4] == ['30.00 ± 10.00', '+10.00 [+10.00, +10.00]']
    assert cell[4:] == ['2', '3', '1', '1.25']
    assert failed[1:3] == ['0', '–']


def test_a_reason_that_seeds_share_is_told_once():
    assert failure_lines(ROWS) == ['LSKA_8, seed 0, seed 1: kernel']


def test_markdown_has_table_notes_failures_and_starts():
    text = markdown(ROWS, [METRIC], ['A note.'])
    assert len({line.count('|') for line in text.splitlines() if line.startswith('|')}) == 1
    for part in ('A note.', '- LSKA_8, seed 0, seed 1: kernel', '- ECA <b>: equals the base'):
        assert part in text


def test_csv_has_full_numbers():
    header, base, cell, failed = csv.reader(io.StringIO(comma_separated(ROWS, [METRIC])))
    cell = dict(zip(header, cell, strict=True))
    assert float(cell[f'{METRIC} mean']) == pytest.approx(30)
    assert float(cell[f'{METRIC} low']) == pytest.approx(10)
    assert int(cell['params']) == 2_000_000
    assert dict(zip(header, base, strict=True))[f'{METRIC} difference'] == ''
    assert dict(zip(header, failed, strict=True))['failure'].endswith('kernel')


def test_latex_has_one_cell_a_column_and_no_bare_signs():
    text = latex(ROWS, [METRIC])
    lines = [line for line in text.splitlines() if line.endswith('\\\\')]
    assert len(lines) == 4
    columns = re.search(r'\{(l r*|lr*)\}', text)[1]
    assert all(len(re.findall(r'(?<!\\)&', line)) == len(columns) - 1 for line in lines)
    assert 'LSKA\\_8' in text
    assert not re.search(r'(?<!\\)[%_#]', text)


def test_the_page_needs_no_other_file():
    cells = [Cell('base', 'base', "# a\n_base_ = '<x>'\n"), Cell('eca', 'ECA <b>', 'y = 1\n')]
    examples = {'eca': [Example('best: 90 %', 'data:image/png;base64,AA==')]}
    text = page('Mine', ROWS, [METRIC], ['A note.'], cells, b'png', examples)
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    assert 'ECA &lt;b&gt;' in text and 'ECA <b>' not in text
    for part in ('&lt;x&gt;', 'best: 90 %', 'A note.', 'LSKA_8, seed 0, seed 1: kernel'):
        assert part in text


def test_the_course_of_cells_is_told_from_the_start(tmp_path):
    figures = {0: [0.5, 0.4, 0.6], 1: [0.5, 0.5, 0.7]}
    for seed, values in figures.items():
        log = tmp_path / str(seed) / '20260101_1' / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        lines = [json.dumps({METRIC: v, 'time': 1, 'step': i}) for i, v in enumerate(values)]
        log.write_text('\n'.join(lines))
    header, row = course_rows({'ECA': [tmp_path / '0', tmp_path / '1']}, METRIC)
    assert header[2:] == ['lowest later', 'end', 'lowest - start']
    assert row[:2] == ['ECA', '50.00 ± 0.00']
    # t(1) is 12.71, the standard deviation of -10 and 0 divided by the root of two is 5.
    assert row[2:] == ['45.00 ± 7.07', '65.00 ± 7.07', '-5.00 [-68.53, +58.53]']
    assert '| ECA | 50.00' in re.sub(' +', ' ', markdown(ROWS, [METRIC], [], [[header, row]]))


def test_curves_of_nothing(tmp_path):
    assert draw_curves({'base': [tmp_path]}, [METRIC]) is None


def test_the_score_of_a_label_map():
    truth = np.array([0, 0, 1, 255])
    assert mean_iou(truth, np.array([0, 0, 1, 2])) == 1
    # Class 0 shares one of three pixels, class 1 none of two.
    assert mean_iou(truth, np.array([0, 1, 0, 0])) == pytest.approx((1 / 3 + 0) / 2)


def test_the_score_of_boxes():
    pytest.importorskip('mmdet')
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    truth = InstanceData(bboxes=boxes, labels=torch.tensor([1, 2]))
    right = InstanceData(bboxes=boxes, labels=torch.tensor([1, 2]), scores=torch.tensor([0.9, 0.8]))
    assert f1_of_boxes(truth, right) == 1
    # The second has another class, and the last one finds the first box again.
    wrong = InstanceData(
        bboxes=boxes[[0, 1, 0]],
        labels=torch.tensor([1, 3, 1]),
        scores=torch.tensor([0.9, 0.8, 0.7]),
    )
    assert f1_of_boxes(truth, wrong) == pytest.approx(2 * 1 / (2 + 3))
    weak = InstanceData(bboxes=boxes, labels=torch.tensor([1, 2]), scores=torch.tensor([0.1, 0.1]))
    assert f1_of_boxes(truth, weak) == 0
