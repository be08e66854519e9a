import json

import pytest
from tiny_sets import changed, good_coco, make_coco, write

from mmlska.data import quick_faults, repair


def annotation(index, **values):
    return lambda data: data['annotations'][index].update(values)


def two_polygons(data):
    data['annotations'][0]['segmentation'].append([1, 2, 3, 4])


SAFE = {
    'no iscrowd': (lambda data: data['annotations'][0].pop('iscrowd'), 'iscrowd=0 into 1 anno', 4),
    'null for iscrowd': (annotation(0, iscrowd=None), 'iscrowd=0 into 1 anno', 4),
    'no area': (lambda data: data['annotations'][0].pop('area'), 'area of the box for 1 anno', 4),
    'doubled id': (annotation(1, id=11), 'numbered all 4 annotations anew', 4),
    'text id': (annotation(1, id='x'), 'numbered all 4 annotations anew', 4),
    'id 0': (annotation(1, id=0), 'numbered all 4 annotations anew', 4),
    'unknown image': (annotation(1, image_id=9), 'image_id is not listed, 1 annotations: 12', 3),
    'unknown category': (annotation(1, category_id=9), 'category_id is not listed, 1 annot', 3),
    'flat box': (annotation(1, bbox=[4, 6, 0, 5]), 'have no area, 1 annotations: 12', 3),
    'beyond the border': (annotation(1, bbox=[4, 6, 70, 5]), 'of 1 annotations: 12', 4),
    'short polygon': (two_polygons, 'polygons that are none of 1 annotations: 11', 4),
}


@pytest.mark.parametrize(('change', 'line', 'left'), SAFE.values(), ids=SAFE)
def test_a_safe_repair_is_said_and_leaves_no_fault(change, line, left, tmp_path):
    source, data = make_coco(tmp_path), changed(change)
    before = json.dumps(data)
    mended, (said,) = repair(data)
    assert line in said and len(mended['annotations']) == left
    assert json.dumps(data) == before
    write(tmp_path, data)
    assert quick_faults(source)
    write(tmp_path, mended)
    assert quick_faults(source) == []


@pytest.mark.parametrize(
    'change',
    [
        lambda data: None,
        annotation(0, segmentation=[[1, 2, 3, 4]]),
        annotation(0, bbox=[4, 6, -2, 5]),
        annotation(0, segmentation=dict(size=[3, 3], counts=[9])),
    ],
)
def test_what_only_a_person_can_know_stays(change):
    data = changed(change)
    assert repair(data) == (data, [])


def test_a_box_is_cut_at_the_border():
    mended, _ = repair(changed(annotation(0, bbox=[-5, 50, 20, 30])))
    assert mended['annotations'][0]['bbox'] == [0, 50, 15, 14]
    assert mended['annotations'][1] == good_coco()['annotations'][1]
