import importlib.util
import json

import numpy as np
import pytest
import torch
from mmengine.registry import METRICS, DefaultScope

from benchmarks.coco_results import evaluate, make_results
from mmlska.evaluation import faster_coco

TYPES = ('bbox', 'segm')


@pytest.fixture(scope='module')
def dump():
    pytest.importorskip('pycocotools')
    pytest.importorskip('faster_coco_eval', reason='faster-coco-eval is not installed')
    return make_results(40, num_detections=150)


@pytest.fixture(scope='module')
def small_dump():
    pytest.importorskip('pycocotools')
    pytest.importorskip('faster_coco_eval', reason='faster-coco-eval is not installed')
    return make_results(6, num_detections=30)


@pytest.mark.parametrize('iou_type', TYPES)
@pytest.mark.parametrize('max_dets', [(100, 300, 1000), (1, 10, 100)])
def test_all_numbers_are_those_of_pycocotools(dump, iou_type, max_dets):
    slow, _ = evaluate(*dump, iou_type, fast=False, max_dets=max_dets)
    fast, _ = evaluate(*dump, iou_type, fast=True, max_dets=max_dets)
    assert np.abs(fast.stats - slow.stats).max() <= 1e-9
    for name in ('precision', 'recall', 'scores'):
        assert np.abs(fast.eval[name] - slow.eval[name]).max() <= 1e-9, name
    # Numbers that tell something: no AP is missing, perfect or zero.
    assert ((slow.stats > 0.05) & (slow.stats < 0.99)).all()


def test_more_than_a_hundred_boxes_of_a_class_count_as_in_pycocotools(dump):
    dataset, results = dump
    dataset = dict(
        dataset, annotations=[dict(entry, category_id=1) for entry in dataset['annotations']]
    )
    results = [dict(entry, category_id=1) for entry in results]
    slow, _ = evaluate(dataset, results, 'bbox', fast=False)
    fast, _ = evaluate(dataset, results, 'bbox', fast=True)
    assert np.abs(fast.stats - slow.stats).max() <= 1e-9
    # The precision at the largest count, which faster-coco-eval alone would report as mAP.
    at_most = fast.eval['precision'][:, :, 0, 0, -1]
    assert abs(at_most.mean() - slow.stats[0]) > 1e-6


ODD_IDS = {
    'floats': float,
    'halves': lambda number: number + 0.5,
    'negative': lambda number: -number,
    'from zero on': lambda number: number - 1,
    'text of a number': lambda number: f'{number:06}',
    'beyond 64 bits': lambda number: number + 2**64,
}
REFERENCES = {'annotation': 'annotations', 'image': 'images', 'category': 'categories'}


def with_ids(dump, kind, change):
    """The same annotations and detections with other ids of one kind."""
    dataset, results = dict(dump[0]), dump[1]
    own, others = REFERENCES[kind], f'{kind}_id'
    dataset[own] = [dict(entry, id=change(entry['id'])) for entry in dataset[own]]
    if kind == 'annotation':
        return dataset, results
    dataset['annotations'] = [
        dict(entry, **{others: change(entry[others])}) for entry in dataset['annotations']
    ]
    return dataset, [dict(entry, **{others: change(entry[others])}) for entry in results]


@pytest.mark.parametrize('kind', REFERENCES)
@pytest.mark.parametrize('change', ODD_IDS.values(), ids=ODD_IDS)
def test_odd_ids_count_as_in_pycocotools(small_dump, kind, change):
    changed = with_ids(small_dump, kind, change)
    slow, _ = evaluate(*changed, 'bbox', fast=False)
    fast, _ = evaluate(*changed, 'bbox', fast=True)
    assert np.abs(fast.stats - slow.stats).max() <= 1e-9
    assert fast.stats[0] > 0.01


@pytest.mark.parametrize('shared_id', [7, 7.5])
def test_doubled_ids_count_as_in_pycocotools(small_dump, shared_id):
    doubled = with_ids(small_dump, 'annotation', lambda number: shared_id)
    slow, fast = (evaluate(*doubled, 'bbox', fast=fast)[0].stats for fast in (False, True))
    assert np.abs(fast - slow).max() <= 1e-9


