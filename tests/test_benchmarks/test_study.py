"""The judgements of the study, on figures whose answer is known."""

import numpy as np
import pytest

from benchmarks.study import claims, judging, measuring, plan, publish, transfer
from benchmarks.study.claims import CONFIRMED, OPEN, REFUTED
from benchmarks.study.judging import Findings
from benchmarks.study.page import write_page
from mmlska.analysis.ablation import Estimate
from mmlska.analysis.ablation.cells import make_cells
from mmlska.analysis.ablation.costs import count
from mmlska.engine.config import load_config

QUICK = plan.SCALES['quick']


def interval(low, high):
    return Estimate((low + high) / 2, 1.0, low, high, 3)


@pytest.mark.parametrize(
    ('low', 'high', 'verdict'),
    [(-1, 1.5, CONFIRMED), (2.5, 4, REFUTED), (-9, -2.5, REFUTED), (-3, 1, OPEN), (1, 3, OPEN)],
)
def test_equality_is_judged_by_the_whole_interval(low, high, verdict):
    assert claims.judge_equality(interval(low, high), 2) == verdict


@pytest.mark.parametrize(
    ('low', 'high', 'verdict'), [(0.1, 3, CONFIRMED), (-3, -0.1, REFUTED), (-0.1, 9, OPEN)]
)
def test_growth_is_judged_by_the_whole_interval(low, high, verdict):
    assert claims.judge_growth(interval(low, high)) == verdict


def test_nothing_measured_decides_nothing():
    one = Estimate(5.0, None, None, None, 1)
    for found in (None, one):
        assert claims.judge_growth(found) == claims.judge_equality(found, 9) == OPEN


def test_slopes_are_those_of_least_squares():
    rng = np.random.default_rng(0)
    sizes = (7, 11, 23, 35)
    family = {size: f'k{size}' for size in sizes}
    figures = {cell: dict(enumerate(rng.normal(size=3))) for cell in family.values()}
    wanted = [
        np.polyfit(np.log2(sizes), [figures[cell][seed] for cell in family.values()], 1)[0]
        for seed in range(3)
    ]
    found = claims.slopes(figures, [family])
    assert (found.mean, found.number) == (pytest.approx(np.mean(wanted)), 3)


def test_differences_are_averaged_within_a_seed():
    figures = {'a7': {0: 1.0, 1: 2.0}, 'b7': {0: 0.0, 1: 0.0}, 'a9': {0: 3.0}, 'b9': {0: 0.0}}
    found = claims.mean_difference(figures, ['a7', 'a9'], ['b7', 'b9'])
    assert (found.mean, found.number) == (2.0, 2)


def made_up(rise: float, gap: float) -> Findings:
    """Figures that rise by so much a doubling of k, and LSKA above LKA by so much."""
    accuracy, times = {}, {}
    found = Findings(QUICK, accuracy, times=times)
    for kind in ('LSKA', 'LKA', 'LSKATrivial', 'LKATrivial'):
        for size, cell in found.family(kind).items():
            level = rise * np.log2(size) + gap * kind.startswith('LSKA')
            accuracy[cell] = {seed: 50 + level + 0.01 * seed for seed in range(3)}
            cost = size**2 if kind.startswith('LKA') else size
            slow = 1 + size / 10 if kind == 'LKATrivial' else 1.0
            times[f'{kind} {size}'] = dict(
                params=1000 + cost, macs=1000 + cost, time=[0.99 * slow, slow, 1.01 * slow]
            )
    found.fields = {'50%': accuracy, '99%': accuracy}
    found.transfer = dict(random={0: 10.0, 1: 12.0}, pretrained={0: 15.0, 1: 16.0})
    return found


def test_what_is_so_is_confirmed():
    judged = judging.judge(made_up(rise=1.0, gap=0.5))
    measured = [claim for claim in judged if claim.figure != 'not measured']
    assert len(measured) == len(judged) - 2
    assert {claim.verdict for claim in measured} == {CONFIRMED}


def test_what_is_not_so_is_not_confirmed():
    found = made_up(rise=-1.0, gap=5.0)
    verdicts = {claim.text: claim.verdict for claim in judging.judge(found)}
    assert verdicts['The figure grows with k'] == REFUTED
    equal = [verdict for text, verdict in verdicts.items() if 'reaches the figure' in text]
    assert equal == [REFUTED, REFUTED]


