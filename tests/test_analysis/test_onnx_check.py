import numpy as np
import pytest
import torch

from mmlska.analysis.onnx_check import (
    SINGLE,
    compare,
    compare_detections,
    example_images,
    inputs_for,
)

BOXES = np.float32([[0, 0, 10, 10], [0, 0, 10, 10.5], [30, 30, 50, 60]])


def detections(boxes=BOXES, scores=(0.9, 0.8, 0.7), labels=(1, 2, 1)):
    masks = np.stack([np.full((2, 2), score, np.float32) for score in scores])
    return dict(
        boxes=np.float32(boxes)[None],
        scores=np.float32(scores)[None],
        labels=np.int64(labels)[None],
        masks=masks[None],
    )


def values(errors):
    return {name: pytest.approx(error, abs=1e-6) for name, (_, error) in errors.items()}


def test_maps_are_compared_with_their_largest_value():
    expected = dict(logits=np.float32([[1.0, -4.0]]), labels=np.int64([[0, 1, 2, 3]]))
    found = dict(logits=np.float32([[1.0, -4.2]]), labels=np.int64([[0, 1, 2, 0]]))
    assert values(compare(found, expected)) == dict(logits=0.05, labels=0.25)


def test_maps_of_another_shape_or_without_numbers_are_beyond_any_limit():
    expected = dict(logits=np.ones((1, 2), np.float32))
    for found in (np.ones((1, 3), np.float32), np.float32([[np.nan, 1]])):
        ((_, error),) = compare(dict(logits=found), expected).values()
        assert not error <= SINGLE.maps


def test_other_outputs_are_refused():
    with pytest.raises(ValueError, match='the file returns a, expected b'):
        compare(dict(a=np.ones(1)), dict(b=np.ones(1)))


def test_detections_are_compared_by_place_and_label_in_any_order():
    found = detections(BOXES[[2, 0, 1]] + 0.25, scores=(0.72, 0.9, 0.8), labels=(1, 1, 2))
    errors = values(compare(found, detections()))
    assert errors == dict(boxes=0.25, scores=0.02, masks=0.02, detections=0)


def test_a_detection_without_a_counterpart_counts_on_either_side():
    fewer = {name: value[:, :2] for name, value in detections().items()}
    for pair in ((fewer, detections()), (detections(), fewer)):
        assert values(compare_detections(*pair))['detections'] == 1 / 5
    moved = detections(BOXES + np.float32([[0], [0], [9]]))
    assert values(compare_detections(moved, detections()))['detections'] == 2 / 6
    other = detections(labels=(1, 2, 3))
    assert values(compare_detections(other, detections()))['detections'] == 2 / 6


def test_rows_that_fill_up_a_batch_are_no_detections():
    filled = detections(labels=(1, -1, -1))
    alone = {name: value[:, :1] for name, value in detections().items()}
    assert values(compare_detections(filled, alone))['detections'] == 0
    nothing = detections(labels=(-1, -1, -1))
    assert values(compare_detections(nothing, nothing))['detections'] == 0


def test_a_dynamic_file_gets_a_batch_and_a_fixed_one_its_size():
    images = [torch.rand(1, 3, 8, 6), torch.rand(1, 3, 5, 7)]
    shapes = [tuple(x.shape) for x in inputs_for(images, None)]
    assert shapes == [(1, 3, 8, 6), (2, 3, 8, 6), (1, 3, 5, 7)]
    assert {tuple(x.shape) for x in inputs_for(images, (4, 9))} == {(1, 3, 4, 9)}


def test_there_are_images_without_scikit_image(tmp_path, monkeypatch):
    import cv2

    from mmlska.analysis import onnx_check

    def absent(path):
        raise ModuleNotFoundError(path)

    monkeypatch.setattr(onnx_check, 'photograph_file', absent)
    pictures = [cv2.imread(str(path)) for path in example_images(tmp_path)]
    assert len({picture.shape for picture in pictures}) == 3
    assert all(picture.std() > 20 for picture in pictures)
