"""Which cases are measured together."""

from collections.abc import Callable
from itertools import product

from .settings import KINDS, Settings

Suite = dict[str, list[Settings]]
COMMANDS = {
    'cpu': 'make bench',
    'gpu': 'make bench-gpu',
    'attention': 'python -m benchmarks suite attention',
    'maps': 'python -m benchmarks suite maps',
}
DEMO = 'mask-rcnn_van-lska-nano_fpn_demo_digits'
SEGMENTOR = 'fpn_van-lska-tiny_4xb4-80k_ade20k-512x512'
MASK_RCNN = 'mask-rcnn_van-lska-{}_fpn_1x_coco'
BOTH_MODES = ('forward', 'train')
BOTH_LAYOUTS = ('contiguous', 'channels_last')
# Channels and stride of the maps of the four stages of VAN.
TINY = {4: 32, 8: 64, 16: 160, 32: 256}
WIDE = {4: 64, 8: 128, 16: 320, 32: 512}


def cpu_suite(data: str | None = None) -> Suite:
    """What ``make bench`` measures on the CPU, within five minutes.

    Args:
        data: Folder of images for the evaluation, see :class:`Settings`.
    """
    layer = Settings('layer', rounds=15, max_seconds=3)
    block = Settings('block', kernel_size=23, rounds=9, max_seconds=4)
    backbone = Settings('backbone', kernel_size=23, rounds=5, max_seconds=8)
    whole = Settings('detector', config=DEMO, shape=(4, 3, 128, 128), rounds=7, max_seconds=5)
    others = {'LKA': 23, 'LSKATrivial': 23, 'LKATrivial': 23, 'DFCAttention': 5}
    return {
        'LSKA, one layer': [
            layer.but(kernel_size=k, layout=layout, mode=mode)
            for mode, k, layout in product(BOTH_MODES, (23, 35), BOTH_LAYOUTS)
        ]
        + [layer.but(kernel_size=k, allocator='return') for k in (23, 35)],
        'Depth-wise cascades of the other kinds': [
            layer.but(case='op', attention=kind, kernel_size=k, mode=mode, shape=(1, 64, 64, 64))
            for (kind, k), mode in product(others.items(), BOTH_MODES)
        ],
        'Blocks and backbones': [
            block,
            block.but(fuse=True),
            block.but(fuse=True, layout='channels_last'),
            block.but(mode='train'),
            backbone,
            backbone.but(fuse=True),
            backbone.but(mode='train', shape=(1, 3, 512, 512)),
        ],
        'Small maps, as small images give them': [
            layer.but(kernel_size=23, shape=shape, mode=mode, max_seconds=1)
            for shape, mode in product(stage_maps(TINY, 2, (128, 256)), BOTH_MODES)
        ],
        'Whole models': [
            whole.but(mode='train'),
            whole,
            Settings('evaluation', shape=(2, 3, 320, 512), data=data, rounds=3),
        ],
    }


def attention_suite(data: str | None = None) -> Suite:
    """One layer of LSKA at the kernel sizes of its paper, on three maps, within six minutes.

    Their sides are such as dilations divide, and as they do not.
    """
    layer = Settings('layer', rounds=11, max_seconds=1.5)
    maps = (1, 64, 128, 128), (1, 64, 96, 160), (1, 128, 56, 72)
    return {
        f'LSKA at six kernel sizes, {title}': [
            layer.but(kernel_size=k, shape=shape, layout=layout, mode=mode)
            for k, shape, layout in product((7, 11, 23, 35, 53, 65), maps, BOTH_LAYOUTS)
        ]
        for mode, title in zip(BOTH_MODES, ('inference', 'training'), strict=True)
    }


def maps_suite(data: str | None = None) -> Suite:
    """Every kind, layout and mode on the maps that small and medium images give."""
    layer = Settings('layer', rounds=21, max_seconds=4)
    maps = [*stage_maps(TINY, 2, (128, 256)), (1, 64, 64, 64), (1, 64, 128, 128)]
    return {
        kind: [
            layer.but(attention=kind, kernel_size=k, shape=shape, layout=layout, mode=mode)
            for k, shape, layout, mode in product(
                (7, 23) if kind == 'LKATrivial' else (7, 23, 53), maps, BOTH_LAYOUTS, BOTH_MODES
            )
        ]
        for kind in KINDS
    }


def gpu_suite(data: str | None = None) -> Suite:
    """What ``make bench-gpu`` measures on a CUDA device."""
    # By name: where nothing was measured, nothing but the reference is chosen.
    base = Settings(
        device='cuda', backend='triton', rounds=15, max_seconds=20, compile=True, kernel_size=23
    )
    runs = list(product(('bfloat16', 'float32'), (2, 16), BOTH_MODES))
    sizes = ((512, 512), (800, 1280))
    maps = [
        base.but(dtype=dtype, mode=mode, shape=(n, WIDE[s], height // s, width // s))
        for (height, width), s, (dtype, n, mode) in product(sizes, WIDE, runs)
    ]
    images = [
        base.but(dtype=dtype, mode=mode, shape=(n, 3, *size))
        for size, (dtype, n, mode) in product(sizes, runs)
    ]
    models = {MASK_RCNN.format('tiny'): 800, MASK_RCNN.format('base'): 800, SEGMENTOR: 512}
    return {
        'Cascade of LSKA at the stages of VAN-base': [one.but(case='op') for one in maps],
        'Blocks of VAN-base': [
            one.but(case='block', ffn_ratio=8 if one.shape[1] < WIDE[16] else 4) for one in maps
        ],
        'Backbones': [
            one.but(case='backbone', arch=arch) for arch in ('tiny', 'base') for one in images
        ],
        'Detectors and segmentor': [
            one.but(case='detector', config=config)
            for config, height in models.items()
            for one in images
            if one.shape[2] == height
        ],
    }


SUITES: dict[str, Callable[[str | None], Suite]] = {
    'cpu': cpu_suite,
    'gpu': gpu_suite,
    'attention': attention_suite,
    'maps': maps_suite,
}


def stage_maps(
    channels: dict[int, int], number: int, sizes: tuple[int, ...]
) -> list[tuple[int, int, int, int]]:
    """Shapes of the maps that the stages make of square images.

    >>> stage_maps({4: 32, 8: 64}, 2, (128,))
    [(2, 32, 32, 32), (2, 64, 16, 16)]
    """
    return [
        (number, width, size // stride, size // stride)
        for size in sizes
        for stride, width in channels.items()
    ]
