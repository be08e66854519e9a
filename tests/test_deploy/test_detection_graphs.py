import io

import pytest
import torch
from mmdet.models.task_modules.coders import TBLRBBoxCoder
from small_detectors import DETECTORS, build, found_by_mmdet, mask_rcnn, noise, retinanet, yolox
from torch import nn
from torch.torch_version import TorchVersion

if TorchVersion(torch.__version__) < '2.4':
    pytest.skip('graphs of detectors need PyTorch 2.4 or newer', allow_module_level=True)

from mmlska.deploy.detection_graphs import custom_translation_table, detection_graph

SIZES = torch.tensor([[50, 90], [64, 70]])


def rows_of(outputs, image):
    """What a graph found on an image, without the rows that fill up."""
    is_found = outputs[2][image] >= 0
    for part in outputs[:3]:
        assert not part[image][~is_found].clamp(min=0).any()
    return [part[image][is_found] for part in outputs[:3]]


def weights_along(starts, ends, cells, pixels):
    """Share of each cell of a grid from start to end in the value at the centre of each pixel."""
    centers = (torch.arange(pixels) + 0.5 - starts[:, None]) / (ends - starts)[:, None] * cells
    return (1 - (centers[:, :, None] - 0.5 - torch.arange(cells)).abs()).clamp(min=0)


def pasted(grids, boxes, height, width):
    """Probabilities on a grid over each box, interpolated at the pixels of the image."""
    left, top, right, bottom = boxes.T
    rows = weights_along(top, bottom, grids.shape[1], height)
    columns = weights_along(left, right, grids.shape[2], width)
    return rows @ grids @ columns.mT


def finds_the_same(detector, outputs, images, sizes=None, tolerance=1e-6):
    """Whether a graph found what mmdet finds, in the same order; returns how many of each image."""
    expected = found_by_mmdet(detector, images, sizes)
    tolerance = dict(rtol=tolerance, atol=tolerance)
    for image, instances in enumerate(expected):
        boxes, scores, labels = rows_of(outputs, image)
        torch.testing.assert_close(boxes, instances.bboxes, **tolerance)
        torch.testing.assert_close(scores, instances.scores, **tolerance)
        assert torch.equal(labels, instances.labels)
        for grids in outputs[3:]:
            masks = pasted(grids[image, : len(boxes)], boxes, *instances.masks.shape[1:])
            assert ((masks >= 0.5) != instances.masks).float().mean() < 1e-3
    counts = [len(instances) for instances in expected]
    assert outputs[0].shape[1] == max(1, *counts)
    return counts


@pytest.mark.parametrize('family', DETECTORS)
@torch.no_grad()
def test_a_graph_finds_what_mmdet_finds(family):
    detector, images = build(DETECTORS[family]()), noise(2, 64, 96)
    graph = detection_graph(detector)
    assert min(finds_the_same(detector, graph(images), images)) > 3
    # What lies in the padding is cut off where mmdet is told the size.
    assert min(finds_the_same(detector, graph(images, SIZES), images, SIZES)) > 3


@torch.no_grad()
def test_images_of_a_batch_have_different_numbers_of_detections():
    """The others end in rows of zeros with the label -1, see ``rows_of``."""
    detector, images = build(yolox()), noise(2, 64, 96)
    images[0] *= 0.1
    graph = detection_graph(detector, score_threshold=0.25)
    detector.bbox_head.test_cfg.score_thr = 0.25
    few, many = sorted(finds_the_same(detector, graph(images), images))
    assert 0 < few < many


def undecided(detector):
    """The detector with scores of at most a half."""
    for name, parameter in detector.named_parameters():
        if 'cls' in name:
            nn.init.zeros_(parameter)
    return detector


@pytest.mark.parametrize('family', ['mask-rcnn', 'retinanet', 'yolox'])
@torch.no_grad()
def test_images_without_detections_leave_one_row(family):
    detector, images = undecided(build(DETECTORS[family]())), noise(2, 64, 64)
    boxes, scores, labels, *masks = detection_graph(detector, score_threshold=0.6)(images)
    assert boxes.tolist() == [[[0, 0, 0, 0]]] * 2
    assert scores.tolist() == [[0]] * 2
    assert labels.tolist() == [[-1]] * 2
    assert all(grids.shape[:2] == (2, 1) for grids in masks)


