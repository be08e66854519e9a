"""What a file computes, in place of what a model does when it is tested."""

import copy

import pytest
import torch
from mmdet.structures import DetDataSample
from small_detectors import DETECTORS, build, noise

from mmlska.deploy.detection_graphs import detection_graph
from mmlska.engine import onnx_evaluation
from mmlska.engine.onnx_evaluation import FileNetwork, check_classes, find_instances, segment


def samples(size, original):
    """Two images of a size, made of others half as wide and a quarter as high."""
    meta = dict(img_shape=size, ori_shape=original, scale_factor=(2.0, 4.0))
    return [DetDataSample(metainfo=dict(meta)) for _ in range(2)]


def run_by(graph):
    """A graph in PyTorch as a file in ONNX Runtime."""

    def network(images):
        outputs = dict(zip(graph.output_names, graph(images), strict=True))
        for i in range(len(images)):
            yield {name: value[i] for name, value in outputs.items()}

    return network


@pytest.mark.parametrize('family', ['mask-rcnn', 'class-aware-mask-rcnn', 'retinanet'])
@torch.no_grad()
def test_detections_are_those_of_predict(family):
    detector, images = build(DETECTORS[family]()), noise(2, 64, 96)
    found = samples((64, 96), (16, 48))
    expected = detector.predict(images, copy.deepcopy(found), rescale=True)
    find_instances(detector, run_by(detection_graph(detector)), images, found)
    for one, other in zip(found, expected, strict=True):
        one, other = one.pred_instances, other.pred_instances
        assert len(one) == len(other) > 3
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.scores, other.scores)
        torch.testing.assert_close(one.bboxes, other.bboxes)
        if 'mask' in family:
            assert one.masks.shape == (len(one), 16, 48)
            assert (one.masks != other.masks).float().mean() < 1e-4


@torch.no_grad()
def test_boxes_end_where_the_image_does():
    detector = build(DETECTORS['retinanet']())
    boxes = torch.tensor([[[4.0, 8.0, 60.0, 90.0], [0.0, 0.0, 0.0, 0.0]]] * 2)
    outputs = dict(
        boxes=boxes, scores=torch.tensor([[0.5, 0.0]] * 2), labels=torch.tensor([[3, -1]] * 2)
    )
    found = samples((80, 40), (20, 20))
    rows = [{name: value[i] for name, value in outputs.items()} for i in range(2)]
    find_instances(detector, lambda images: rows, None, found)
    for sample in found:
        assert sample.pred_instances.bboxes.tolist() == [[2, 2, 20, 20]]
        assert sample.pred_instances.labels.tolist() == [3]


class FixedFile:
    """A file that takes images of one size and returns them."""

    file, size = 'fixed.onnx', (6, 8)
    metadata = dict(end_to_end=True, classes=['a', 'b'], pad_after=dict(value=7.0))

    def __init__(self, file):
        self.seen = []

    def __call__(self, image):
        self.seen.append(image)
        return dict(logits=image.numpy())


def test_a_file_of_one_size_gets_smaller_images_filled_up(monkeypatch):
    monkeypatch.setattr(onnx_evaluation, 'OnnxModel', FixedFile)
    network, images = FileNetwork('fixed.onnx'), torch.randn(2, 3, 5, 8)
    assert torch.equal(segment(network, images, []), images)
    for image, seen in zip(images, network.model.seen, strict=True):
        assert torch.equal(seen[0, :, :5], image)
        assert (seen[0, :, 5:] == 7).all() and seen.shape == (1, 3, 6, 8)
    with pytest.raises(
        ValueError, match=r"'fixed\.onnx' takes images of 6x8, .* one of 5x9: export"
    ):
        segment(network, torch.randn(1, 3, 5, 9), [])


def test_a_file_of_another_model_or_without_results_is_refused(monkeypatch):
    monkeypatch.setattr(onnx_evaluation, 'OnnxModel', FixedFile)
    network = FileNetwork('fixed.onnx')
    check_classes(network, ('a', 'b'))
    with pytest.raises(ValueError, match=r"knows 2 classes, 'a' first, .* has 1, 'c' first"):
        check_classes(network, ['c'])
    monkeypatch.setattr(FixedFile, 'metadata', dict(end_to_end=False))
    with pytest.raises(ValueError, match=r"'fixed.onnx' holds no results to evaluate.*--end2end"):
        FileNetwork('fixed.onnx')
