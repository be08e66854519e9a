from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS
from runners import Part, runner_of
from torch import nn

from mmlska.engine import NumClassCheckHook, check_num_classes
from mmlska.engine.hooks.num_class_check_hook import OWN_LABELS


def data(*classes):
    return SimpleNamespace(metainfo=dict(classes=classes))


def detector(**counts):
    """A detector of two stages; its RPN knows one class whatever the data set."""
    heads = {name: Part(num_classes=count) for name, count in counts.items()}
    return Part(
        backbone=Part(num_classes=1000), rpn_head=Part(num_classes=1), roi_head=Part(**heads)
    )


def test_heads_for_the_classes_of_the_data_pass():
    check_num_classes(detector(bbox_head=2, mask_head=2), data('screw', 'nut'))
    check_num_classes(Part(head=Part(num_classes=3)), data('a', 'b', 'c'))


@pytest.mark.parametrize('name', ['bbox_head', 'mask_head'])
@pytest.mark.parametrize('count', [80, 1])
def test_every_head_of_another_number_of_classes_is_named(name, count):
    counts = {**dict(bbox_head=2, mask_head=2), name: count}
    with pytest.raises(ValueError, match=r'has 2 classes \(screw, nut\)') as error:
        check_num_classes(detector(**counts), data('screw', 'nut'))
    options = f'model.roi_head.{name}.num_classes'
    assert f'but {options}={count}. Set {options}=2' in str(error.value)


def test_heads_of_a_cascade_are_named_one_by_one():
    heads = nn.ModuleList(Part(num_classes=n) for n in (2, 80))
    with pytest.raises(ValueError, match=r'but model\.roi_head\.bbox_head\.1\.num_classes=80\. '):
        check_num_classes(Part(roi_head=Part(bbox_head=heads)), data('a', 'b'))


@pytest.mark.parametrize('name', ['decode_head', 'auxiliary_head'])
def test_the_heads_of_segmentors_are_checked(name):
    with pytest.raises(ValueError, match=rf'model\.{name}\.num_classes=150'):
        check_num_classes(Part(**{name: Part(num_classes=150)}), data('road', 'sky', 'car'))


def test_the_option_of_a_semi_supervised_detector_is_named_once():
    model = Part(student=detector(bbox_head=80), teacher=detector(bbox_head=80))
    option = 'model.detector.roi_head.bbox_head.num_classes'
    with pytest.raises(ValueError, match=r'has 2 classes') as error:
        check_num_classes(model, data('screw', 'nut'))
    assert str(error.value).endswith(f'but {option}=80. Set {option}=2')


class STDCHead(Part):
    """Like mmseg's, which learns borders."""


class RPNHead(Part):
    """Like mmdet's, which learns what is an object; in an RPN alone it is the ``bbox_head``."""


class OwnRPNHead(RPNHead):
    """A user's own."""


@pytest.mark.parametrize(
    'model',
    [
        detector(bbox_head=2, mask_head=2),
        Part(bbox_head=Part(num_classes=256), language_model=Part()),
        Part(text_encoder=Part(), decode_head=Part(num_classes=20)),
        Part(student=Part(panoptic_fusion_head=Part(), bbox_head=Part(num_classes=80))),
        Part(bbox_head=RPNHead(num_classes=1)),
        Part(bbox_head=OwnRPNHead(num_classes=1)),
        Part(panoptic_fusion_head=Part(), roi_head=Part(bbox_head=Part(num_classes=80))),
        Part(decode_head=Part(num_classes=1)),
        Part(auxiliary_head=nn.ModuleList([Part(num_classes=2), STDCHead(num_classes=9)])),
        Part(mask_head=Part(num_classes=80, class_agnostic=True)),
        Part(),
    ],
)
def test_what_cannot_be_decided_passes(model):
    check_num_classes(model, data('a', 'b'))
    check_num_classes(model, SimpleNamespace())
    check_num_classes(model, SimpleNamespace(metainfo={}))