@torch.no_grad()
def test_the_number_of_detections_is_limited():
    detector, images = build(yolox()), noise(2, 64, 96)
    everything = detection_graph(detector)(images)
    limited = detection_graph(detector, max_detections=7)(images)
    for whole, part in zip(everything, limited, strict=True):
        assert torch.equal(whole[:, :7], part)


def own_decoding(detector):
    """A head that makes boxes of its outputs in a way of its own."""

    class OwnHead(type(detector.bbox_head)):
        def _predict_by_feat_single(self, *args, **kwargs):
            return super()._predict_by_feat_single(*args, **kwargs)

    detector.bbox_head.__class__ = OwnHead


def own_boxes(detector):
    detector.bbox_head.bbox_coder = TBLRBBoxCoder()


def soft_nms(detector):
    detector.bbox_head.test_cfg.nms.type = 'soft_nms'


def no_thresholds(detector):
    detector.bbox_head.test_cfg = None


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (own_decoding, 'OwnHead: its _predict_by_feat_single is not that of BaseDenseHead'),
        (own_boxes, 'its box coder is a TBLRBBoxCoder; known are DeltaXYWHBBoxCoder, Distance'),
        (soft_nms, 'soft_nms.*; a graph knows the type nms, and no other'),
        (no_thresholds, 'RetinaHead: it was built without test_cfg'),
    ],
)
def test_what_a_graph_cannot_compute_is_refused_by_name(change, message):
    detector = build(retinanet())
    change(detector)
    with pytest.raises(TypeError, match=message):
        detection_graph(detector)


def test_other_kinds_of_models_are_refused_by_name():
    with pytest.raises(TypeError, match='Conv2d: it is neither a SingleStageDetector nor a TwoSt'):
        detection_graph(nn.Conv2d(3, 4, 1))


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (dict(score_threshold=1.5), 'score_threshold is 1.5; allowed is 0 to below 1'),
        (dict(max_detections=0), 'max_detections is 0; allowed is 1 or more'),
    ],
)
def test_limits_out_of_range_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        detection_graph(build(retinanet()), **option)


def exported(graph, images, any_size=True):
    """An exported graph as a function of images, of any number and size or of those of these."""
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    dim = torch.export.Dim
    sides = {2: 32 * dim('height', min=1, max=64), 3: 32 * dim('width', min=1, max=64)}
    file = io.BytesIO()
    torch.onnx.export(
        graph,
        (images,),
        dynamo=True,
        input_names=['image'],
        output_names=list(graph.output_names),
        dynamic_shapes=({0: dim('batch', min=1, max=64), **sides},) if any_size else None,
        custom_translation_table=custom_translation_table(),
        verbose=False,
    ).save(file)
    session = runtime.InferenceSession(file.getvalue())
    return lambda images: [
        torch.from_numpy(x) for x in session.run(None, {'image': images.numpy()})
    ]


@pytest.mark.slow
@pytest.mark.parametrize('family', ['class-aware-mask-rcnn', 'yolox'])
def test_an_exported_graph_finds_the_same_in_images_of_any_size(family):
    detector = build(DETECTORS[family]())
    run = exported(detection_graph(detector), noise(2, 64, 96))
    for images in (noise(2, 64, 96), noise(1, 96, 32), noise(3, 32, 64)):
        assert min(finds_the_same(detector, run(images), images, tolerance=1e-3)) > 3


@pytest.mark.slow
def test_an_exported_graph_finds_nothing():
    graph = detection_graph(undecided(build(mask_rcnn())), score_threshold=0.6)
    images = noise(2, 64, 64)
    boxes, scores, labels, masks = exported(graph, images, any_size=False)(images)
    assert boxes.shape == (2, 1, 4)
    assert scores.tolist() == [[0]] * 2
    assert labels.tolist() == [[-1]] * 2
    assert masks.shape == (2, 1, 28, 28)
