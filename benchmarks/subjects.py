"""What is timed: a module with fixed inputs, run forward, or forward and backward."""

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmlska.layers.build import build_layer
from mmlska.ops import depthwise_cascade
from mmlska.registry import MODELS
from mmlska.shipped import nearest

from .settings import Settings

Tensors = dict[str, Sequence[torch.Tensor]]


class Cascade(nn.Module):
    """The depth-wise convolutions of an attention layer, without the rest of it.

    Args:
        convs (Sequence[Conv2d]): Depth-wise convolutions in the order in which they are applied.
    """

    def __init__(self, convs: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        parts = [(conv.weight, conv.bias, conv.dilation[0]) for conv in self.convs]
        return depthwise_cascade(x, *zip(*parts, strict=True))


class MapSubject:
    """A module that maps a tensor to one tensor or several.

    Args:
        settings (Settings): What is measured.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        torch.manual_seed(0)
        self.module = build_module(settings).train(settings.train)
        randomize_norms(self.module)
        dtype = torch.float32 if settings.autocast else getattr(torch, settings.dtype)
        self.module.to(self.device, dtype)
        layout = getattr(torch, f'{settings.layout}_format', torch.channels_last)
        x = torch.randn(settings.shape).to(self.device, dtype)
        needs_gradient = settings.train and settings.case != 'backbone'
        self.x = x.contiguous(memory_format=layout).requires_grad_(needs_gradient)
        with torch.no_grad(), self.autocast():
            outputs = as_list(copy.deepcopy(self.module)(self.x))
        self.gradients = [torch.randn_like(output) for output in outputs]

    def autocast(self) -> contextlib.AbstractContextManager:
        """Autocast where it is asked for."""
        return autocast(self.settings)

    def modules(self) -> dict[str, nn.Module]:
        """The module as it is, and as our side runs it."""
        ours = self.module
        if self.settings.fuse:
            from mmlska.deploy import fuse

            ours = fuse(nn.Sequential(self.module).eval())[0]
        return {'plain': self.module, 'ours': ours}

    def compiled(self, module: nn.Module) -> nn.Module:
        """The module by ``torch.compile``."""
        return torch.compile(module, backend=new_inductor())

    def run(self, module: nn.Module) -> Tensors:
        """Run it once; returns its outputs and, in training, the gradients of all it takes."""
        if not self.settings.train:
            with torch.no_grad(), self.autocast():
                return dict(outputs=as_list(module(self.x)))
        with self.autocast():
            outputs = as_list(module(self.x))
        inputs = [*module.parameters()]
        inputs += [self.x] if self.x.requires_grad else []
        gradients = torch.autograd.grad(outputs, inputs, self.gradients)
        return dict(outputs=outputs, gradients=gradients)

    def runner(self, module: nn.Module) -> Callable[[], object]:
        """What is timed."""
        return functools.partial(self.run, module)

    def compare(self, module: nn.Module) -> Tensors:
        """What has to be equal for all variants."""
        return {name: [t.detach() for t in found] for name, found in self.run(module).items()}


def build_module(settings: Settings) -> nn.Module:
    """The module of an op, a layer, a block or a backbone, with random weights.

    Raises:
        ValueError: If the attention layer or the architecture is unknown, or the kernel size
            impossible.
    """
    channels = settings.shape[1]
    attention = attention_config(settings)
    # A machine that has PyTorch alone measures ops and layers; the others need mmcv.
    if settings.case == 'backbone':
        from mmlska.models import VAN

        return VAN(settings.arch, attention, in_channels=channels)
    if settings.case == 'block':
        from mmlska.models.backbones.van import VANBlock

        norm, act = dict(type='BN'), dict(type='GELU')
        return VANBlock(channels, settings.ffn_ratio, attention, norm, act)
    layer = build_layer(attention, channels)
    return layer if settings.case == 'layer' else Cascade(depthwise_convs(layer))


def attention_config(settings: Settings) -> dict[str, Any]:
    """Config of the attention layer.

    Raises:
        ValueError: If there is no such layer, or it takes no kernel size and one is given. The
            message names all layers and the nearest.
    """
    layers = {name: cls for name, cls in MODELS.module_dict.items() if hasattr(cls, '_abbr_')}
    if settings.attention not in layers:
        raise ValueError(
            f'attention {settings.attention!r} is unknown: allowed are {", ".join(sorted(layers))}'
            f'{nearest(settings.attention, layers)}'
        )
    if settings.kernel_size is None:
        return dict(type=settings.attention)
    if 'kernel_size' not in inspect.signature(layers[settings.attention]).parameters:
        raise ValueError(
            f'{settings.attention} takes no kernel size, but got {settings.kernel_size}'
        )
    return dict(type=settings.attention, kernel_size=settings.kernel_size)


def depthwise_convs(layer: nn.Module) -> list[nn.Conv2d]:
    """The depth-wise convolutions of a layer, in their order."""
    convs = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]
    return [conv for conv in convs if conv.groups == conv.in_channels > 1]


@torch.no_grad()
def randomize_norms(module: nn.Module) -> None:
    """Give BatchNorms statistics and factors that are not those of a new one."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.1)


def as_list(outputs: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """One tensor as a list of one."""
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


@contextlib.contextmanager
def autocast(settings: Settings) -> Iterator[None]:
    """Autocast to the dtype of the settings, where they ask for it."""
    if not settings.autocast:
        yield
        return
    with torch.autocast(torch.device(settings.device).type, getattr(torch, settings.dtype)):
        yield


def new_inductor() -> Callable:
    """The default compiler, as an object of its own.

    What is compiled for one backend object is never run for another, so that each side gets code
    that was made with its own choices.
    """
    # Here, since the whole compiler comes with it.
    from torch._dynamo.backends.registry import lookup_backend

    return functools.partial(lookup_backend('inductor'))
