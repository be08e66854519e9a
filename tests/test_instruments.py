"""The stock instruments of mmdet and mmseg with our configs, as docs/instruments.md tells them."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import PixelData
from script_runs import TOOLS, run_here

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / 'docs' / 'instruments.md'
CONFIGS = Path(__file__).resolve().parent / 'configs'
DETECTOR, SEGMENTOR = CONFIGS / 'small_retinanet.py', CONFIGS / 'small_fpn.py'


def stock(library: str, name: str) -> Path:
    """A script as the library installs it."""
    module = pytest.importorskip(f'{library}.models')
    return Path(module.__file__).parents[1] / '.mim' / 'tools' / 'analysis_tools' / name


@pytest.fixture(scope='module')
def user(scenes) -> Path:
    """A folder with data/digit_scenes below it."""
    return scenes.parents[1]


def trained(config: Path, user: Path, work_dir: str, out: str) -> SimpleNamespace:
    """Train for two iterations, and keep the predictions on the test set."""
    run_here(TOOLS / 'train.py', config, '--work-dir', work_dir, cwd=user)
    checkpoint = user / work_dir / 'iter_2.pth'
    arguments = ['--work-dir', f'{work_dir}_test', '--out', out]
    run_here(TOOLS / 'test.py', config, checkpoint, *arguments, cwd=user)
    # Another process may have trained there before: workers take tests from each other.
    log = max((user / work_dir).glob('*/vis_data/scalars.json'))
    return SimpleNamespace(checkpoint=checkpoint, log=log, out=user / out)


@pytest.fixture(scope='module')
def detector(user) -> SimpleNamespace:
    pytest.importorskip('mmdet.models')
    return trained(DETECTOR, user, 'det', 'det.pkl')


@pytest.fixture(scope='module')
def segmentor(user) -> SimpleNamespace:
    pytest.importorskip('mmseg.models')
    return trained(SEGMENTOR, user, 'seg', 'maps')


def is_drawn(path: Path) -> bool:
    """Whether a picture shows more than one colour."""
    return cv2.imread(str(path)).std() > 1


# Curves


def test_mmdet_draws_the_curves_of_a_log_in_a_style_that_there_is(detector, tmp_path):
    script = stock('mmdet', 'analyze_logs.py')
    curve = ['plot_curve', detector.log, '--keys', 'loss', 'bbox_mAP', '--out', 'curves.png']
    run_here(script, *curve, '--style', 'default', cwd=tmp_path)
    assert is_drawn(tmp_path / 'curves.png')
    with pytest.raises(OSError, match="'dark' is not a valid package style"):
        run_here(script, *curve, cwd=tmp_path)
    out = run_here(script, 'cal_train_time', detector.log, '--include-outliers', cwd=tmp_path)
    assert 'average iter time' in out.stdout


def test_mmseg_draws_the_curves_of_a_log_beside_seaborn(segmentor, tmp_path, monkeypatch):
    """It names nothing of seaborn but a style; without the package it does not start."""
    script = stock('mmseg', 'analyze_logs.py')
    curve = [segmentor.log, '--keys', 'loss', 'mIoU', '--out', 'curve.png']
    monkeypatch.setitem(sys.modules, 'seaborn', None)
    with pytest.raises(ImportError, match='seaborn'):
        run_here(script, *curve, cwd=tmp_path)
    styles = []
    seaborn = SimpleNamespace(set_style=styles.append)
    monkeypatch.setitem(sys.modules, 'seaborn', seaborn)
    run_here(script, *curve, cwd=tmp_path)
    assert styles == ['dark'] and is_drawn(tmp_path / 'curve.png')


def written_log(path: Path, by_epoch: bool) -> Path:
    """A log of two evaluations, as mmengine writes it."""
    lines = []
    for step in (1, 2):
        count = dict(epoch=step, iter=10 * step, step=10 * step)
        lines.append(dict(loss=1 / step, **(count if by_epoch else dict(step=10 * step))))
        lines.append({'coco/bbox_mAP': 0.1 * step, 'step': step if by_epoch else 10 * step})
    path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    return path


def test_ap_is_drawn_by_epochs_and_by_the_other_script_by_iterations(tmp_path, monkeypatch):
    script, options = stock('mmdet', 'analyze_logs.py'), ['--out', 'ap.png']
    style = ['--style', 'default']
    epochs, iterations = (
        written_log(tmp_path / f'{by_epoch}.json', by_epoch) for by_epoch in (True, False)
    )
    curve = ['--keys', 'bbox_mAP', *options, *style]
    run_here(script, 'plot_curve', epochs, *curve, cwd=tmp_path)
    assert is_drawn(tmp_path / 'ap.png')
    with pytest.raises(ValueError, match='x and y must have same first dimension'):
        run_here(script, 'plot_curve', iterations, *curve, cwd=tmp_path)
    (tmp_path / 'ap.png').unlink()
    seaborn = SimpleNamespace(set_style=lambda style: None)
    monkeypatch.setitem(sys.modules, 'seaborn', seaborn)
    other = [stock('mmseg', 'analyze_logs.py'), iterations, '--keys', 'coco/bbox_mAP']
    run_here(*other, *options, cwd=tmp_path)
    assert is_drawn(tmp_path / 'ap.png')


# Confusion matrices


def dataset_of(config: Path, user: Path, monkeypatch):
    """The test set of a config."""
    monkeypatch.chdir(user)
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    return DATASETS.build(cfg.test_dataloader.dataset)


def test_the_confusion_matrix_of_perfect_detections_is_the_count_of_objects(
    detector, user, monkeypatch
):
    script = stock('mmdet', 'confusion_matrix.py')
    dataset = dataset_of(DETECTOR, user, monkeypatch)
    results, counts = [], np.zeros(11)
    for index in range(len(dataset)):
        objects = dataset.get_data_info(index)['instances']
        labels = torch.tensor([one['bbox_label'] for one in objects])
        boxes = torch.tensor([one['bbox'] for one in objects], dtype=torch.float32)
        found = dict(labels=labels, bboxes=boxes, scores=torch.ones(len(objects)))
        results.append(dict(pred_instances=found))
        counts += np.bincount(labels, minlength=11)
    matrix = runpy.run_path(str(script))['calculate_confusion_matrix'](dataset, results, 0.3)
    np.testing.assert_array_equal(matrix, np.diag(counts))


def test_mmdet_draws_the_confusion_matrix_of_our_detections(detector, user):
    script = stock('mmdet', 'confusion_matrix.py')
    run_here(script, DETECTOR, detector.out, 'confusion', '--score-thr', '0', cwd=user)
    assert is_drawn(user / 'confusion' / 'confusion_matrix.png')


class Labelled:
    """A data set of one map that holds every class."""

    ignore_index, reduce_zero_label = 255, False

    def __init__(self, num_classes: int) -> None:
        self.METAINFO = self.metainfo = dict(classes=tuple(map(str, range(num_classes))))
        self.labels = torch.arange(num_classes, dtype=torch.uint8)[None]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict:
        return dict(data_samples=SimpleNamespace(gt_sem_seg=PixelData(data=self.labels[None])))


@pytest.fixture(scope='module')
def mended(tmp_path_factory) -> Path:
    """mmseg's script after the remedy of the page."""
    stock('mmseg', 'confusion_matrix.py')
    folder = tmp_path_factory.mktemp('mended')
    (remedy,) = re.findall(r'^sed .*?> confusion_matrix\.py$', PAGE.read_text(), re.M | re.S)
    bin_folder = Path(sys.executable).parent
    subprocess.run(['bash', '-c', f'PATH={bin_folder}:$PATH; {remedy}'], cwd=folder, check=True)
    return folder / 'confusion_matrix.py'


