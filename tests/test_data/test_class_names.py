import re

import pytest

from mmlska.data import check_names

CATEGORIES = [dict(id=i, name=name) for i, name in enumerate(('screw', 'nut', 'washer'), 1)]
ALL = "('screw', 'nut', 'washer')"


@pytest.mark.parametrize('classes', [('screw', 'nut', 'washer'), ['screw', 'washer'], None])
def test_classes_in_the_order_of_the_file_are_right(classes):
    assert check_names('a.json', CATEGORIES, classes) == []


@pytest.mark.parametrize(
    ('classes', 'message', 'right'),
    [
        (('nut', 'screw', 'washer'), "of 'screw' are called 'nut'", ALL),
        (('washer', 'nut'), "objects of 'nut' are called 'washer'", "('nut', 'washer')"),
        (('screw', 'nutt', 'washer'), "'nutt' of the config.*'nutt' is perhaps 'nut'", ALL),
        (('cat', 'dog'), 'would run on nothing', ALL),
        (3, 'classes=3 is no tuple of names', ALL),
        ((1, 2, 3), 'the class 1 of the config is no text', ALL),
        ('screw', 'each letter would be a class', "('screw',)"),
    ],
)
def test_other_classes_are_an_error_with_the_right_tuple(classes, message, right):
    (fault,) = check_names('a.json', CATEGORIES, classes)
    assert fault.level == 'error' and fault.file == 'a.json'
    assert re.search(message, fault.message)
    assert f'classes={right}' in fault.remedy


def test_the_right_tuple_of_one_class_has_its_comma():
    (fault,) = check_names('a.json', CATEGORIES[:1], ('scrw',))
    assert "classes=('screw',)" in fault.remedy and 'num_classes=1' in fault.remedy


def test_names_that_are_doubled_or_absent_are_told():
    (fault,) = check_names('a.json', [*CATEGORIES, dict(id=4, name='nut')], None)
    assert "called 'nut'" in fault.message
    (fault,) = check_names('a.json', [dict(id=1)], None)
    assert 'has no name' in fault.message
