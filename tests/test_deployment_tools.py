"""The tools that write ONNX files, and the demo that runs them, from a checkpoint to a picture."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from script_runs import REPOSITORY, run_here
from torch_versions import since

from mmlska.analysis.onnx_check import compare_detections
from mmlska.deploy.onnx_files import OLDEST_TORCH
from mmlska.engine.config import load_config
from mmlska.engine.inference import Predictor
from mmlska.engine.onnx_evaluation import evaluate_file

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
pytest.importorskip('mmseg.models')
pytestmark = [
    pytest.mark.slow,
    since(OLDEST_TORCH, 'its exporter to ONNX is not made for these graphs'),
]

EXPORT = REPOSITORY / 'tools' / 'deployment' / 'export_onnx.py'
QUANTISE = REPOSITORY / 'tools' / 'deployment' / 'quantize_onnx.py'
DEMO = REPOSITORY / 'demo' / 'onnx_demo.py'
SEGMENTOR = 'fpn_van-lska-pico_demo_digits-64x64'
DETECTOR = 'retinanet_van-lska-pico_fpn_demo_digits-64x64'
MASK_RCNN = 'mask-rcnn_van-lska-nano_fpn_demo_digits'


@pytest.fixture(scope='module')
def user(scenes):
    """A folder with digit scenes below `data`, and random weights of a segmentor and a detector."""
    folder = scenes.parent.parent
    for name in (SEGMENTOR, DETECTOR, MASK_RCNN):
        cfg = load_config(name)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            torch.save(
                dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / f'{name}.pth'
            )
    return folder


@pytest.fixture(scope='module')
def model(user):
    """A dynamic file of the fused segmentor."""
    done = run_here(
        *(EXPORT, SEGMENTOR, f'{SEGMENTOR}.pth', 'model.onnx'),
        *('--fuse', '--dynamic', '--end2end', '--rounds', 1),
        cwd=user,
    )
    assert 'logits' in done.stdout and 'ONNX Runtime' in done.stdout
    return user / 'model.onnx'


# Runs a script in a Python that has no module but those that the demo asks for.
ALONE = """
import runpy, sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in 'torch mmlska mmengine mmcv mmdet mmseg cv2 onnx'.split():
            raise ImportError(name + ' is not needed')
sys.meta_path.insert(0, Refused())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def demo(*arguments, cwd):
    command = [sys.executable, '-c', ALONE, DEMO, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_demo_draws_with_onnxruntime_numpy_and_pillow_alone(user, model):
    image = user / 'data' / 'digit_scenes' / 'images' / 'val' / '000000.png'
    done = demo(image, model, '--out', 'drawn', cwd=user)
    assert done.returncode == 0, done.stderr
    assert '%' in done.stdout
    with Image.open(user / 'drawn' / '000000.png') as drawn, Image.open(image) as original:
        assert drawn.size == original.size
        assert np.abs(np.int64(drawn.convert('RGB')) - np.int64(original)).mean() > 5
    (user / 'text.png').write_text('no image')
    done = demo(user / 'text.png', model, cwd=user)
    assert done.returncode == 1 and 'text.png cannot be read' in done.stderr
    done = demo(image, image, cwd=user)
    assert done.returncode == 1 and 'is no ONNX model' in done.stderr


def test_the_demo_computes_what_the_model_predicts(user, model, monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO.parent))
    import onnx_demo

    path = user / 'wide.png'
    noise = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    Image.fromarray(noise).resize((140, 90), Image.Resampling.BICUBIC).save(path)
    predictor = Predictor(SEGMENTOR, str(user / f'{SEGMENTOR}.pth'), 'cpu')
    image = np.asarray(Image.open(path))
    run = onnx_demo.Model(str(model))
    prepared, size = run.prepare(image)
    expected = predictor.batch(path)['inputs'][0].numpy()
    assert prepared.shape == expected.shape and prepared.shape[1:] == size
    # OpenCV rounds to a grey level in another way; a level is a sixtieth of a standard deviation.
    assert np.abs(prepared - expected).max() < 1.05 / 57
    labels = predictor(path).pred_sem_seg.data[0].numpy()
    # With random weights many logits nearly tie.
    assert (run.segment(image) == labels).mean() > 0.95


