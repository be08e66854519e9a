import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmlska.deploy.plain_graphs import GridPool, NetworkGraph, SegmentationGraph, exportable
from mmlska.engine.config import load_config

SEGMENTOR = 'fpn_van-lska-pico_demo_digits-64x64'


def build(name, **options):
    cfg = load_config(name, options)
    pytest.importorskip(f'{cfg.default_scope}.models')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model).eval()


@pytest.mark.parametrize('output_size', [1, 3, (2, 5), (None, 4)])
@pytest.mark.parametrize('shape', [(5, 7), (6, 6), (2, 11), (1, 1)])
def test_a_grid_averages_what_pytorch_averages(output_size, shape):
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    expected = nn.AdaptiveAvgPool2d(output_size)(x)
    torch.testing.assert_close(GridPool(output_size)(x), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_an_exportable_copy_computes_the_same_and_leaves_the_model_alone():
    pytest.importorskip('mmseg.models')
    from mmseg.models.utils import Upsample

    upsample = Upsample(scale_factor=2, mode='bilinear', align_corners=False)
    fixed = Upsample(size=(9, 9))
    model = nn.Sequential(upsample, nn.AdaptiveAvgPool2d((3, 2)), nn.Sequential(fixed))
    copied = exportable(model.train())
    assert [type(part) for part in copied] == [nn.Upsample, GridPool, nn.Sequential]
    assert type(copied[2][0]) is Upsample
    assert model[0] is upsample and model.training and not copied.training
    x = torch.randn(1, 2, 5, 7)
    torch.testing.assert_close(copied(x), model(x))


@torch.no_grad()
def test_a_segmentor_ends_in_the_logits_and_labels_of_its_prediction():
    model = build(SEGMENTOR)
    image = torch.randn(2, 3, 64, 48)
    found = SegmentationGraph(model)(image)
    for i, sample in enumerate(model.predict(image)):
        torch.testing.assert_close(found['logits'][i], sample.seg_logits.data)
        assert torch.equal(found['labels'][i], sample.pred_sem_seg.data[0])


@torch.no_grad()
def test_a_single_logit_is_compared_with_the_threshold():
    options = {'num_classes': 2, 'out_channels': 1, 'threshold': 0.4}
    options = {f'model.decode_head.{key}': value for key, value in options.items()}
    options['model.decode_head.loss_decode.use_sigmoid'] = True
    model = build(SEGMENTOR, **options)
    image = torch.randn(1, 3, 32, 32)
    labels = SegmentationGraph(model)(image)['labels']
    assert torch.equal(labels[0], model.predict(image)[0].pred_sem_seg.data[0].long())


@torch.no_grad()
def test_the_network_of_a_segmentor_ends_in_its_logits():
    model, image = build(SEGMENTOR), torch.randn(1, 3, 64, 64)
    assert torch.equal(NetworkGraph(model)(image)['logits'], model(image))


@torch.no_grad()
def test_the_network_of_a_detector_ends_in_the_maps_of_its_head():
    model, image = build('retinanet_van-lska-pico_fpn_demo_digits-64x64'), torch.randn(1, 3, 64, 64)
    found = NetworkGraph(model)(image)
    scores, boxes = model(image)
    for j, (score, box) in enumerate(zip(scores, boxes, strict=True)):
        assert torch.equal(found[f'output0_level{j}'], score)
        assert torch.equal(found[f'output1_level{j}'], box)
    assert len(found) == 2 * len(scores)


@torch.no_grad()
def test_the_network_of_a_two_stage_detector_ends_in_regions_and_features():
    model = build('mask-rcnn_van-lska-nano_fpn_demo_digits')
    image = torch.randn(1, 3, 64, 64)
    found = NetworkGraph(model)(image)
    features = model.extract_feat(image)
    assert len(found) == 3 * len(features)
    for j, feature in enumerate(features):
        assert torch.equal(found[f'feature_level{j}'], feature)


@pytest.mark.parametrize('kind', [NetworkGraph, SegmentationGraph])
def test_a_model_of_another_kind_is_refused(kind):
    with pytest.raises(ValueError, match='Conv2d'):
        kind(nn.Conv2d(3, 4, 1))
