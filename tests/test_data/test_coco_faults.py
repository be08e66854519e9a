"""Every kind of broken detection data is told, with its file, its annotation and a remedy."""

import json
import math
import os
from dataclasses import replace
from itertools import chain, groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.mask import encode as mask_of
from tiny_sets import SIDE, changed, coco_source, good_coco, make_coco, save_image, write

from mmlska.data import (
    check_source,
    contact_sheet,
    has_errors,
    quick_faults,
    read_annotations,
    repair,
)
from mmlska.data.coco_masks import are_polygons, counts_of, polygons_problem
from mmlska.data.coco_values import is_id, places
from mmlska.data.faults import ERROR, WARNING

NAN = math.nan


def test_good_data_has_no_fault(tmp_path):
    assert check_source(make_coco(tmp_path)).faults == []


def content(data=None, encoding='utf-8') -> bytes:
    return json.dumps(data or good_coco(), ensure_ascii=False).encode(encoding)


FILES = {
    'empty': (b'', 'is empty'),
    'cut': (content()[:300], 'ends in the middle'),
    'cut in a text': (content()[:40], 'ends in the middle'),
    'no json': (b'hello world', 'is no json'),
    'not an object': (b'[1, 2]', 'holds a list, not an object'),
    'mark': (content(encoding='utf-8-sig'), 'UTF-8 with a byte order mark (BOM)'),
    'UTF-16': (content(encoding='utf-16'), 'the encoding is UTF-16'),
    'Latin-1': (content(dict(good_coco(), info='Prüfung'), 'latin-1'), 'Latin-1 would fit'),
    'no categories': (content(dict(images=[], annotations=[])), "has no 'categories'"),
    'empty categories': (
        content(dict(images=[], annotations=[], categories=[])),
        "'categories' is empty",
    ),
    'a number of 5000 digits': (
        content().replace(b'"id": 11,', b'"id": 1' + 5000 * b'0' + b','),
        'is no json: Exceeds the limit',
    ),
    'lists of other things': (
        content(dict(images=[], annotations=[1], categories=[])),
        "'annotations' is no list of objects",
    ),
}


@pytest.mark.parametrize(('written', 'message'), FILES.values(), ids=FILES)
def test_a_broken_file_is_told(written, message, tmp_path):
    source = make_coco(tmp_path)
    (tmp_path / 'a.json').write_bytes(written)
    (fault,) = quick_faults(source)
    assert fault.file == source.path and message in fault.message
    assert fault.level == ERROR and fault.remedy


def test_an_absent_file_and_a_folder_are_told(tmp_path):
    (absent,) = quick_faults(coco_source(tmp_path))
    (folder,) = quick_faults(coco_source(tmp_path, path=str(tmp_path)))
    assert 'does not exist' in absent.message and 'is a folder' in folder.message


def setting(key, value, index=1):
    return lambda data: data['annotations'][index].update({key: value})


def lacking(key, kind='annotations', index=1):
    return lambda data: data[kind][index].pop(key)


def corners(data):
    for entry in data['annotations']:
        entry['bbox'] = [30, 20, 60, 50]


def run_lengths(size, counts):
    return setting('segmentation', dict(size=size, counts=counts))