def test_text_ids_of_annotations_count_as_numbers_do(small_dump):
    """pycocotools stops at them."""
    text = with_ids(small_dump, 'annotation', lambda number: f'a{number}')
    with pytest.raises(ValueError, match='could not convert string'):
        evaluate(*text, 'bbox', fast=False)
    stats = [evaluate(*dump, 'bbox', fast=True)[0].stats for dump in (small_dump, text)]
    np.testing.assert_array_equal(*stats)


def test_annotations_of_unknown_images_and_categories_do_not_count(small_dump):
    dataset, results = with_ids(small_dump, 'annotation', float)
    strays = [
        dict(dataset['annotations'][0], id=-1.5, **unknown)
        for unknown in (dict(image_id='nowhere'), dict(category_id=-7))
    ]
    more = dict(dataset, annotations=[*dataset['annotations'], *strays])
    stats = [evaluate(data, results, 'bbox', fast=True)[0].stats for data in (dataset, more)]
    np.testing.assert_array_equal(*stats)


def test_ids_of_several_types_are_refused(small_dump):
    mixed = with_ids(small_dump, 'image', lambda number: number if number > 1 else 'one')
    with pytest.raises(TypeError, match='the image ids of the annotation file are of several'):
        evaluate(*mixed, 'bbox', fast=True)


def predictions(results, image_id):
    """What a detector hands to a metric for one image."""
    mine = [result for result in results if result['image_id'] == image_id]
    boxes = torch.tensor([result['bbox'] for result in mine], dtype=torch.float64)
    boxes[:, 2:] += boxes[:, :2]
    return dict(
        img_id=image_id,
        ori_shape=(480, 640),
        pred_instances=dict(
            bboxes=boxes,
            scores=torch.tensor([result['score'] for result in mine], dtype=torch.float64),
            labels=torch.tensor([result['category_id'] - 1 for result in mine]),
            masks=[result['segmentation'] for result in mine],
        ),
    )


OPTIONS = [
    dict(metric=list(TYPES)),
    dict(metric=list(TYPES), classwise=True),
    dict(metric='segm', proposal_nums=(1, 10, 100)),
    dict(metric='bbox', metric_items=['mAP', 'mAP_50', 'AR@100']),
    dict(metric=['proposal', 'bbox']),
    dict(metric='bbox', use_mp_eval=True),
    dict(metric='bbox', sort_categories=True, prefix='mine'),
]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_the_metric_reports_what_mmdets_reports(small_dump, options, tmp_path):
    pytest.importorskip('mmdet')
    dataset, results = small_dump
    annotations = tmp_path / 'annotations.json'
    annotations.write_text(json.dumps(dataset))
    classes = tuple(category['name'] for category in dataset['categories'])
    reports = []
    for name in ('CocoMetric', 'mmlska.FasterCocoMetric'):
        settings = dict(options, type=name, ann_file=str(annotations))
        with DefaultScope.overwrite_default_scope('mmdet'):
            metric = METRICS.build(settings)
        metric.dataset_meta = dict(classes=classes)
        for image in dataset['images']:
            metric.process({}, [predictions(results, image['id'])])
        reports.append(metric.evaluate(len(dataset['images'])))
    assert reports[0].keys() == reports[1].keys()
    assert len(reports[0]) >= 3
    np.testing.assert_equal(reports[1], reports[0])
    assert max(reports[0].values()) > 0.05


def test_mmdets_own_metric_is_left_as_it_was(dump):
    coco_metric = pytest.importorskip('mmdet.evaluation.metrics.coco_metric')
    before = coco_metric.COCOeval
    ours = faster_coco.evaluation_class()
    with pytest.raises(ZeroDivisionError), faster_coco.evaluate_coco_by(ours):
        assert coco_metric.COCOeval is ours is not before
        raise ZeroDivisionError
    assert coco_metric.COCOeval is before


@pytest.mark.parametrize('absent', ['mmdet', 'faster_coco_eval'])
def test_a_missing_library_is_told_before_anything_is_evaluated(absent, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        faster_coco, 'find_spec', lambda name: None if name == absent else find('json')
    )
    distribution = absent.replace('_', '-')
    with pytest.raises(ImportError, match=f'needs {absent}.*pip install {distribution}'):
        METRICS.build(dict(type='mmlska.FasterCocoMetric', metric='bbox'))
