from pathlib import Path

import pytest
from mmengine.config import Config

from mmlska.engine.data_check import check_data


@pytest.fixture
def root(tmp_path) -> Path:
    for folder in ('train', 'val', 'labels'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'one.png').write_bytes(b'x')
    (tmp_path / 'train.json').write_text('{}')
    (tmp_path / 'val.json').write_text('{}')
    return tmp_path


def detection(root: Path, **overrides) -> Config:
    def dataset(split):
        return dict(
            type='CocoDataset',
            data_root=str(root),
            ann_file=f'{split}.json',
            data_prefix=dict(img=f'{split}/'),
        )

    settings = dict(
        train_cfg=dict(max_epochs=1),
        val_cfg=dict(),
        train_dataloader=dict(dataset=dataset('train')),
        val_dataloader=dict(dataset=dataset('val')),
        val_evaluator=dict(type='CocoMetric', ann_file=str(root / 'val.json')),
    )
    return Config({**settings, **overrides})


def error_of(cfg: Config, *splits: str) -> str:
    with pytest.raises(FileNotFoundError) as error:
        check_data(cfg, splits)
    return str(error.value)


def test_complete_data_passes(root):
    check_data(detection(root), ('train', 'val'))


def test_a_missing_root_names_path_key_layout_and_remedy(root):
    cfg = detection(root / 'absent')
    message = error_of(cfg, 'train')
    assert f"train_dataloader.dataset.data_root: the folder '{root / 'absent'}'" in message
    assert 'CocoDataset expects' in message
    assert 'train.json  (ann_file)' in message
    assert 'train/  (data_prefix.img)' in message
    assert '--cfg-options train_dataloader.dataset.data_root=FOLDER' in message


def test_all_splits_are_reported_at_once(root):
    message = error_of(detection(root / 'absent'), 'train', 'val')
    for key in ('train_dataloader.dataset', 'val_dataloader.dataset', 'val_evaluator.ann_file'):
        assert f'  {key}' in message


def test_a_missing_annotation_file_is_named(root):
    (root / 'train.json').unlink()
    message = error_of(detection(root), 'train')
    assert f"train_dataloader.dataset.ann_file: '{root / 'train.json'}' does not exist" in message
    assert 'data_root: ' not in message


def test_an_empty_image_folder_is_refused(root):
    (root / 'val' / 'one.png').unlink()
    assert 'val_dataloader.dataset.data_prefix.img' in error_of(detection(root), 'val')


def test_datasets_inside_wrappers_are_found(root):
    inner = dict(type='ADE20KDataset', data_root=str(root), data_prefix=dict(img_path='train'))
    absent = dict(inner, data_prefix=dict(img_path='train', seg_map_path='nowhere'))
    both = dict(type='ConcatDataset', datasets=[inner, absent])
    wrapped = dict(type='RepeatDataset', times=2, dataset=both)
    cfg = detection(root, train_dataloader=dict(dataset=wrapped))
    message = error_of(cfg, 'train')
    assert 'train_dataloader.dataset.dataset.datasets.1.data_prefix.seg_map_path' in message
    assert 'datasets.0' not in message


def test_one_of_several_metrics_may_lack_its_file(root):
    metrics = [dict(type='IoUMetric'), dict(type='CocoMetric', ann_file='nowhere.json')]
    message = error_of(detection(root, val_evaluator=metrics), 'val')
    assert "val_evaluator.1.ann_file: 'nowhere.json'" in message


@pytest.mark.parametrize('kind', ['CocoMetric', 'mmlska.FasterCocoMetric'])
@pytest.mark.parametrize('keys', [{}, dict(meta_keys=('img_id', 'instances'))])
def test_a_metric_without_a_file_needs_the_objects_of_the_samples(kind, keys, root):
    cfg = detection(root, val_evaluator=dict(type=kind, metric='bbox'))
    check_data(cfg, ('val',))
    cfg.val_dataloader.dataset.pipeline = [dict(type='mmdet.PackDetInputs', **keys)]
    if keys:
        check_data(cfg, ('val',))
        return
    message = error_of(cfg, 'val')
    assert 'val_evaluator.ann_file: not set' in message
    assert message.endswith('--cfg-options val_evaluator.ann_file=FILE')


@pytest.mark.parametrize(
    'remote',
    [
        dict(data_root='s3://bucket/coco'),
        dict(data_root='/absent', backend_args=dict(backend='petrel')),
    ],
)
def test_other_storage_is_not_looked_at(root, remote):
    dataset = dict(type='CocoDataset', ann_file='train.json', **remote)
    check_data(detection(root, train_dataloader=dict(dataset=dataset)), ('train',))


def test_a_split_without_a_loop_is_left_out(root):
    check_data(detection(root / 'absent', train_cfg=None, val_cfg=None), ('train', 'val'))


def test_one_class_without_its_comma_is_refused(root):
    cfg = detection(root)
    cfg.train_dataloader.dataset.metainfo = dict(classes='screw')
    with pytest.raises(ValueError, match=r"classes='screw' is text.*classes=\('screw',\)"):
        check_data(cfg, ('train',))