# How the data is broken, and words and place that must be told.
ERRORS = {
    'doubled annotation id': (setting('id', 11), 'annotations are not unique', 'annotation 11 (2'),
    'doubled image id': (
        lambda data: data['images'][1].update(id=1),
        'ids of images are not unique',
        'image 1 (2',
    ),
    'unknown image': (setting('image_id', 99), 'belongs to an image', '12 (image_id 99)'),
    'unknown category': (
        setting('category_id', 99),
        'belongs to a category',
        '12 (category_id 99)',
    ),
    'text id': (setting('id', 'x1'), 'an id that is no number', "x1 ('x1')"),
    'no image size': (lambda data: data['images'][0].update(width=0), 'no true size', 'image 1 (0'),
    'outside': (setting('bbox', [70, 6, 5, 5]), 'a box outside its image', '12 (bbox [70'),
    'negative': (setting('bbox', [4, 6, -2, 5]), 'negative width', '12 (bbox [4, 6, -2'),
    'NaN': (setting('bbox', [4, 6, NAN, 5]), 'not finite', '12 (bbox [4, 6, nan'),
    'null': (setting('bbox', None), 'not four numbers', '12 (bbox None'),
    'null in a box': (setting('bbox', [1, None, 3, 4]), 'not four numbers', '12 (bbox [1, None'),
    'three numbers': (setting('bbox', [1, 2, 3]), 'not four numbers', '12 (bbox [1, 2, 3]'),
    'text in a box': (setting('bbox', ['1', 2, 3, 4]), 'not four numbers', "12 (bbox ['1'"),
    'NaN area': (setting('area', NAN), 'an area that is no number', '12 (area nan'),
    'no bbox': (lacking('bbox'), "lacks 'bbox'", 'annotation 12'),
    'no area': (lacking('area'), "lacks 'area'", 'annotation 12'),
    'no iscrowd': (lacking('iscrowd'), "lacks 'iscrowd': the evaluation stops", 'annotation 12'),
    'null for iscrowd': (setting('iscrowd', None), 'has null for iscrowd', 'annotation 12'),
    'text for iscrowd': (setting('iscrowd', '0'), 'neither 0 nor 1', "12 ('0')"),
    'list for iscrowd': (setting('iscrowd', [0]), 'neither 0 nor 1', '12 ([0])'),
    'two for iscrowd': (setting('iscrowd', 2), 'neither 0 nor 1', '12 (2)'),
    'no category': (lacking('category_id'), "lacks 'category_id'", 'annotation 12'),
    'no id': (lacking('id'), "lacks 'id'", 'annotation without id'),
    'no height': (lacking('height', 'images'), "lacks 'height'", 'image 2 (2.jpg)'),
    'no file name': (lacking('file_name', 'images'), "lacks 'file_name'", 'image 2'),
    'no mask': (lacking('segmentation'), "no 'segmentation'", 'annotation 12'),
    'four values': (setting('segmentation', [[1, 2, 3, 4]]), 'fewer than six', '12 (4 values)'),
    'no polygon': (setting('segmentation', [[]]), 'fewer than six', '12 (0 values)'),
    'odd values': (setting('segmentation', [[1] * 7]), 'an odd number', '12 (7 values)'),
    'flat list': (setting('segmentation', [1.0, 2, 3]), 'no list of numbers', 'annotation 12'),
    'NaN polygon': (setting('segmentation', [[1, 2, NAN, 4, 5, 6]]), 'all memory', 'annotation 12'),
    'far away': (setting('segmentation', [[1, 2, 1e9, 4, 5, 6]]), 'crashes', 'coordinate of 1e+09'),
    'far left': (setting('segmentation', [[1, 2, -1e9, 4, 5, 6]]), 'crashes', 'of -1e+09'),
    'size of run lengths': (
        run_lengths([SIDE, 32], [SIDE * 32]),
        'run lengths of another size',
        '12 (size [64, 32], the image has [64, 64])',
    ),
    'run lengths': (run_lengths([SIDE, SIDE], [5]), 'do not fill', '12 (5 pixels of 4096)'),
    'short text of run lengths': (run_lengths([SIDE, SIDE], '01'), 'do not fill', '12 (1 pixels'),
    'cut text of run lengths': (run_lengths([SIDE, SIDE], 'oo'), 'no whole numbers', '12'),
    'strange text of run lengths': (run_lengths([SIDE, SIDE], 'x y'), 'no whole numbers', '12'),
    'huge number in a box': (setting('bbox', [1, 2, 10**400, 4]), 'not finite', 'annotation 12'),
    'true for a number': (setting('bbox', [1, True, 3, 4]), 'not four', '12 (bbox [1, True'),
    'text in a polygon': (setting('segmentation', [['1', 2, 3, 4, 5, 6]]), 'no list', ''),
    'huge number in a polygon': (
        setting('segmentation', [[10**400, 2, 3, 4, 5, 6]]),
        'NaN or infinity',
        'annotation 12',
    ),
    'second polygon': (
        setting('segmentation', [[1, 2, 3, 4, 5, 6], [1, 2]]),
        'fewer than six',
        '12 (2 values)',
    ),
    'no size of run lengths': (run_lengths(None, [4096]), 'not [height, width]', '12 (size None)'),
    'text for run lengths': (run_lengths([SIDE, SIDE], ['1']), 'no whole numbers', 'annotation 12'),
    'negative run lengths': (run_lengths([SIDE, SIDE], [-1, 4097]), 'or negative', 'annotation 12'),
    'list for an image id': (setting('image_id', [1]), 'belongs to an image', '12 (image_id [1])'),
    'list for an id': (setting('id', [1]), 'an id that is no number', 'annotation [1]'),
    'list for the id of an image': (
        lambda data: data['images'][1].update(id=[2]),
        'an id that is neither number nor text',
        'image [2] (id [2])',
    ),
    'number for a file name': (
        lambda data: data['images'][1].update(file_name=2),
        'a file_name that is no text',
        'image 2 (2)',
    ),
    'text for a width': (
        lambda data: data['images'][1].update(width='64'),
        'no true size',
        'image 2 (64 x 64)',
    ),
    'huge image': (
        lambda data: data['images'][1].update(width=10**400),
        'no true size',
        'image 2 (1000',
    ),
    'category without id': (
        lacking('id', 'categories'),
        'no number as its id',
        "category without id ('nut')",
    ),
    'doubled category id': (
        lambda data: data['categories'][2].update(id=1),
        'ids of categories are not unique',
        'category 1 (2 times)',
    ),
    'strange mask': (setting('segmentation', 'mask'), 'neither polygons nor', 'annotation 12'),
}
WARNINGS = {
    'flat box': (setting('bbox', [4, 6, 0, 5]), 'a box of no area', '12 (bbox [4, 6, 0'),
    'thin box': (setting('bbox', [4, 6, 0.5, 5]), 'less than a pixel', '12 (bbox [4, 6, 0.5'),
    'all are crowds': (
        lambda data: [entry.update(iscrowd=1) for entry in data['annotations']],
        'no object of the classes',
        '',
    ),
    'no annotation': (lambda data: data['annotations'].clear(), 'no object of the classes', ''),
    'beyond the border': (setting('bbox', [4, 6, 70, 5]), 'leaves its image', '12 (bbox [4, 6, 70'),
    'zero area': (setting('area', 0), 'has no area', '12 (area 0'),
    'id 0': (setting('id', 0), 'the id 0', 'annotation 0'),
    'doubled file': (
        lambda data: data['images'][1].update(file_name='1.jpg'),
        'listed more than once',
        'image 2 (1.jpg)',
    ),
    'corners for sizes': (corners, '4 of 4 boxes leave their image: they look like corners', ''),
}


