"""Every kind of broken label map is told, with its file and a remedy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_sets import SIDE, make_labels, save_image, save_label

from mmlska.data import (
    LabelMap,
    Picture,
    check_label_map,
    check_picture,
    check_source,
    quick_faults,
)
from mmlska.data.faults import ERROR, WARNING

MAP = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 3


def test_good_data_has_no_fault(tmp_path):
    report = check_source(make_labels(tmp_path))
    assert report.faults == []
    assert sum(numbers[0] for numbers in report.counts.values()) == 2 * SIDE * SIDE
    assert report.counts['(ignored)'] == (0,)


def colours(path: Path, mode: str) -> None:
    Image.fromarray(MAP.astype(np.uint8)).convert(mode).save(path)


BROKEN = {
    'missing': (Path.unlink, 'does not exist', ERROR),
    'other size': (lambda p: save_label(p, MAP[:32]), '64 x 32 pixels, its image 64 x 64', ERROR),
    'RGB': (lambda p: colours(p, 'RGB'), 'the mode RGB', ERROR),
    'RGBA': (lambda p: colours(p, 'RGBA'), 'the mode RGBA', ERROR),
    '16 bit': (lambda p: save_label(p, MAP, dtype=np.uint16), 'more than 8 bit', ERROR),
    'beyond the classes': (lambda p: save_label(p, MAP + 1), 'has the value 3,', ERROR),
    'all ignored': (lambda p: save_label(p, MAP * 0 + 255), 'all are ignored', WARNING),
    'JPEG': (lambda p: save_label(p, MAP, format='JPEG'), 'JPEG-compressed', ERROR),
    'zero bytes': (lambda p: p.write_bytes(b''), 'zero bytes', ERROR),
    'one row': (lambda p: save_label(p, MAP[:1]), 'drops a side of one', ERROR),
    'one pixel': (lambda p: save_label(p, MAP[:1, :1]), 'drops a side of one', ERROR),
    'truncated': (lambda p: p.write_bytes(p.read_bytes()[:-60]), 'is damaged', ERROR),
    'text': (lambda p: p.write_text('no image'), 'is no image', ERROR),
}


@pytest.mark.parametrize(('break_label', 'message', 'level'), BROKEN.values(), ids=BROKEN)
def test_a_broken_label_map_is_told(break_label, message, level, tmp_path):
    source = make_labels(tmp_path)
    path = tmp_path / 'labels' / '2.png'
    break_label(path)
    (fault,) = check_source(source).faults
    assert (fault.file, fault.level) == (str(path), level)
    assert message in fault.message and fault.remedy


def test_a_palette_is_no_colours(tmp_path):
    source = make_labels(tmp_path)
    label = Image.fromarray(MAP.astype(np.uint8)).convert('P')
    label.putpalette(list(range(256)) * 3)
    label.save(tmp_path / 'labels' / '1.png')
    assert check_source(source).faults == []


def test_black_and_white_masks_have_no_foreground(tmp_path):
    source = replace(make_labels(tmp_path), classes=('background', 'crack'))
    for path in (tmp_path / 'labels').iterdir():
        save_label(path, (MAP > 0) * 255)
    (fault,) = check_source(source).faults
    assert fault.level == ERROR and fault.file == source.label_folder
    assert 'no foreground' in fault.message and 'value // 255' in fault.remedy


@pytest.mark.parametrize(('shift', 'wrong'), [(0, False), (1, False), (2, True)])
def test_a_reduced_zero_label_shifts_the_classes(shift, wrong, tmp_path):
    source = replace(make_labels(tmp_path), reduce_zero_label=True)
    for path in (tmp_path / 'labels').iterdir():
        save_label(path, MAP + shift)
    assert bool(check_source(source).faults) == wrong


@pytest.mark.parametrize(('setting', 'folder'), [('img', 'images'), ('seg_map', 'labels')])
def test_another_suffix_is_told_with_the_right_one(setting, folder, tmp_path):
    source = make_labels(tmp_path)
    name = 'image_suffix' if setting == 'img' else 'label_suffix'
    (fault,) = quick_faults(replace(source, **{name: '.tiff'}))
    assert fault.file == str(tmp_path / folder)
    right = '.jpg' if setting == 'img' else '.png'
    assert fault.remedy == f"{setting}_suffix='{right}' in the data set"


def test_missing_label_maps_are_told_without_opening_an_image(tmp_path):
    source = make_labels(tmp_path)
    (tmp_path / 'labels' / '1.png').unlink()
    (tmp_path / 'images' / '2.jpg').write_text('no image')
    (fault,) = quick_faults(source)
    assert fault.file.endswith('1.png')


def test_the_first_label_map_is_opened_before_training(tmp_path):
    source = make_labels(tmp_path)
    for path in (tmp_path / 'labels').iterdir():
        save_label(path, MAP + 1)
    (fault,) = quick_faults(source)
    assert fault.file.endswith('1.png') and 'has the value 3,' in fault.message
    assert quick_faults(replace(source, read_by_mmseg=False)) == []
    save_label(tmp_path / 'labels' / '1.png', MAP * 0 + 255)
    assert quick_faults(source) == []


def test_a_list_of_names_is_followed(tmp_path):
    source = make_labels(tmp_path)
    save_image(tmp_path / 'images' / 'unlisted.jpg')
    (tmp_path / 'names.txt').write_text('1\n2\n')
    assert quick_faults(replace(source, list_file=str(tmp_path / 'names.txt'))) == []
    assert len(quick_faults(source)) == 1


@pytest.mark.parametrize('names', ['1.jpg\n2.jpg\n', '\ufeff1\n2\n', '1\n3\n'])
def test_a_list_of_other_names_is_told(names, tmp_path):
    source = replace(make_labels(tmp_path), list_file=str(tmp_path / 'names.txt'))
    (tmp_path / 'names.txt').write_text(names, encoding='utf-8')
    (fault,) = quick_faults(source)
    assert fault.file == source.list_file and 'names without an image' in fault.message
    assert fault.where[-1].endswith('.jpg') and "without img_suffix='.jpg'" in fault.remedy


@pytest.mark.parametrize('bands_are', ['pages', 'samples'])
def test_an_image_of_many_bands_that_pillow_misreads_is_no_fault(bands_are, tmp_path):
    image, label = tmp_path / 'image.tif', tmp_path / 'label.png'
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 3).save(label)
    if bands_are == 'pages':
        page = Image.fromarray(np.zeros((8, 6), np.float32))
        page.save(image, save_all=True, append_images=[page] * 7)
    else:
        pytest.importorskip('tifffile').imwrite(
            image, np.zeros((8, 8, 6), np.float32), photometric='minisblack', planarconfig='contig'
        )
    assert check_picture(Picture(str(image), size=(8, 8))) == []
    assert check_label_map(LabelMap(str(label), str(image), 3))[0] == []


def test_a_file_that_no_reader_knows_is_still_no_image(tmp_path):
    path = tmp_path / 'image.tif'
    path.write_text('not an image')
    (fault,) = check_picture(Picture(str(path)))
    assert fault.message == 'is no image'
