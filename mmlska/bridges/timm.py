"""VAN and VAN-LSKA in timm: ``timm.create_model('van_lska_tiny')``.

Tried with timm 1.0.31. timm is Apache-2.0; nothing of it stands here.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from mmlska.checkpoint.known_weights import KNOWN_WEIGHTS
from mmlska.models import VANClassifier

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Names of timm, and what they build. The archs are those of `VAN`.
MODELS: dict[str, dict[str, Any]] = {
    **{
        f'van_lska_{arch}': dict(arch=arch, attention=dict(type='LSKA', kernel_size=23))
        for arch in ('tiny', 'small', 'base', 'large')
    },
    **{
        f'van_b{i}': dict(arch=f'b{i}', attention=dict(type='LKA', kernel_size=23))
        for i in range(7)
    },
}


def _settings(name: str) -> dict[str, Any]:
    """What timm knows of a model: its input, and where weights lie."""
    known = KNOWN_WEIGHTS.get(name.replace('_', '-'))
    weights = {} if known is None else dict(url=known.url, license=known.licence)
    return dict(
        num_classes=1000,
        input_size=(3, 224, 224),
        pool_size=(7, 7),
        crop_pct=0.9,
        interpolation='bicubic',
        first_conv='patch_embed1.projection',
        classifier='head',
        **IMAGENET,
        **weights,
    )


# timm looks for this in the module of an entry point.
default_cfgs = {name: _settings(name) for name in MODELS}


def register() -> list[str]:
    """Make timm know the models, and return their names.

    ``features_only=True``, ``out_indices``, ``in_chans``, ``num_classes``, ``drop_rate``,
    ``drop_path_rate`` and the options of :class:`mmlska.models.VAN` (``attention``, ``plugins``,
    ``with_cp``, ...) are taken by ``timm.create_model``. ``pretrained=True`` fetches the authors'
    weights of ``van_b0`` to ``van_b3``.

    Raises:
        ImportError: If timm is not installed.
    """
    from timm.models import is_model, register_model

    for name, options in MODELS.items():
        if not is_model(name):
            register_model(_entry_point(name, options))
    return list(MODELS)


def _entry_point(name: str, options: dict[str, Any]) -> Callable[..., nn.Module]:
    """The function that timm calls by the name of the model."""

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(name, pretrained, **{**options, **kwargs})

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f'VANClassifier of {options}.'
    setattr(sys.modules[__name__], name, create)
    return create


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    from timm.models import build_model_with_cfg

    return build_model_with_cfg(
        partial(_build, name),
        name,
        pretrained,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls='getter'),
        **kwargs,
    )


def _build(name: str, in_chans: int = 3, **options: Any) -> VANClassifier:
    # timm's own, which say nothing to us.
    for key in ('pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir'):
        options.pop(key, None)
    return VANClassifier(in_channels=in_chans, **options)