def told(folder, change, message, place):
    source = make_coco(folder)
    write(folder, changed(change))
    (fault,) = [fault for fault in quick_faults(source) if message in fault.message]
    assert fault.file == source.path and fault.remedy
    assert place in ', '.join(fault.where)
    return fault


@pytest.mark.parametrize(('change', 'message', 'place'), ERRORS.values(), ids=ERRORS)
def test_a_broken_annotation_is_an_error(change, message, place, tmp_path):
    assert told(tmp_path, change, message, place).level == ERROR


@pytest.mark.parametrize(('change', 'message', 'place'), WARNINGS.values(), ids=WARNINGS)
def test_a_suspicious_annotation_is_a_warning(change, message, place, tmp_path):
    assert told(tmp_path, change, message, place).level == WARNING


@pytest.mark.parametrize('change', [kind[0] for kind in ERRORS.values()], ids=ERRORS)
def test_every_tool_survives_a_broken_annotation(change, tmp_path):
    source = make_coco(tmp_path)
    write(tmp_path, changed(change))
    assert has_errors(check_source(source).faults)
    contact_sheet(source)
    mended, lines = repair(read_annotations(source.path)[0])
    assert all(isinstance(line, str) for line in lines)
    write(tmp_path, mended)
    assert repair(read_annotations(source.path)[0])[1] == []


def shares_of_the_image(data):
    for entry in data['annotations']:
        entry.update(bbox=[0.1, 0.2, 0.3, 0.4], area=0.12)


def test_boxes_in_shares_of_the_image_are_told_as_such(tmp_path):
    fault = told(tmp_path, shares_of_the_image, 'less than a pixel', 'annotation 11')
    assert fault.remedy == 'write pixels, not shares of the image'


@pytest.mark.parametrize(
    'filters', [dict(filters_empty=True, classes=('washer',)), dict(min_size=SIDE + 1)]
)
def test_a_filter_that_leaves_no_image_is_an_error_of_training_alone(filters, tmp_path):
    training = replace(make_coco(tmp_path), evaluated=False, **filters)
    (fault,) = quick_faults(training)
    assert fault.level == ERROR and 'leaves none of its 2 images' in fault.message
    assert not has_errors(quick_faults(replace(training, evaluated=True)))
    halved = replace(training, min_size=0, filters_empty=False)
    assert not has_errors(quick_faults(halved))