def count_perfect(script: Path, num_classes: int) -> np.ndarray:
    """The matrix of predictions that are the truth."""
    dataset = Labelled(num_classes)
    count = runpy.run_path(str(script))['calculate_confusion_matrix']
    return count(dataset, [dataset.labels.numpy()])


def test_mmseg_counts_up_to_16_classes_and_after_the_remedy_any_number(mended):
    script = stock('mmseg', 'confusion_matrix.py')
    np.testing.assert_array_equal(count_perfect(script, 16), np.eye(16))
    # Bytes run over; when this fails, the page has a remedy too many.
    assert (count_perfect(script, 17) != np.eye(17)).any()
    for number in (16, 17, 150):
        np.testing.assert_array_equal(count_perfect(mended, number), np.eye(number))


def test_mmseg_draws_the_confusion_matrix_of_classes_that_a_config_names(
    segmentor, user, mended, monkeypatch
):
    assert len(list(segmentor.out.glob('*.png'))) == 3
    with pytest.raises(KeyError, match='classes'):
        run_here(stock('mmseg', 'confusion_matrix.py'), SEGMENTOR, 'maps', 'out', cwd=user)
    # The picture has 35 million pixels, which take a minute.
    monkeypatch.setitem(matplotlib.rcParams, 'savefig.dpi', 20)
    run_here(mended, SEGMENTOR, 'maps', 'confusion_of_maps', cwd=user)
    assert is_drawn(user / 'confusion_of_maps' / 'confusion_matrix.png')


