"""VAN and VAN-LSKA as a backbone of transformers' detectors and segmentors.

``register()``, then ``RTDetrConfig(backbone_config=VanLskaConfig(...))``. Tried with transformers
5.24.0. It is Apache-2.0; nothing of it stands here.
"""

import sys
from functools import cache
from typing import Any, NamedTuple

import torch

from mmlska.models import VAN

MODEL_TYPE = 'mmlska_van'


class Bridge(NamedTuple):
    """The two classes that transformers asks for.

    Attributes:
        config (type): ``VanLskaConfig(arch='tiny', attention=None, out_features=None,
            out_indices=None, **options)``: ``options`` are those of :class:`mmlska.models.VAN`.
        backbone (type): ``VanLskaBackbone(config)``; its ``vision_model`` is the VAN, which loads
            weights of any naming.
    """

    config: type
    backbone: type[torch.nn.Module]


@cache
def register() -> Bridge:
    """Make ``AutoConfig`` and ``AutoBackbone`` know the backbone, and return its classes.

    They are attributes of this module from then on, so that configs and models are pickled, saved
    and loaded like transformers' own; another process calls ``register()`` first.

    Raises:
        ImportError: If transformers is not installed, or is older than 5.
    """
    from transformers import AutoBackbone, AutoConfig

    bridge = Bridge(_config_class(), _backbone_class())
    AutoConfig.register(MODEL_TYPE, bridge.config)
    AutoBackbone.register(bridge.config, bridge.backbone)
    for kind in bridge:
        kind.__module__, kind.__qualname__ = __name__, kind.__name__
        setattr(sys.modules[__name__], kind.__name__, kind)
    return bridge


@cache
def _config_class() -> type:
    from transformers import PreTrainedConfig
    from transformers.backbone_utils import BackboneConfigMixin

    class VanLskaConfig(BackboneConfigMixin, PreTrainedConfig):
        """Options of a VAN, and the stages whose maps are returned."""

        model_type = MODEL_TYPE

        def __init__(
            self,
            arch: str | dict = 'tiny',
            attention: dict | None = None,
            out_features: list[str] | None = None,
            out_indices: list[int] | None = None,
            options: dict[str, Any] | None = None,
            **kwargs: Any,
        ) -> None:
            super().__init__(**kwargs)
            self.arch = arch
            self.attention = attention or dict(type='LSKA', kernel_size=23)
            self.options = options or {}
            stages = len(VAN.arch_zoo[arch]['depths'] if isinstance(arch, str) else arch['depths'])
            self.stage_names = ['stem', *(f'stage{i + 1}' for i in range(stages))]
            self.set_output_features_output_indices(
                out_features=out_features, out_indices=out_indices
            )

    return VanLskaConfig


@cache
def _backbone_class() -> type[torch.nn.Module]:
    from transformers import PreTrainedModel
    from transformers.backbone_utils import BackboneMixin
    from transformers.modeling_outputs import BackboneOutput

    class VanLskaBackbone(BackboneMixin, PreTrainedModel):
        """A VAN whose maps are those of ``config.out_features``."""

        config_class = _config_class()
        main_input_name = 'pixel_values'
        has_attentions = False

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            stages = [index - 1 for index in config.out_indices]
            self.vision_model = VAN(
                config.arch, config.attention, out_indices=tuple(stages), **config.options
            )
            self.num_features = [0, *self.vision_model.embed_dims]
            self.post_init()

        def _init_weights(self, module: torch.nn.Module) -> None:
            """VAN has drawn its weights as its authors do."""

        def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BackboneOutput:
            """Images ``(N, C, H, W)`` to the maps of the named stages."""
            return BackboneOutput(feature_maps=self.vision_model(pixel_values))

    return VanLskaBackbone