@pytest.mark.parametrize('name', ['panoptic_head', 'semantic_head', 'panoptic_fusion_head'])
def test_things_and_stuff_are_the_classes_together(name):
    def model(things, stuff):
        head = Part(num_classes=things + stuff, num_things_classes=things, num_stuff_classes=stuff)
        return Part(**{'panoptic_fusion_head': Part(), name: head}, bbox_head=Part(num_classes=7))

    check_num_classes(model(2, 0), data('screw', 'nut'))
    check_num_classes(model(1, 1), data('screw', 'floor'))
    things, stuff = (f'model.{name}.num_{kind}_classes' for kind in ('things', 'stuff'))
    with pytest.raises(ValueError, match='has 2 classes') as error:
        check_num_classes(model(80, 53), data('screw', 'floor'))
    options = f'{things} + {stuff}'
    assert f'but {options}=133. Set {options}=2' in str(error.value)


def test_a_string_is_no_tuple_of_classes():
    dataset = SimpleNamespace(metainfo=dict(classes=('screw')))
    with pytest.raises(TypeError, match=r"string 'screw'.*classes=\('screw',\)"):
        check_num_classes(Part(), dataset)


@pytest.mark.parametrize('phase', ['train', 'val', 'test'])
def test_the_hook_is_registered_and_checks_before_each_loop(phase):
    hook = HOOKS.build(dict(type='mmlska.NumClassCheckHook'))
    assert isinstance(hook, NumClassCheckHook)
    run = getattr(hook, f'before_{phase}')
    run(runner_of(detector(bbox_head=1), **{phase: data('a')}))
    with pytest.raises(ValueError, match='bbox_head'):
        run(runner_of(detector(bbox_head=80), **{phase: data('a')}))


def test_a_refused_detector_fails_at_its_evaluation():
    coco = pytest.importorskip('mmdet.evaluation.metrics').CocoMetric(metric='bbox')
    coco.cat_ids = [1, 2]
    label = 80 - 1
    found = dict(
        img_id=0,
        bboxes=torch.rand(1, 4).numpy(),
        scores=torch.ones(1).numpy(),
        labels=torch.tensor([label]).numpy(),
    )
    with pytest.raises(IndexError):
        coco.results2json([found], 'unused')


def test_a_refused_segmentor_fails_at_its_loss():
    logits, labels = torch.rand(1, 2, 4, 4), torch.full((1, 4, 4), 2)
    with pytest.raises(IndexError, match='Target 2 is out of bounds'):
        nn.functional.cross_entropy(logits, labels)


def test_the_heads_of_mmdet_and_mmseg_bear_the_names_that_are_checked():
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    from mmengine.registry import DefaultScope

    from mmlska.engine.config import load_config
    from mmlska.registry import MODELS

    for name, scope, count in (
        ('mask-rcnn_van-lska-tiny_fpn_1x_coco', 'mmdet', 80),
        ('retinanet_van-lska-tiny_fpn_1x_coco', 'mmdet', 80),
        ('fpn_van-lska-tiny_4xb4-80k_ade20k-512x512', 'mmseg', 150),
    ):
        cfg = load_config(name)
        cfg.model.backbone.arch = dict(embed_dims=[8] * 4, depths=[1] * 4, ffn_ratios=[1] * 4)
        cfg.model.neck.in_channels = [8] * 4
        with DefaultScope.overwrite_default_scope(scope):
            model = MODELS.build(cfg.model)
        check_num_classes(model, data(*map(str, range(count))))
        with pytest.raises(ValueError, match=f'num_classes={count}'):
            check_num_classes(model, data('one', 'two'))


@pytest.mark.parametrize('kind', ['RPNHead', 'GARPNHead'])
def test_mmdet_has_the_heads_of_an_rpn_by_these_names(kind):
    heads = pytest.importorskip('mmdet.models.dense_heads')
    assert getattr(heads, kind).__name__ in OWN_LABELS