# Data and results


@pytest.mark.parametrize(('library', 'config'), [('mmdet', DETECTOR), ('mmseg', SEGMENTOR)])
def test_browse_dataset_draws_what_is_trained_on(library, config, user):
    out = f'browse_{library}'
    script = stock(library, 'browse_dataset.py')
    first = ['--cfg-options', 'train_dataloader.dataset.indices=2']
    run_here(script, config, '--not-show', '--output-dir', out, *first, cwd=user)
    pictures = sorted((user / out).iterdir())
    assert len(pictures) == 2 and all(map(is_drawn, pictures))


def test_analyze_results_sorts_the_best_and_the_worst(detector, user):
    script = stock('mmdet', 'analyze_results.py')
    run_here(script, DETECTOR, detector.out, 'results', '--topk', '1', cwd=user)
    for kind in ('good', 'bad'):
        (picture,) = (user / 'results' / kind).iterdir()
        assert is_drawn(picture)


def test_the_predictions_are_kept_for_every_image(detector):
    results = load(str(detector.out))
    assert len(results) == 3
    assert all({'bboxes', 'labels', 'scores'} <= set(r['pred_instances']) for r in results)


# Figures


def test_test_time_augmentation_runs_with_what_our_configs_say(detector, segmentor, user):
    for config, run, figure in (
        (DETECTOR, detector, 'coco/bbox_mAP'),
        (SEGMENTOR, segmentor, 'mIoU'),
    ):
        done = run_here(
            TOOLS / 'test.py', config, run.checkpoint, '--tta', '--work-dir', 'tta', cwd=user
        )
        assert figure in done.stdout


def classwise(out: str) -> dict[str, list[str]]:
    """The rows of the table by class that mmdet prints."""
    rows = re.findall(r'^\| (\d) +\| (.+) \|$', out, re.M)
    return {name: [cell.strip() for cell in cells.split('|')] for name, cells in rows}


def test_faster_coco_eval_tells_ap_by_class_and_size_as_pycocotools_does(detector, user):
    pytest.importorskip('faster_coco_eval')
    tables = []
    for metric in ('CocoMetric', 'mmlska.FasterCocoMetric'):
        options = [f'test_evaluator.type={metric}', 'test_evaluator.classwise=True']
        done = run_here(
            *(TOOLS / 'test.py', DETECTOR, detector.checkpoint, '--work-dir', 'classes'),
            *('--cfg-options', *options),
            cwd=user,
        )
        assert 'mAP_s' in done.stdout and 'mAP_l' in done.stdout
        tables.append(classwise(done.stdout))
    assert tables[0] == tables[1] and set(tables[0]) == set('0123456789')
