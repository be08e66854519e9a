import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import DefaultScope

from mmlska.datasets import SelectChannels


def test_channels_are_put_in_order():
    image = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    with DefaultScope.overwrite_default_scope('mmdet'):
        steps = Compose([dict(type='mmlska.SelectChannels', channels=(2, 1, 0, 3))])
    found = steps(dict(img=image))['img']
    assert np.array_equal(found, np.stack([image[..., i] for i in (2, 1, 0, 3)], axis=-1))
    assert found.flags.c_contiguous


def test_a_grey_image_has_one_channel():
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(SelectChannels([0])(dict(img=image))['img'][..., 0], image)


def test_too_few_channels_are_told_with_the_file():
    with pytest.raises(ValueError, match=r"a\.jpg has 3 channels.*color_type='unchanged'"):
        SelectChannels((2, 1, 0, 3))(dict(img=np.zeros((2, 2, 3)), img_path='a.jpg'))


@pytest.mark.parametrize('channels', [(), (-1,), (0.5,), (True,)])
def test_what_is_no_index_is_refused(channels):
    with pytest.raises(ValueError, match='indices from 0 on'):
        SelectChannels(channels)