def test_models_that_have_not_learned_decide_nothing():
    found = made_up(rise=0.0, gap=0.0)
    for figures in found.accuracy.values():
        figures.update(dict.fromkeys(figures, 6.8))
    judged = judging.judge(found)
    assert {claim.verdict for claim in judged if 'VAN-tiny' in claim.figure} == {CONFIRMED}
    assert {claim.verdict for claim in judged if 'VAN-tiny' not in claim.figure} == {OPEN}


def test_the_page_keeps_its_text_and_has_every_claim(tmp_path):
    found = made_up(1.0, 0.5)
    judged = judging.judge(found)
    for _ in range(2):
        write_page(tmp_path / 'study.md', found, judged, '| cell |', 'quick')
    text = (tmp_path / 'study.md').read_text()
    assert text.startswith('# The study')
    assert text.count('### Cells') == 1
    assert 'make study STUDY=quick' in text.partition('begin study')[2]
    for claim in judged:
        assert f'| {claim.text} ' in text
    assert '+4.5 points of AP' in text
    assert (tmp_path / 'images' / 'study.png').stat().st_size > 10_000


@pytest.mark.parametrize('name', list(plan.SCALES))
def test_cells_bear_the_names_that_the_study_looks_for(name, tmp_path):
    pytest.importorskip('mmseg')
    scale = plan.SCALES[name]
    cells = make_cells(plan.study_spec(scale, tmp_path / 'data', tmp_path))
    names = {plan.cell_name(*attention) for attention in plan.attentions(scale)}
    assert {cell.name for cell in cells} == names | {'base'}
    assert all(cell.text for cell in cells)


def test_figures_under_corruptions(monkeypatch, tmp_path):
    """The mean over corruptions, and what is left of the figure on clean scenes."""
    evaluation = measuring.corrupted_evaluation

    def evaluate_cells(subjects, cells, out_dir, settings, jobs):
        values = {cell: dict(mIoU=10.0 * number) for number, cell in enumerate(cells[1:], 1)}
        return {subject.name: {**values, evaluation.CLEAN: dict(mIoU=50.0)} for subject in subjects}

    monkeypatch.setattr(evaluation, 'evaluate_cells', evaluate_cells)
    (tmp_path / 'last_checkpoint').write_text('x.pth')
    scale = plan.SCALES['quick']
    runs = {'base': {0: tmp_path, 4: tmp_path}}
    found = measuring.robustness({'base': tmp_path / 'b.py'}, runs, tmp_path, scale, 1)
    # Four corruptions of one severity: 10, 20, 30, 40.
    assert found['corrupted'] == {'base': {0: 25.0, 4: 25.0}}
    assert found['kept'] == {'base': {0: 50.0, 4: 50.0}}


def test_kept_values_are_computed_once(tmp_path):
    calls = []
    for _ in range(2):
        kept = measuring.Kept(tmp_path / 'kept.json')
        assert kept.get('a', lambda: calls.append(1) or 5) == 5
    assert len(calls) == 1


def test_detectors_of_the_transfer_differ_in_their_start_alone(tmp_path):
    pytest.importorskip('mmdet')
    (tmp_path / 'last_checkpoint').write_text('segmentor.pth')
    configs = {}
    for name in (transfer.RANDOM, transfer.PRETRAINED):
        path = tmp_path / f'{name}.py'
        path.write_text(transfer.start_text(name, QUICK, tmp_path / 'data', tmp_path))
        configs[name] = load_config(path)
    start = configs[transfer.PRETRAINED].model.backbone.pop('init_cfg')
    assert start.checkpoint.endswith('segmentor.pth')
    assert configs[transfer.PRETRAINED].to_dict() == configs[transfer.RANDOM].to_dict()
    assert count(tmp_path / f'{transfer.RANDOM}.py').failure == ''


def test_only_finished_trainings_are_published(tmp_path):
    with pytest.raises(FileNotFoundError, match='no finished training'):
        publish.publish('mini', tmp_path, tmp_path / 'zoo')