def test_the_file_of_the_metric_is_checked_where_it_is_another(tmp_path):
    source, truth = make_coco(tmp_path / 'set'), tmp_path / 'truth.json'
    judged = replace(source, truths=(str(truth),))
    truth.write_text(json.dumps(good_coco()))
    assert quick_faults(judged) == []
    truth.write_text(json.dumps(changed(lacking('iscrowd'))))
    (fault,) = quick_faults(judged)
    assert fault.file == str(truth) and "lacks 'iscrowd'" in fault.message
    truth.write_text(json.dumps(changed(lambda data: data['images'][1].update(id=3))))
    assert 'image 2 (2.jpg)' in [place for f in quick_faults(judged) for place in f.where]
    truth.write_text('{')
    assert has_errors(quick_faults(judged))
    assert quick_faults(replace(source, truths=(source.path,))) == []


@given(st.lists(st.booleans(), min_size=1, max_size=99))
def test_run_lengths_are_unpacked_as_pycocotools_packs_them(pixels):
    packed = mask_of(np.asfortranarray(np.array(pixels, dtype=np.uint8)[:, None]))['counts']
    expected = [len(list(run)) for _, run in groupby(pixels)]
    assert counts_of(packed.decode()) == ([0] * pixels[0] + expected)


numbers = st.one_of(
    st.integers(-(10**7), 10**7),
    st.floats(),
    st.sampled_from([10**400, True, None, '1', 1e6, -1e6]),
)
polygons = st.lists(st.one_of(st.lists(numbers, max_size=8), st.none()), max_size=3)


@given(st.lists(polygons, max_size=3))
def test_a_pass_over_all_polygons_misses_none_that_is_broken(masks):
    if are_polygons([dict(segmentation=mask) for mask in masks]):
        assert not any(map(polygons_problem, masks))


@given(st.lists(st.tuples(*[st.floats(-1e5, 1e5)] * 3), min_size=2, max_size=50))
def test_a_pass_over_all_polygons_is_enough_for_those_near_images(points):
    assert are_polygons([dict(segmentation=[list(chain.from_iterable(2 * points))])])


def test_ids_beyond_64_bits_stay_apart(tmp_path):
    source = make_coco(tmp_path)

    def renumber(data):
        for number, entry in enumerate(data['annotations']):
            entry['id'] = 2**64 + number

    write(tmp_path, changed(renumber))
    assert quick_faults(source) == []


ids = st.one_of(st.integers(-3, 3), st.sampled_from([2**63, 1.0, 'a', None, True, (1,)]))


@given(st.lists(ids), st.lists(ids.filter(is_id), unique=True))
def test_the_place_of_an_id_is_where_it_stands(wanted, known):
    expected = [known.index(key) if is_id(key) and key in known else -1 for key in wanted]
    assert places(wanted, known).tolist() == expected


def test_every_annotation_is_told(tmp_path):
    source = make_coco(tmp_path)
    write(tmp_path, changed(lambda data: [entry.pop('iscrowd') for entry in data['annotations']]))
    (fault,) = quick_faults(source)
    assert fault.where == tuple(f'annotation {key}' for key in (11, 12, 21, 22))
    assert '4 x: annotation 11, annotation 12 and 2 more' in fault.describe(2)


def test_masks_that_nobody_reads_are_no_error(tmp_path):
    source = replace(make_coco(tmp_path), masks=False)
    write(tmp_path, changed(setting('segmentation', [[1, 2, 3, 4]])))
    assert not has_errors(quick_faults(source))


def test_what_only_the_evaluation_needs_is_no_error_of_training(tmp_path):
    source = replace(make_coco(tmp_path), evaluated=False)
    write(tmp_path, changed(lacking('iscrowd')))
    (fault,) = quick_faults(source)
    assert fault.level == WARNING


IMAGES = {
    'missing': (lambda path: path.unlink(), 'does not exist'),
    'zero bytes': (lambda path: path.write_bytes(b''), 'is empty (zero bytes)'),
    'truncated': (lambda path: path.write_bytes(path.read_bytes()[:900]), 'is damaged'),
    'text': (lambda path: path.write_text('no image'), 'is no image'),
    'other size': (lambda path: save_image(path, (32, 64)), 'has 32 x 64 pixels, its annotations'),
}


