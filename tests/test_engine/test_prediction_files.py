"""What is written of predictions, read back by the programs that it is for."""

import contextlib
import io
import json
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from mmlska.engine.media_files import VideoFile
from mmlska.engine.prediction_files import PredictionFiles, label_map

HEIGHT, WIDTH = 40, 60
BOXES = [[10.0, 5.0, 30.0, 25.0], [31.5, 2.0, 59.0, 38.25], [0.0, 0.0, 4.0, 4.0]]


def prediction_of(**found):
    return BaseDataElement(metainfo=dict(ori_shape=(HEIGHT, WIDTH)), **found)


def instances(with_masks):
    masks = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 6:20, 12:29] = masks[1, 4:30, 33:50] = masks[2, :3, :2] = True
    return InstanceData(
        bboxes=torch.tensor(BOXES),
        labels=torch.tensor([1, 0, 1]),
        scores=torch.tensor([0.9, 0.6, 0.2]),
        **(dict(masks=masks) if with_masks else {}),
    )


class Predictor:
    """Finds the same in every image."""

    def __init__(self, prediction, is_detector):
        self.prediction, self.is_detector = prediction, is_detector
        self.visualizer = SimpleNamespace(dataset_meta=dict(classes=('nut', 'screw')))

    def __call__(self, image):
        return self.prediction

    def describe(self, prediction, score_thr):
        return 'as always'

    def draw(self, image, prediction, out_file, score_thr, show):
        return np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def detector(with_masks=True):
    return Predictor(prediction_of(pred_instances=instances(with_masks)), True)


def segmentor():
    labels = torch.arange(HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH) % 7
    return Predictor(prediction_of(pred_sem_seg=PixelData(data=labels)), False)


def written(predictor, folder, *kinds, score_thr=0.3):
    files = PredictionFiles(predictor, folder / 'out', kinds, score_thr)
    for name in ('a.jpg', 'b.png'):
        assert files.add_image(folder / name) == 'as always'
    files.close()
    return folder / 'out'


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_detections_match_themselves_by_the_rules_of_coco(kind, tmp_path):
    coco = pytest.importorskip('pycocotools.coco')
    from pycocotools.cocoeval import COCOeval

    file = written(detector(), tmp_path, 'coco', score_thr=0) / 'coco.json'
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(file))
        results = truth.loadRes(json.loads(file.read_text())['annotations'])
        evaluation = COCOeval(truth, results, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    assert [truth.imgs[i]['file_name'] for i in (1, 2)] == ['a.jpg', 'b.png']
    assert [c['name'] for c in truth.loadCats([1, 2])] == ['nut', 'screw']
    first, second, third = truth.loadAnns(truth.getAnnIds(imgIds=[2]))
    assert first['bbox'] == [10, 5, 20, 20] and first['category_id'] == 2
    assert first['area'] == 14 * 17 and second['area'] == 26 * 17
    assert (truth.annToMask(third) == instances(True).masks[2].numpy()).all()


def test_boxes_without_masks_have_the_area_of_the_box(tmp_path):
    pytest.importorskip('mmdet')
    file = written(detector(with_masks=False), tmp_path, 'coco') / 'coco.json'
    annotations = json.loads(file.read_text())['annotations']
    assert [a['area'] for a in annotations[:2]] == [400, 27.5 * 36.25]
    assert 'segmentation' not in annotations[0]


def test_lines_of_yolo_give_the_boxes_back(tmp_path):
    folder = written(detector(), tmp_path, 'yolo') / 'yolo'
    assert sorted(file.name for file in folder.iterdir()) == ['a.txt', 'b.txt']
    rows = np.loadtxt(folder / 'a.txt')
    assert rows[:, 0].tolist() == [1, 0]
    assert rows[:, 5] == pytest.approx([0.9, 0.6], abs=1e-5)
    centre, size = rows[:, 1:3] * (WIDTH, HEIGHT), rows[:, 3:5] * (WIDTH, HEIGHT)
    boxes = np.hstack([centre - size / 2, centre + size / 2])
    # The third one scores less than the threshold.
    assert boxes == pytest.approx(np.array(BOXES[:2]), abs=1e-3)


def test_an_image_without_detections_has_an_empty_file(tmp_path):
    out = written(detector(), tmp_path, 'yolo', 'coco', score_thr=0.95)
    assert (out / 'yolo' / 'a.txt').read_text() == ''
    content = json.loads((out / 'coco.json').read_text())
    assert len(content['images']) == 2 and content['annotations'] == []


def test_a_label_map_gives_the_classes_back(tmp_path):
    folder = written(segmentor(), tmp_path, 'labels') / 'labels'
    labels = cv2.imread(str(folder / 'b.png'), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint8
    assert (labels == np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 7).all()
    many = prediction_of(pred_sem_seg=PixelData(data=torch.full((1, 4, 4), 300)))
    assert label_map(many).dtype == np.uint16 and (label_map(many) == 300).all()


def test_every_frame_of_a_video_is_an_image(tmp_path, capsys):
    with VideoFile(tmp_path / 'clip.avi', 5) as video:
        for _ in range(3):
            video.write(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    files = PredictionFiles(detector(), tmp_path, ('coco', 'yolo'))
    drawn = tmp_path / 'drawn.mp4'
    assert files.add_video(tmp_path / 'clip.avi', drawn) == '3 frames'
    files.close()
    assert '3/3' in capsys.readouterr().err
    assert cv2.VideoCapture(str(drawn)).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    images = json.loads((tmp_path / 'coco.json').read_text())['images']
    assert [(i['file_name'], i['frame']) for i in images] == [('clip.avi', n) for n in range(3)]
    assert len(list((tmp_path / 'yolo' / 'clip').iterdir())) == 3


def test_a_video_that_was_cut_says_so(tmp_path):
    with VideoFile(tmp_path / 'clip.avi', 5) as video:
        for seed in range(30):
            noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            video.write(noise)
    content = (tmp_path / 'clip.avi').read_bytes()
    (tmp_path / 'clip.avi').write_bytes(content[: len(content) // 2])
    found = PredictionFiles(detector(), tmp_path).add_video(tmp_path / 'clip.avi')
    assert re.fullmatch(r'1\d frames, of 30 that the file states', found)


@pytest.mark.parametrize(
    ('predictor', 'kind', 'message'),
    [
        (segmentor(), 'coco', 'coco is of a detector; of a segmentor there is labels'),
        (detector(), 'labels', 'labels is of a segmentor; of a detector there is coco, yolo'),
    ],
    ids=['segmentor', 'detector'],
)
def test_files_of_the_other_task_are_refused(predictor, kind, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        PredictionFiles(predictor, tmp_path, [kind])


def test_rotated_boxes_are_refused(tmp_path):
    found = InstanceData(bboxes=torch.rand(2, 5), scores=torch.rand(2), labels=torch.zeros(2))
    predictor = Predictor(prediction_of(pred_instances=found), True)
    with pytest.raises(ValueError, match='predicts no upright boxes'):
        written(predictor, tmp_path, 'yolo')
