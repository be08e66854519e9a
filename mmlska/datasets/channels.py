"""Channels of images, chosen and put in order."""

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform

from mmlska.registry import TRANSFORMS


@TRANSFORMS.register_module()
class SelectChannels(BaseTransform):
    """Keep some channels of an image, in an order of one's own.

    OpenCV reads a picture with transparency as blue, green, red and alpha, and the data
    preprocessors exchange channels of images with three alone: ``channels=(2, 1, 0, 3)`` gives a
    stem from RGB weights the order that it has learned.

    Args:
        channels (Sequence[int]): Indices of the channels to keep, the first one being 0.

    Raises:
        ValueError: If an index is no whole number from 0 on, or there is none.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        self.channels = list(channels)
        if not self.channels or any(type(i) is not int or i < 0 for i in self.channels):
            raise ValueError(
                f'channels are indices from 0 on, such as (2, 1, 0, 3), got {channels!r}'
            )

    def transform(self, results: dict) -> dict:
        """Choose among the channels of ``results['img']``, ``(H, W, C)``.

        Raises:
            ValueError: If the image has fewer channels.
        """
        image = results['img']
        number = image.shape[2] if image.ndim == 3 else 1
        if max(self.channels) >= number:
            raise ValueError(
                f'{results.get("img_path", "the image")} has {number} channels, too few for '
                f"channels={self.channels}; LoadImageFromFile(color_type='unchanged') keeps all of "
                'a file'
            )
        image = image.reshape(*image.shape[:2], number)
        results['img'] = np.ascontiguousarray(image[..., self.channels])
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(channels={self.channels})'
