"""Large-kernel attention and its separable and undecomposed relatives.

LKA: "Visual Attention Network" (arXiv 2202.09741), equation 3;
github.com/Visual-Attention-Network/VAN-Classification at e19779b, Apache-2.0.
LSKA and the "trivial" forms, which apply the whole kernel without the dilated decomposition: "Large
Separable Kernel Attention" (arXiv 2309.01439);
github.com/StevenLauHKHK/Large-Separable-Kernel-Attention at bb2a8d2, Apache-2.0. That repository
holds LSKA alone, at six kernel sizes. Written from the equations, with the official names of
weights.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from mmlska.layers.official_names import take_official_names
from mmlska.ops import (
    decompose_kernel,
    depthwise_cascade,
    in_right_layout,
    large_kernel_attention,
    why_no_pointwise_conv,
    why_no_same_conv,
    why_watched,
)
from mmlska.ops.argument_checks import check_odd, check_positive_int
from mmlska.registry import MODELS

from .input_check import check_map
from .weight_init import init_convs

# The official detection and segmentation code names the four convolutions of LSKA differently.
OFFICIAL_DETECTION_NAMES = [
    (r'\bDW_conv_([hv])\.', r'conv0\1.'),
    (r'\bDW_D_conv_([hv])\.', r'conv_spatial_\1.'),
]


def _depthwise(channels: int, kernel_size: tuple[int, int], dilation: int = 1) -> nn.Conv2d:
    """A depth-wise convolution that keeps the size of the map."""
    padding = tuple(dilation * (k // 2) for k in kernel_size)
    return nn.Conv2d(
        channels, channels, kernel_size, padding=padding, dilation=dilation, groups=channels
    )


class _DepthwiseGate(nn.Module):
    """``x * conv1(cascade(x))``: what the four kinds of attention share.

    A derived class may register more modules. Here the depth-wise convolutions are meant by their
    names, ``cascade_names``, in the order in which they are applied.

    Args:
        in_channels (int): Channels of the input and output map.
        cascade (Mapping[str, tuple]): Name, kernel size and dilation of each depth-wise
            convolution, in the order in which they are applied.
    """

    def __init__(
        self, in_channels: int, cascade: Mapping[str, tuple[tuple[int, int], int]]
    ) -> None:
        super().__init__()
        check_positive_int('in_channels', in_channels)
        self.in_channels = in_channels
        self.cascade_names = tuple(cascade)
        for name, (kernel_size, dilation) in cascade.items():
            self.add_module(name, _depthwise(in_channels, kernel_size, dilation))
        self.conv1 = nn.Conv2d(in_channels, in_channels, 1)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise as in VAN, also where a surrounding model has initialised all its layers."""
        init_convs(*self.depthwise_convs(), self.conv1)

    def depthwise_convs(self) -> list[nn.Module]:
        """The depth-wise convolutions in the order in which they are applied."""
        modules = self._modules
        return [modules[name] for name in self.cascade_names]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate the map ``x`` of shape ``(N, C, H, W)`` with its own wide surroundings."""
        if torch.jit.is_scripting():
            return x * self.conv1(self.cascade(x))
        else:
            check_map(self, x, self.conv1)
            return _gate(x, self.depthwise_convs(), self.conv1)


def _gate(x: torch.Tensor, convs: Sequence[nn.Module], mix: nn.Module) -> torch.Tensor:
    """``x * mix(cascade(x))`` in one operation, or in parts where a module must be called."""
    if _why_one_by_one(convs, x) or why_watched(mix) or why_no_pointwise_conv(mix):
        return x * mix(_apply(convs, x))
    return large_kernel_attention(x, *_parameters(*convs, mix))


def _parameters(*convs: nn.Conv2d) -> Iterator[tuple]:
    """Weights, biases and dilations of convolutions."""
    return zip(*[(conv.weight, conv.bias, conv.dilation[0]) for conv in convs], strict=True)


def _apply(convs: Sequence[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """Apply depth-wise convolutions in one operation, or one by one where they must be called."""
    if not _why_one_by_one(convs, x):
        return depthwise_cascade(x, *_parameters(*convs))
    for conv in convs:
        if isinstance(x, torch.Tensor) and isinstance(conv, nn.Conv2d):
            x = in_right_layout(x, conv)
        x = conv(x)
    return x


def _why_one_by_one(convs: Sequence[nn.Module], x: torch.Tensor) -> str:
    """Why each convolution is called as the module that it is; '' if none has to be."""
    if not isinstance(x, torch.Tensor):
        return 'a symbol stands for the map'
    if torch.jit.is_tracing():
        return 'torch.jit.trace names operations by the modules that they are in'
    return why_watched(*convs) or why_no_same_conv(*convs, depthwise=True)


@MODELS.register_module()
class LKA(_DepthwiseGate):
    """Large-kernel attention: ``x * pw(dwd(dw(x)))`` (VAN, arXiv 2202.09741, equation 3).

    All convolutions have a bias; there is no norm and no activation between them. VAN's own code is
    the case ``kernel_size=23`` (5x5, then 7x7 with dilation 3), which its paper calls "K=21".

    Args:
        in_channels (int): Channels of the input and output map.
        kernel_size (int): Receptive field, see :func:`decompose_kernel`. Defaults to 23.
        dilation (int, optional): Dilation of the second kernel. Defaults to None: the paper's.

    Raises:
        ValueError: If the kernel has no exact decomposition.
    """

    _abbr_ = 'lka'

    def __init__(
        self, in_channels: int, kernel_size: int = 23, dilation: int | None = None
    ) -> None:
        local, dilated, d = decompose_kernel(kernel_size, dilation)
        super().__init__(
            in_channels, {'conv0': ((local, local), 1), 'conv_spatial': ((dilated, dilated), d)}
        )

    def cascade(self, x: torch.Tensor) -> torch.Tensor:
        """``dwd(dw(x))``, one by one: what TorchScript compiles."""
        return self.conv_spatial(self.conv0(x))


@MODELS.register_module()
class LSKA(_DepthwiseGate):
    """Large separable kernel attention: ``x * pw(dwd_v(dwd_h(dw_v(dw_h(x)))))``.

    Each kernel of :class:`LKA` becomes a horizontal and a vertical 1-D kernel (arXiv 2309.01439),
    applied in this order. The order matters at the borders: every convolution has a bias of its
    own. There is no norm and no activation in between.

    Args:
        in_channels (int): Channels of the input and output map.
        kernel_size (int): Receptive field, see :func:`decompose_kernel`. Defaults to 23.
        dilation (int, optional): Dilation of the second pair. Defaults to None: the paper's.

    Raises:
        ValueError: If the kernel has no exact decomposition.
    """

    _abbr_ = 'lska'

    def __init__(
        self, in_channels: int, kernel_size: int = 23, dilation: int | None = None
    ) -> None:
        local, dilated, d = decompose_kernel(kernel_size, dilation)
        super().__init__(
            in_channels,
            {
                'conv0h': ((1, local), 1),
                'conv0v': ((local, 1), 1),
                'conv_spatial_h': ((1, dilated), d),
                'conv_spatial_v': ((dilated, 1), d),
            },
        )

    def cascade(self, x: torch.Tensor) -> torch.Tensor:
        """``dwd_v(dwd_h(dw_v(dw_h(x))))``, one by one: what TorchScript compiles."""
        return self.conv_spatial_v(self.conv_spatial_h(self.conv0v(self.conv0h(x))))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        take_official_names(self, state_dict, prefix, OFFICIAL_DETECTION_NAMES)
        super()._load_from_state_dict(state_dict, prefix, *args)


@MODELS.register_module()
class LKATrivial(_DepthwiseGate):
    """Large-kernel attention without decomposition: ``x * pw(dw(x))`` with one k x k kernel.

    The reference of arXiv 2309.01439 for what the decomposition saves.

    Args:
        in_channels (int): Channels of the input and output map.
        kernel_size (int): Odd size of the depth-wise kernel. Defaults to 23.

    Raises:
        ValueError: If ``kernel_size`` is not a positive odd integer.
    """

    _abbr_ = 'lka_trivial'

    def __init__(self, in_channels: int, kernel_size: int = 23) -> None:
        check_odd(kernel_size)
        super().__init__(in_channels, {'conv0': ((kernel_size, kernel_size), 1)})

    def cascade(self, x: torch.Tensor) -> torch.Tensor:
        """``dw(x)``: what TorchScript compiles."""
        return self.conv0(x)


@MODELS.register_module()
class LSKATrivial(_DepthwiseGate):
    """Separable attention without dilation: ``x * pw(dw_v(dw_h(x)))`` with 1-D kernels of size k.

    The reference of arXiv 2309.01439 between :class:`LKATrivial` and :class:`LSKA`.

    Args:
        in_channels (int): Channels of the input and output map.
        kernel_size (int): Odd size of the two 1-D kernels. Defaults to 23.

    Raises:
        ValueError: If ``kernel_size`` is not a positive odd integer.
    """

    _abbr_ = 'lska_trivial'

    def __init__(self, in_channels: int, kernel_size: int = 23) -> None:
        check_odd(kernel_size)
        super().__init__(
            in_channels, {'conv0h': ((1, kernel_size), 1), 'conv0v': ((kernel_size, 1), 1)}
        )

    def cascade(self, x: torch.Tensor) -> torch.Tensor:
        """``dw_v(dw_h(x))``, one by one: what TorchScript compiles."""
        return self.conv0v(self.conv0h(x))
