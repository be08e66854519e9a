"""What is measured, and what of it is possible."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmlska.shipped import nearest

CASES = {
    'op': 'depth-wise cascade of an attention layer',
    'layer': 'the whole attention layer',
    'block': 'of VAN',
    'backbone': 'VAN, all its maps',
    'detector': 'training step or inference of a detector or segmentor on random images',
    'evaluation': 'of a detector on the images of --data',
}
MODES = ('forward', 'train')
LAYOUTS = ('contiguous', 'channels_last')
ALLOCATORS = ('keep', 'return', 'default')
HALVES = ('bfloat16', 'float16')
DTYPES = ('float32', *HALVES, 'float64')
KINDS = ('LSKA', 'LKA', 'LSKATrivial', 'LKATrivial')
OP_KINDS = (*KINDS, 'DFCAttention')
CONFIG = 'mask-rcnn_van-lska-tiny_fpn_1x_coco'
WHOLE_MODELS = ('detector', 'evaluation')
ANNOTATIONS = 'annotations/instances_val.json'
SHAPES = {
    'op': (1, 64, 128, 128),
    'layer': (1, 64, 128, 128),
    'block': (1, 64, 128, 128),
    'backbone': (2, 3, 512, 512),
    'detector': (2, 3, 800, 1280),
    'evaluation': (2, 3, 800, 1280),
}


def option(default: Any, help: str, kind: type = str) -> Any:
    """A field that the command line knows as an option of this kind."""
    return dataclasses.field(default=default, metadata=dict(help=help, kind=kind))


@dataclass(frozen=True)
class Settings:
    """One measurement.

    Attributes:
        case: What is measured, see ``CASES``.
        shape: ``(N, C, H, W)`` of the map, for a backbone and a detector of the images, for an
            evaluation the number of images and the size that they are made to fit.

    What the others mean stands beside them.
    """

    case: str = 'layer'
    mode: str = option('forward', 'forward (default), or train: forward and backward')
    device: str = option('cpu', 'cpu (default), cuda, cuda:1 ...')
    dtype: str = option(
        'float32',
        'float32 (default), bfloat16, float16 or float64; but for op and layer half precision is '
        'that of autocast',
    )
    layout: str = option('contiguous', 'of the map: contiguous (default) or channels_last')
    shape: tuple[int, ...] | None = None
    attention: str = option('LSKA', 'type of the attention layer (default: LSKA)')
    kernel_size: int | None = option(None, "(default: the layer's own)", int)
    arch: str = option('tiny', 'of the VAN (default: tiny)')
    ffn_ratio: float = option(8, 'of the VAN block (default: 8)', float)
    config: str = option(CONFIG, "path or name of a config (default: the paper's Mask R-CNN tiny)")
    data: str | None = option(
        None, f'for an evaluation: folder with images/val and {ANNOTATIONS} (COCO)'
    )
    backend: str = option('auto', 'what ours is to take: auto (default), or a form by name')
    fuse: bool = option(False, 'fuse ours for inference', bool)
    compile: bool = option(False, 'measure both by torch.compile as well', bool)
    allocator: str | None = option(
        None,
        'what becomes of freed memory on the CPU: keep (default for op and layer, whose times are '
        'else a matter of luck), return, or default, as the C library decides (default for the '
        'others)',
    )
    threads: int = option(1, 'of PyTorch on the CPU (default: 1)', int)
    rounds: int = option(9, 'how often each variant is timed (default: 9)', int)
    max_seconds: float = option(
        60, 'begin no further round after so many, once three are done (default: 60)', float
    )

    def __post_init__(self) -> None:
        if self.shape is None:
            object.__setattr__(self, 'shape', SHAPES.get(self.case))
        if self.allocator is None:
            kept = self.case in ('op', 'layer')
            object.__setattr__(self, 'allocator', 'keep' if kept else 'default')

    @property
    def train(self) -> bool:
        """Whether the backward pass is measured too."""
        return self.mode == 'train'

    @property
    def autocast(self) -> bool:
        """Whether parameters stay in float32 and autocast chooses the dtype of operations."""
        return self.case in ('block', 'backbone', *WHOLE_MODELS) and self.dtype in HALVES

    def but(self, **changes: object) -> 'Settings':
        """These settings with changes."""
        return dataclasses.replace(self, **changes)

    def check(self) -> None:
        """Check that this can be measured here.

        Raises:
            ValueError: If a value is unknown, or the combination impossible. The message names the
                value, what is allowed, and the nearest.
        """
        for name, allowed in (
            ('case', CASES),
            ('mode', MODES),
            ('layout', LAYOUTS),
            ('dtype', DTYPES),
            ('allocator', ALLOCATORS),
        ):
            _check_choice(name, getattr(self, name), allowed)
        if self.case == 'op':
            _check_choice('attention of an op', self.attention, OP_KINDS)
        self._check_numbers()
        self._check_combination()

    def _check_numbers(self) -> None:
        if len(self.shape) != 4 or min(self.shape) < 1:
            raise ValueError(f'shape takes four positive numbers N C H W, got {self.shape}')
        for name in ('threads', 'rounds'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')

    def _check_combination(self) -> None:
        if self.fuse and self.train:
            raise ValueError("fuse is for inference only: it takes mode 'forward', not 'train'")
        if self.fuse and self.case == 'op':
            raise ValueError('fuse takes layers and models: an op has nothing to fuse')
        if self.case in WHOLE_MODELS and self.layout != 'contiguous':
            raise ValueError(
                f'layout {self.layout!r} is for maps: the images of a whole model are contiguous'
            )
        if self.case == 'evaluation' and self.train:
            raise ValueError("an evaluation has mode 'forward', not 'train'")
        if self.case == 'evaluation' and self.compile:
            raise ValueError('compile is for fixed sizes: images of an evaluation have many')
        if self.case not in ('op', 'layer', 'block') and self.dtype == 'float64':
            raise ValueError('dtype float64 is for op, layer and block')

    def what_is_missing(self) -> str | None:
        """The data that an evaluation lacks; None if nothing is missing."""
        if self.case != 'evaluation':
            return None
        if self.data is None:
            return 'no folder of images was given'
        file = Path(self.data) / ANNOTATIONS
        return None if file.is_file() else f'the folder of images has no {ANNOTATIONS}'

    @property
    def name(self) -> str:
        """What is measured, in a few words."""
        kernel = '' if self.kernel_size is None else f' k={self.kernel_size}'
        attention = f'{self.attention}{kernel}'
        names = {
            'op': f'cascade of {attention}',
            'layer': attention,
            'block': f'VAN block, {attention}, FFN ×{self.ffn_ratio:g}',
            'backbone': f'VAN {self.arch}, {attention}',
            'detector': Path(self.config).stem,
            'evaluation': f'evaluation of {Path(self.config).stem}',
        }
        fused = ', fused' if self.fuse else ''
        returned = ', memory returned' if self.allocator == 'return' else ''
        return names[self.case] + fused + returned

    @property
    def map_name(self) -> str:
        """Shape, layout and dtype, in short."""
        text = '×'.join(map(str, self.shape))
        text += ' channels_last' if self.layout == 'channels_last' else ''
        autocast = ' autocast' if self.autocast else ''
        return text if self.dtype == 'float32' else f'{text} {self.dtype}{autocast}'


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f'{name} {value!r} is unknown: allowed are {", ".join(allowed)}'
            f'{nearest(value, allowed)}'
        )