def test_windows_are_moved_as_mmseg_moves_them(model, user, monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO.parent))
    import onnx_demo

    options = {'model.test_cfg': dict(mode='slide', crop_size=(48, 40), stride=(32, 24))}
    predictor = Predictor(SEGMENTOR, str(user / f'{SEGMENTOR}.pth'), 'cpu', options)
    run = onnx_demo.Model(str(model))
    run.told['window'] = dict(size=[48, 40], stride=[32, 24])
    image = torch.randn(1, 3, 70, 90)
    metas = [dict(img_shape=(70, 90), ori_shape=(70, 90), pad_shape=(70, 90))]
    with torch.no_grad():
        expected = predictor.model.inference(image, metas)[0].numpy()
    np.testing.assert_allclose(run.windows(image[0].numpy()), expected, atol=1e-4)


def test_a_file_is_quantised_and_evaluated(user, model):
    config = load_config(SEGMENTOR)
    config.work_dir = str(user / 'evaluation')
    config.dump(user / 'mine.py')
    done = run_here(
        *(QUANTISE, 'mine.py', model, 'int8.onnx', '--images', 'data/digit_scenes/images/train'),
        *('--num-images', 4, '--evaluate'),
        *('--cfg-options', 'test_dataloader.dataset.data_root=data/digit_scenes/'),
        cwd=user,
    )
    assert 'ranges measured on 4 images' in done.stdout
    figures = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[-4:])
    before, after = (float(figure) for figure in figures['mIoU'].split())
    assert before > 0 and after > 0
    assert (user / 'int8.onnx').stat().st_size < 0.7 * model.stat().st_size


def test_the_demo_finds_the_boxes_and_masks_of_a_mask_rcnn(user, monkeypatch):
    pytest.importorskip('mmcv._ext', reason='mmcv was built without its compiled operators')
    monkeypatch.syspath_prepend(str(DEMO.parent))
    import onnx_demo

    weights = f'{MASK_RCNN}.pth'
    run_here(
        *(EXPORT, MASK_RCNN, weights, 'mask_rcnn.onnx', '--fuse', '--dynamic', '--end2end'),
        *('--rounds', 0, '--max-images', 2),
        cwd=user,
    )
    path = user / 'data' / 'digit_scenes' / 'images' / 'val' / '000000.png'
    monkeypatch.chdir(user)
    figures = evaluate_file(MASK_RCNN, 'mask_rcnn.onnx')
    assert figures.keys() >= {'coco/bbox_mAP', 'coco/segm_mAP'}
    expected = Predictor(MASK_RCNN, str(user / weights), 'cpu')(path).pred_instances
    found = onnx_demo.Model(str(user / 'mask_rcnn.onnx')).detect(np.asarray(Image.open(path)), 0.0)
    assert len(found.labels) == len(expected) > 0
    errors = compare_detections(
        dict(boxes=found.boxes[None], scores=found.scores[None], labels=found.labels[None]),
        dict(
            boxes=expected.bboxes.numpy()[None],
            scores=expected.scores.numpy()[None],
            labels=expected.labels.numpy()[None],
        ),
    )
    assert errors['boxes'][1] < 0.01 and errors['scores'][1] < 1e-4
    assert errors['detections'][1] == 0
    areas = sorted(expected.masks.flatten(1).sum(1).tolist())
    placed = [
        onnx_demo.placed(*pair, (128, 128)) for pair in zip(found.masks, found.boxes, strict=True)
    ]
    # At the rim of a box mmdet mixes the mask with what lies outside.
    assert sorted(mask.sum() for *_, mask in placed) == pytest.approx(areas, rel=0.1, abs=12)


def test_the_network_of_a_detector_is_exported_in_half_precision(user):
    pytest.importorskip('mmdet.models')
    run_here(
        *(EXPORT, DETECTOR, f'{DETECTOR}.pth', 'network.onnx', '--fp16', '--size', 64, 64),
        *('--rounds', 0),
        cwd=user,
    )
    done = demo(user / 'wide.png', user / 'network.onnx', cwd=user)
    assert done.returncode == 1


def test_a_file_that_computes_something_else_is_not_kept(user, monkeypatch):
    from mmlska.analysis import onnx_export

    monkeypatch.setattr(onnx_export, 'SINGLE', onnx_export.SINGLE._replace(maps=0.0))
    done = run_here(
        *(EXPORT, SEGMENTOR, f'{SEGMENTOR}.pth', 'wrong.onnx', '--size', 32, 32),
        *('--fuse', '--rounds', 0),
        cwd=user,
        expect=1,
    )
    assert 'the file is removed, since\n  logits differ by' in done.stderr
    assert not [path for path in user.iterdir() if 'wrong' in path.name or 'export-' in path.name]
