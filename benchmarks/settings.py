"""What is measured, and what of it is possible."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from mmlska.shipped import nearest

CASES = ('op', 'layer', 'block', 'backbone', 'detector', 'evaluation')
MODES = ('forward', 'train')
LAYOUTS = ('contiguous', 'channels_last')
ALLOCATORS = ('keep', 'return', 'default')
DTYPES = ('float32', 'bfloat16', 'float16', 'float64')
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


@dataclass(frozen=True)
class Settings:
    """One measurement.

    Attributes:
        case: 'op' (the depth-wise cascade of an attention layer), 'layer' (the whole layer),
            'block' (a VAN block), 'backbone' (a VAN), 'detector' (the detector or segmentor of a
            config on random images) or 'evaluation' (its evaluation on images of ``data``).
        mode: 'forward', or 'train': forward and backward, for a detector with the optimizer's step.
        device: A device of PyTorch.
        dtype: Of the map and the weights; a backbone and a detector compute under autocast instead.
        layout: Memory layout of the map.
        shape: ``(N, C, H, W)`` of the map, for a backbone and a detector of the images, for an
            evaluation the number of images and the size that they are made to fit.
        attention: Type of the attention layer.
        kernel_size: Of the attention layer; None takes the layer's own default.
        arch: Of the VAN.
        ffn_ratio: Of the VAN block.
        config: Path or name of a config.
        data: Folder with ``annotations/instances_val.json`` and ``images/val`` for an evaluation.
        backend: What our side gives to :func:`mmlska.ops.use_backend`.
        fuse: Whether our side is folded by :func:`mmlska.deploy.fuse`.
        compile: Whether both are measured by ``torch.compile`` too.
        allocator: What happens to freed memory on the CPU: 'keep', 'return' or 'default', see
            :func:`.timing.set_allocator`. None takes 'keep' for an op and a layer, which alone
            would be a matter of luck, and 'default' for what is larger.
        threads: Of PyTorch on the CPU.
        rounds: How often each variant is timed.
        max_seconds: After so many seconds no further round begins, once three are done.
    """

    case: str = 'layer'
    mode: str = 'forward'
    device: str = 'cpu'
    dtype: str = 'float32'
    layout: str = 'contiguous'
    shape: tuple[int, ...] | None = None
    attention: str = 'LSKA'
    kernel_size: int | None = None
    arch: str = 'tiny'
    ffn_ratio: float = 8
    config: str = CONFIG
    data: str | None = None
    backend: str = 'auto'
    fuse: bool = False
    compile: bool = False
    allocator: str | None = None
    threads: int = 1
    rounds: int = 9
    max_seconds: float = 60

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
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return getattr(torch, self.dtype)

    @property
    def autocast(self) -> bool:
        """Whether parameters stay in float32 and autocast chooses the dtype of operations."""
        return self.case in ('backbone', *WHOLE_MODELS) and self.dtype != 'float32'

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
        if self.device.startswith('cuda') and not torch.cuda.is_available():
            raise ValueError(
                f'device {self.device!r}: PyTorch {torch.__version__} sees no CUDA device here'
            )

    def _check_numbers(self) -> None:
        if len(self.shape) != 4 or min(self.shape) < 1:
            raise ValueError(f'shape takes four positive numbers N C H W, got {self.shape}')
        for name in ('threads', 'rounds'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')

    def _check_combination(self) -> None:
        if self.fuse and self.train:
            raise ValueError("fuse folds for inference only: it takes mode 'forward', not 'train'")
        if self.fuse and self.case == 'op':
            raise ValueError('fuse folds layers and models: an op has nothing to fold')
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
        folded = ', folded' if self.fuse else ''
        returned = ', memory returned' if self.allocator == 'return' else ''
        return names[self.case] + folded + returned

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
