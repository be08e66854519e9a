"""What the study trains, and at which scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmlska.analysis.ablation import Spec, make_spec

BASE = 'fpn_van-lska-pico_demo_digits-64x64'
METRIC = 'mIoU'
KERNEL_SIZES = (7, 11, 23, 35)
TRIVIAL_SIZES = (7, 23)
ALTERNATIVES = ('ECA', 'ContextAggregation', 'DFCAttention')
# The attention of the base config.
BASE_ATTENTION = ('LSKA', 23)
IMAGE_SIZE = 64
# One of each kind of ImageNet-C: noise, blur, weather, digital.
CORRUPTIONS = ('gaussian_noise', 'defocus_blur', 'fog', 'jpeg_compression')


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured.

    Attributes:
        iterations: Of each training, with batches of 8.
        seeds: Trainings of each cell.
        num_train: Training scenes.
        num_val: Validation scenes.
        kernel_sizes: Of LKA and LSKA.
        trivial_sizes: Of the trivial forms.
        alternatives: Layers at the place of the attention.
        field_images: Images that a receptive field is averaged over.
        field_size: Side of these images, pixels.
        rounds: Rounds of timing.
        corrupted_images: Scenes that are corrupted.
        corruptions: Of ImageNet-C; none moves a pixel, so that labels stay true.
        severities: Of the corruptions.
        cues: Shapes, and textures, of the scenes with exchanged textures.
        pairs: Most pairs of pictures of one shape, and of one texture.
    """

    iterations: int
    seeds: int
    num_train: int
    num_val: int
    kernel_sizes: tuple[int, ...] = KERNEL_SIZES
    trivial_sizes: tuple[int, ...] = TRIVIAL_SIZES
    alternatives: tuple[str, ...] = ALTERNATIVES
    field_images: int = 8
    field_size: int = 256
    rounds: int = 15
    corrupted_images: int = 64
    corruptions: tuple[str, ...] = CORRUPTIONS
    severities: tuple[int, ...] = (1, 3, 5)
    cues: int = 20
    pairs: int = 2000


SCALES = {
    'full': Scale(iterations=1000, seeds=5, num_train=3000, num_val=400, field_images=16),
    'quick': Scale(
        iterations=600,
        seeds=3,
        num_train=1500,
        num_val=200,
        kernel_sizes=(7, 23, 35),
        trivial_sizes=(7, 23),
        alternatives=('ECA',),
        severities=(3,),
        cues=12,
    ),
    # Shows that the study runs through, in a minute or two; it says nothing about any claim.
    'mini': Scale(
        iterations=10,
        seeds=2,
        num_train=40,
        num_val=8,
        kernel_sizes=(7, 23),
        trivial_sizes=(),
        alternatives=('ECA',),
        field_images=1,
        field_size=128,
        rounds=3,
        corrupted_images=4,
        corruptions=CORRUPTIONS[:1],
        cues=4,
        pairs=50,
        severities=(3,),
    ),
}


def attentions(scale: Scale) -> list[tuple[str, int | None]]:
    """Kind and kernel size of each attention beside the base's."""
    wanted = [(kind, k) for kind in ('LSKA', 'LKA') for k in scale.kernel_sizes]
    wanted += [(f'{kind}Trivial', k) for kind in ('LSKA', 'LKA') for k in scale.trivial_sizes]
    wanted += [(kind, None) for kind in scale.alternatives]
    return [attention for attention in wanted if attention != BASE_ATTENTION]


def cell_name(kind: str, kernel_size: int | None) -> str:
    """Name of the cell with an attention.

    >>> cell_name('LKA', 7), cell_name('LSKA', 23), cell_name('ECA', None)
    ('lka-kernel_size7_attention', 'base', 'eca_attention')
    """
    if (kind, kernel_size) == BASE_ATTENTION:
        return 'base'
    size = '' if kernel_size is None else f'-kernel_size{kernel_size}'
    return f'{kind.lower()}{size}_attention'


def study_spec(scale: Scale, data_root: Path, work_dir: Path) -> Spec:
    """The ablation that the study begins with."""
    options = {
        'train_cfg.max_iters': scale.iterations,
        'train_cfg.val_interval': scale.iterations,
        'default_hooks.checkpoint.interval': scale.iterations,
        'param_scheduler.0.end': min(50, scale.iterations // 2),
        'param_scheduler.1.begin': min(50, scale.iterations // 2),
        'param_scheduler.1.end': scale.iterations,
    }
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.dataset.data_root'] = f'{data_root}/'
    add = [kind if k is None else f'{kind}:kernel_size={k}' for kind, k in attentions(scale)]
    settings: Mapping = dict(
        base=BASE,
        add=add,
        where=['attention'],
        seeds=scale.seeds,
        metric=[METRIC],
        cfg_options=options,
        work_dir=work_dir,
    )
    return make_spec(settings)