@pytest.mark.parametrize(('break_image', 'message'), IMAGES.values(), ids=IMAGES)
def test_a_broken_image_is_told(break_image, message, tmp_path):
    source = make_coco(tmp_path)
    path = tmp_path / 'images' / '2.jpg'
    break_image(path)
    (fault,) = check_source(source).faults
    assert fault.file == str(path) and message in fault.message
    assert fault.level == ERROR and fault.remedy


def resize(data, size):
    data['images'][1].update(width=size[0], height=size[1])
    data['annotations'] = data['annotations'][:2]


@pytest.mark.parametrize(
    ('size', 'message'), [((1, 1), '1 x 1 pixels'), ((20000, 30), 'a strip of 20000 x 30')]
)
def test_a_size_that_cannot_be_learned_from_is_a_warning(size, message, tmp_path):
    source = make_coco(tmp_path)
    save_image(tmp_path / 'images' / '2.jpg', size)
    write(tmp_path, changed(lambda data: resize(data, size)))
    (fault,) = check_source(source).faults
    assert fault.level == WARNING and message in fault.message


def test_another_suffix_than_the_content_is_a_warning(tmp_path):
    source = make_coco(tmp_path)
    save_image(tmp_path / 'images' / '2.jpg', format='PNG')
    (fault,) = check_source(source).faults
    assert fault.level == WARNING and 'is a PNG file by its content' in fault.message


@pytest.mark.parametrize(('decoder', 'is_error'), [('cv2', True), ('tifffile', False), ('', False)])
def test_an_image_that_the_pipeline_cannot_decode_is_an_error(decoder, is_error, tmp_path):
    source = replace(make_coco(tmp_path), decoder=decoder)
    floats = Image.fromarray(np.ones((SIDE, SIDE), np.float32))
    for name in ('1.jpg', '2.jpg'):
        floats.save(tmp_path / 'images' / name, format='TIFF')
    faults = check_source(source).faults
    assert has_errors(faults) == is_error
    assert any('a TIFF that OpenCV' in fault.message for fault in faults) == is_error


def test_what_is_no_file_is_told_and_not_waited_for(tmp_path):
    source, images = make_coco(tmp_path), tmp_path / 'images'
    for name in ('1.jpg', '2.jpg'):
        (images / name).unlink()
    os.mkfifo(images / '1.jpg')
    (images / '2.jpg').symlink_to('nowhere')
    (fault,) = check_source(source).faults
    assert 'is no file, or a link to none' in fault.message and len(fault.where) == 2
    assert contact_sheet(source) is None


def test_a_decompression_bomb_is_told_without_being_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr('PIL.Image.MAX_IMAGE_PIXELS', 1000)
    faults = check_source(make_coco(tmp_path)).faults
    assert all('is a decompression bomb' in fault.message for fault in faults)
    assert sum(len(fault.where) or 1 for fault in faults) == 2


@pytest.mark.parametrize('said', [(32, 64), (64, 32)], ids=['as stored', 'turned'])
@pytest.mark.parametrize('ignores', [False, True])
def test_a_turned_photograph_is_told_with_the_choice(said, ignores, tmp_path):
    source = replace(make_coco(tmp_path), ignores_orientation=ignores)
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / 'images' / '2.jpg', (32, 64), exif=exif)
    write(tmp_path, changed(lambda data: resize(data, said)))
    faults = check_source(source).faults
    if (said == (32, 64)) == ignores:
        assert faults == []
        return
    (fault,) = faults
    assert 'EXIF rotation' in fault.message
    choice = 'color_ignore_orientation' if said == (32, 64) else "color_type='color'"
    assert choice in fault.remedy


def test_several_processes_find_the_same(tmp_path):
    source = make_coco(tmp_path)
    (tmp_path / 'images' / '1.jpg').unlink()
    assert check_source(source, jobs=2) == check_source(source, jobs=1)


def test_objects_are_counted_by_class_and_size(tmp_path):
    source = make_coco(tmp_path)

    def change(data):
        for entry, area in zip(data['annotations'], (1023, 1024, 9216, 9215), strict=True):
            entry['area'] = area
        data['annotations'].append(dict(data['annotations'][0], id=99, iscrowd=1))

    write(tmp_path, changed(change))
    report = check_source(source)
    assert report.counts == dict(screw=(1, 0, 1), nut=(0, 2, 0), washer=(0, 0, 0))
    assert report.num_images == 2
