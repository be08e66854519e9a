"""The inferencers of MMDetection and MMSegmentation take our configs by name."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.infer import BaseInferencer
from mmengine.registry import MODELS, DefaultScope
from script_runs import new_managers

from mmlska.checkpoint.own_models import own_models
from mmlska.engine.config import load_config
from mmlska.engine.inference import Predictor
from mmlska.shipped import shipped_configs

DETECTOR = 'retinanet_van-lska-pico_fpn_demo_digits-64x64'
SEGMENTOR = 'fpn_van-lska-pico_demo_digits-64x64'
OWN_MODEL = 'fpn_van-lska-k35-pico_digits'


@pytest.fixture(autouse=True)
def unscoped():
    """As in a new process: no default scope, no visualizer."""
    with new_managers():
        yield


def det_inferencer(name, **options):
    return pytest.importorskip('mmdet.apis').DetInferencer(
        name, device='cpu', show_progress=False, **options
    )


def seg_inferencer(name, **options):
    return pytest.importorskip('mmseg.apis').MMSegInferencer(name, device='cpu', **options)


@pytest.fixture
def image(tmp_path) -> str:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'noise.png'), noise)
    return str(tmp_path / 'noise.png')


def save_untrained(name: str, folder: Path) -> str:
    cfg = load_config(name)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        state = MODELS.build(cfg.model).state_dict()
    meta = dict(dataset_meta=dict(classes=tuple('0123456789'), palette=[(9, 9, 9)] * 10))
    torch.save(dict(meta=meta, state_dict=state), folder / 'model.pth')
    return str(folder / 'model.pth')


def test_a_detector_by_name_finds_what_the_predictor_finds(tmp_path, image):
    pytest.importorskip('mmdet')
    weights = save_untrained(DETECTOR, tmp_path)
    found = det_inferencer(DETECTOR.upper(), weights=weights)(image)['predictions'][0]
    expected = Predictor(DETECTOR, weights, 'cpu')(image).pred_instances
    assert len(found['scores']) > 0
    np.testing.assert_allclose(found['bboxes'], expected.bboxes.numpy(), atol=1e-4)
    np.testing.assert_allclose(found['scores'], expected.scores.numpy(), atol=1e-6)
    assert found['labels'] == expected.labels.tolist()


def test_a_segmentor_by_name_finds_what_the_predictor_finds(tmp_path, image):
    """In our scope, which is that of mmseg while the model is built."""
    pytest.importorskip('mmseg')
    weights = save_untrained(SEGMENTOR, tmp_path)
    inferencer = seg_inferencer(SEGMENTOR, weights=weights, scope='mmlska')
    found = inferencer(image)['predictions']
    expected = Predictor(SEGMENTOR, weights, 'cpu')(image).pred_sem_seg.data[0]
    assert (found == expected.numpy()).all()


def test_a_model_of_the_package_comes_with_its_weights(image):
    pytest.importorskip('mmseg')
    inferencer = seg_inferencer(OWN_MODEL)
    found = inferencer(image)['predictions']
    options = own_models()[OWN_MODEL].options
    predictor = Predictor(SEGMENTOR, f'mmlska://{OWN_MODEL}', 'cpu', options)
    assert (found == predictor(image).pred_sem_seg.data[0].numpy()).all()
    assert inferencer.cfg.model.backbone.attention.kernel_size == 35


def test_a_name_of_another_task_is_refused():
    message = f'{SEGMENTOR} is a model of mmseg, which no inferencer of mmdet runs'
    with pytest.raises(ValueError, match=message):
        det_inferencer(SEGMENTOR)


@pytest.mark.parametrize('options', [{}, dict(scope='mmlska')], ids=['own scope', 'our scope'])
def test_an_unknown_name_is_an_error_that_names_the_nearest(options):
    with pytest.raises(ValueError, match='did you mean mask-rcnn_van-lska-tiny_fpn_1x_coco'):
        det_inferencer('mask-rcnn_van-lska-tyni_fpn_1x_coco', **options)


def test_models_of_others_are_found_as_before():
    pytest.importorskip('mmdet')
    inferencer = SimpleNamespace(scope='mmdet')
    cfg, weights = BaseInferencer._load_model_from_metafile(inferencer, 'retinanet_r18_fpn_1x_coco')
    assert cfg.model.backbone.depth == 18 and weights.startswith('https://')
    assert inferencer.scope == 'mmdet'


@pytest.mark.slow
@pytest.mark.parametrize('module', ['mmdet', 'mmseg'])
def test_no_name_of_ours_hides_one_of_theirs(module):
    folder = Path(pytest.importorskip(module).__file__).parent / '.mim'
    theirs = {model['Name'] for model in BaseInferencer._get_models_from_metafile(str(folder))}
    assert len(theirs) > 100
    assert not theirs & {*shipped_configs(), *own_models()}


def test_our_models_are_listed():
    assert 'mask-rcnn_van-lska-tiny_fpn_1x_coco' in BaseInferencer.list_models('mmlska', 'mask')
