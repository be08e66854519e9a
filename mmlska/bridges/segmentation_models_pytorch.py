"""VAN and VAN-LSKA as encoders of segmentation_models_pytorch: ``smp.Unet('van_lska_tiny')``.

Tried with segmentation_models_pytorch 0.6.0. It is MIT; nothing of it stands here.
"""

from functools import cache
from typing import Any

import torch

from mmlska.models import VAN

ARCHS = ('tiny', 'small', 'base', 'large')
# Depth 1 is half the resolution, where VAN has no map.
DEPTHS = (2, 3, 4, 5)


def register() -> list[str]:
    """Make the library know the encoders, and return their names.

    ``van_lska_ARCH`` has LSKA and ``van_ARCH`` LKA, k = 23. ``encoder_weights`` is None:
    ``model.encoder.load_state_dict`` takes weights of any naming instead.

    Raises:
        ImportError: If segmentation_models_pytorch is not installed.
    """
    from segmentation_models_pytorch.encoders import encoders

    for arch in ARCHS:
        for name, kind in (('van_lska', 'LSKA'), ('van', 'LKA')):
            params = dict(arch=arch, attention=dict(type=kind, kernel_size=23))
            encoders[f'{name}_{arch}'] = dict(
                encoder=_encoder_class(), pretrained_settings={}, params=params
            )
    return [name for name in encoders if name.startswith('van_')]


@cache
def _encoder_class() -> type:
    from segmentation_models_pytorch.encoders._base import EncoderMixin

    class VANEncoder(VAN, EncoderMixin):
        """Images, an empty map at half the resolution, and the maps of the stages.

        Args:
            depth (int): Maps behind the images, 2 to 5.
            output_stride (int): 32, the only one.
            **options: Those of :class:`mmlska.models.VAN`.
        """

        def __init__(self, depth: int = 5, output_stride: int = 32, **options: Any) -> None:
            if depth not in DEPTHS:
                raise ValueError(f'depth={depth} is not possible: allowed are 2, 3, 4 and 5')
            if output_stride != 32:
                raise ValueError(
                    f'output_stride={output_stride} is not possible: the strided patch embeddings '
                    'of VAN cannot be dilated, allowed is 32'
                )
            super().__init__(out_indices=tuple(range(depth - 1)), **options)
            self._depth, self._output_stride, self._in_channels = depth, output_stride, 3
            self._out_channels = [3, 0, *self.embed_dims]

        @property
        def out_channels(self) -> list[int]:
            """Channels of the images and of every map."""
            return self._out_channels[: self._depth + 1]

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            """Images ``(N, C, H, W)`` to a list of maps at strides 1, 2, 4, ..."""
            half = x.new_empty((x.shape[0], 0, x.shape[2] // 2, x.shape[3] // 2))
            return [x, half, *super().forward(x)]

    return VANEncoder
