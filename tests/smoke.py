"""What an installed package must do; `make release` runs it in a fresh environment."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch


def check_package() -> None:
    import mmlska

    package = Path(mmlska.__file__).parent
    assert package.is_relative_to(sys.prefix), f'{package} is not the installed package'
    assert metadata.version('mmlska') == mmlska.__version__
    listed = subprocess.run(
        [sys.executable, '-m', 'mmlska', 'configs', 'van-lska-tiny'],
        capture_output=True,
        text=True,
        check=True,
    )
    configs = listed.stdout.split()
    assert configs and all(Path(path).is_relative_to(package) for path in configs)
    print(f'mmlska {mmlska.__version__} with {len(configs)} configs of VAN-LSKA-tiny')


def check_layer() -> None:
    from mmlska.layers import LSKA

    x = torch.randn(1, 8, 20, 21, requires_grad=True)
    LSKA(8, kernel_size=11)(x).sum().backward()
    assert x.grad.abs().sum() > 0


def check_config(name: str) -> None:
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    import mmlska

    path = Path(mmlska.__file__).parent / '.mim' / 'configs' / 'van_lska' / name
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model).eval()
    maps = model.extract_feat(torch.randn(1, 3, 64, 96))
    assert all(torch.isfinite(level).all() for level in maps)
    print(f'{name}: {len(maps)} maps')


if __name__ == '__main__':
    check_package()
    check_layer()
    check_config('mask-rcnn_van-lska-tiny_fpn_1x_coco.py')
    check_config('fpn_van-lska-tiny_4xb4-80k_ade20k-512x512.py')
