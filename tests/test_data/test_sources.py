from pathlib import Path

import pytest
from mmengine.config import Config

from mmlska.data import CocoSource, LabelSource, find_sources
from mmlska.engine.data_check import check_data


def config(**settings) -> Config:
    return Config(dict(default_scope='mmdet', **settings))


def coco(**more) -> dict:
    return dict(
        type='CocoDataset',
        data_root='data/',
        ann_file='a.json',
        data_prefix=dict(img='images/'),
        **more,
    )


def test_detection_sets_are_found_in_wrappers():
    pytest.importorskip('mmdet')
    wrapped = dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[coco()]))
    (source,), others = find_sources(config(train_dataloader=dict(dataset=wrapped)), ('train',))
    assert source.key == 'train_dataloader.dataset.dataset.datasets.0'
    assert (source.path, source.image_folder) == ('data/a.json', 'data/images/')
    assert len(source.classes) == 80 and not others


@pytest.mark.parametrize(
    ('metric', 'with_mask', 'train', 'val'),
    [
        ('bbox', False, False, False),
        (['bbox', 'segm'], True, True, True),
        ('bbox', True, True, False),
    ],
)
def test_masks_count_where_something_reads_them(metric, with_mask, train, val):
    pytest.importorskip('mmdet')
    pipeline = [dict(type='LoadAnnotations', with_mask=with_mask)]
    loader = dict(dataset=coco(pipeline=pipeline, metainfo=dict(classes=('a',))))
    cfg = config(train_dataloader=loader, val_dataloader=loader, val_evaluator=dict(metric=metric))
    sources, _ = find_sources(cfg, ('train', 'val'))
    assert [source.masks for source in sources] == [train, val]
    assert [source.evaluated for source in sources] == [False, True]
    assert all(isinstance(source, CocoSource) and source.classes == ('a',) for source in sources)


@pytest.mark.parametrize(
    ('steps', 'decoder'),
    [
        ([dict(type='mmdet.LoadImageFromFile')], 'cv2'),
        ([dict(type='LoadImageFromFile', imdecode_backend='tifffile')], 'tifffile'),
        ([dict(type='LoadSingleRSImageFromFile')], ''),
    ],
)
def test_what_decodes_the_images_is_found(steps, decoder):
    pytest.importorskip('mmdet')
    cfg = config(train_dataloader=dict(dataset=coco(pipeline=steps)))
    ((source,), _) = find_sources(cfg, ('train',))
    assert source.decoder == decoder


def test_the_file_of_a_metric_and_the_filter_of_a_training_are_found():
    pytest.importorskip('mmdet')
    loader = dict(dataset=coco(filter_cfg=dict(filter_empty_gt=True, min_size=32)))
    metrics = [dict(type='CocoMetric', ann_file='b.json'), dict(type='VOCMetric', ann_file='c')]
    cfg = config(train_dataloader=loader, val_dataloader=loader, val_evaluator=metrics)
    (train, val), _ = find_sources(cfg, ('train', 'val'))
    assert (train.filters_empty, train.min_size, train.truths) == (True, 32, ())
    assert val.truths == ('b.json',)


def test_the_class_of_a_segmentation_set_tells_its_suffixes():
    pytest.importorskip('mmseg')
    dataset = dict(
        type='mmseg.ADE20KDataset',
        data_root='ade',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
    )
    (source,), _ = find_sources(config(val_dataloader=dict(dataset=dataset)), ('val', 'test'))
    assert isinstance(source, LabelSource)
    assert (source.image_suffix, source.label_suffix) == ('.jpg', '.png')
    assert source.reduce_zero_label and len(source.classes) == 150 and not source.read_by_mmseg
    assert (source.image_folder, source.label_folder) == ('ade/images', 'ade/labels')


@pytest.mark.parametrize(
    ('dataset', 'reason'),
    [
        (coco(backend_args=dict(backend='petrel')), 'remote storage'),
        (dict(type='LVISV1Dataset', ann_file='a.json'), 'a LVISV1Dataset is of another format'),
        (dict(type='Unheard'), 'a Unheard is of another format'),
    ],
)
def test_other_data_is_named(dataset, reason):
    pytest.importorskip('mmdet')
    sources, (other,) = find_sources(config(train_dataloader=dict(dataset=dataset)), ('train',))
    assert not sources and reason in other


@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: dict(type='ConcatDataset', datasets=[x])])
def test_a_data_set_that_is_built_already_is_left_out(wrap):
    cfg = config(train_dataloader=dict(dataset=wrap(3)), train_cfg=dict())
    assert find_sources(cfg, ('train',)) == ([], [])
    check_data(cfg, ('train',))


def test_paths_may_be_objects(tmp_path):
    pytest.importorskip('mmdet')
    dataset = dict(coco(), data_root=tmp_path, ann_file=Path('a.json'))
    cfg = config(train_dataloader=dict(dataset=dataset), train_cfg=dict())
    (source,), _ = find_sources(cfg, ('train',))
    assert source.path == str(tmp_path / 'a.json')
    with pytest.raises(FileNotFoundError, match=r'a\.json'):
        check_data(cfg, ('train',))


def test_several_annotation_files_in_one_data_set_are_named_as_not_checked():
    pytest.importorskip('mmdet')
    dataset = dict(coco(), ann_file=['a.json', 'b.json'])
    sources, (other,) = find_sources(config(train_dataloader=dict(dataset=dataset)), ('train',))
    assert not sources and 'its ann_file is no path' in other


def test_classes_may_stand_in_a_file(tmp_path):
    pytest.importorskip('mmdet')
    (tmp_path / 'names.txt').write_text('screw\nnut\n')
    dataset = coco(metainfo=dict(classes=str(tmp_path / 'names.txt')))
    (source,), _ = find_sources(config(train_dataloader=dict(dataset=dataset)), ('train',))
    assert source.classes == ['screw', 'nut']
