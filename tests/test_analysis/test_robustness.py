import json
import math

import numpy as np
import pytest
from PIL import Image

from mmlska.analysis.robustness import (
    ALEXNET_ERRORS,
    Robustness,
    cell_rows,
    corruption_errors,
    draw_curves,
    draw_radar,
    mean_corruption_error,
    record,
    sets_of,
    summary_rows,
)
from mmlska.datasets.corruptions import BENCHMARK, CORRUPTIONS, SEVERITIES

# Clean 80, under the corruption of index i at severity s: 60 - i - s.
FOUND = Robustness(
    'model',
    80.0,
    {name: {s: 60.0 - i - s for s in SEVERITIES} for i, name in enumerate(CORRUPTIONS)},
)


def test_alexnet_has_a_mean_corruption_error_of_100():
    assert mean_corruption_error(ALEXNET_ERRORS) == pytest.approx(100, abs=1e-12)
    benchmark = {name: ALEXNET_ERRORS[name] for name in BENCHMARK}
    assert mean_corruption_error(benchmark) == pytest.approx(100, abs=1e-12)
    assert set(ALEXNET_ERRORS) == set(CORRUPTIONS)


def test_corruption_errors_are_ratios_of_sums_over_severities():
    errors = dict(fog=[10.0, 20.0, 30.0, 40.0, 50.0], snow=[43.35] * 5)
    expected = dict(fog=100 * 150 / (5 * 81.9), snow=50.0)
    assert corruption_errors(errors) == pytest.approx(expected)
    assert mean_corruption_error(errors) == pytest.approx((expected['fog'] + 50) / 2)


def test_half_of_the_errors_of_the_reference_are_50():
    halves = {name: error / 2 for name, error in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(halves) == pytest.approx(50)


@pytest.mark.parametrize(
    ('errors', 'message'),
    [({}, 'one corruption'), (dict(rain=50), 'rain'), (dict(fog=101), '0 to 100')],
)
def test_senseless_errors_are_refused(errors, message):
    with pytest.raises(ValueError, match=message):
        corruption_errors(errors)


def test_the_mean_is_over_severities_and_then_over_corruptions():
    assert FOUND.under('gaussian_noise') == 57
    assert FOUND.mean() == pytest.approx(np.mean([57 - i for i in range(19)]))
    assert FOUND.mean(BENCHMARK) == pytest.approx(50)
    assert FOUND.relative(BENCHMARK) == pytest.approx(62.5)


def test_uncorrupted_figures_are_all_of_the_clean_one():
    same = Robustness('same', 40.0, dict(fog={1: 40.0, 2: 40.0}))
    assert same.mean() == same.clean and same.relative() == 100


def test_nothing_is_no_share_of_nothing():
    assert math.isnan(Robustness('blind', 0.0, dict(fog={1: 0.0})).relative())


@pytest.mark.parametrize(
    ('measured', 'expected'),
    [
        (CORRUPTIONS, {'15 of the benchmark': 15, 'all 19': 19}),
        (BENCHMARK, {'15 of the benchmark': 15}),
        (['fog', 'snow'], {'2 chosen': 2}),
        (CORRUPTIONS[1:], {'18 chosen': 18}),
        (CORRUPTIONS[:16], {'15 of the benchmark': 15, '16 chosen': 16}),
    ],
)
def test_means_say_what_they_are_over(measured, expected):
    assert {words: len(names) for words, names in sets_of(measured).items()} == expected


def test_models_stand_side_by_side():
    other = Robustness('other', 90.0, FOUND.cells)
    rows = summary_rows([FOUND, other])
    assert rows[:3] == [
        ['corruption', 'model', 'other'],
        ['clean', '80.0', '90.0'],
        ['gaussian_noise', '57.0', '57.0'],
    ]
    shares = [row for row in rows if row[0] == 'of clean (%), 15 of the benchmark']
    assert shares == [['of clean (%), 15 of the benchmark', '62.5', '55.6']]


def test_accuracies_of_alexnet_are_shown_as_errors_and_100():
    cells = {name: dict.fromkeys(SEVERITIES, 100 - e) for name, e in ALEXNET_ERRORS.items()}
    rows = dict(summary_rows([Robustness('AlexNet', 56.5, cells)], as_errors=True))
    assert rows['clean'] == '43.5' and rows['fog'] == '81.9'
    assert rows['mCE, 15 of the benchmark'] == rows['mCE, all 19'] == '100.0'
    kept = record(Robustness('AlexNet', 56.5, cells), as_errors=True)
    assert kept['means']['all 19']['mCE'] == pytest.approx(100)


def test_every_severity_is_in_the_table_and_in_the_record():
    assert cell_rows(FOUND)[1] == ['gaussian_noise', '59.0', '58.0', '57.0', '56.0', '55.0']
    kept = json.loads(json.dumps(record(FOUND)))
    assert kept['cells']['fog'] == {str(s): 60.0 - CORRUPTIONS.index('fog') - s for s in SEVERITIES}


@pytest.mark.parametrize('draw', [draw_curves, draw_radar])
def test_pictures_show_every_model(draw, tmp_path):
    path = tmp_path / 'new' / 'picture.png'
    few = Robustness('few', 80.0, {name: FOUND.cells[name] for name in BENCHMARK[:3]})
    draw(path, [few], 'AP')
    one = np.asarray(Image.open(path).convert('RGB'))
    draw(path, [few, Robustness('other', 30.0, few.cells)], 'AP')
    two = np.asarray(Image.open(path).convert('RGB'))

    def colours(picture):
        found, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
        return {tuple(c) for c in found[counts > 50].tolist()}

    # Matplotlib's second colour.
    orange = (255, 127, 14)
    assert orange not in colours(one) and orange in colours(two)
