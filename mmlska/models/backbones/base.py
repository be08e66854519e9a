"""What the backbones have in common: stages, what they return, freezing, depths of layers."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from numbers import Real

import torch
from mmengine.model import BaseModule
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import nn

from mmlska.checkpoint import WholeLoading


class ArchError(ValueError, AssertionError):
    """An architecture that a backbone does not have.

    Also an AssertionError, as mmpretrain's VAN raises, so that code written for either catches it.
    """


class StagedBackbone(WholeLoading, BaseModule):
    """A backbone of stages, each of which halves the map, that can be left out and frozen.

    A subclass builds its first ``num_stages`` stages, and then calls :meth:`freeze_stages`.

    Args:
        total_stages (int): Stages of the whole architecture.
        out_indices (Sequence[int] | int): Stages whose maps are returned, in increasing order.
        frozen_stages (int): Stages up to this index neither train nor update statistics; -1 freezes
            none.
        norm_eval (bool): Keep BatchNorm layers in evaluation mode.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config.
        pretrained (str, optional): Checkpoint, as the base models of mmseg name it; short for an
            ``init_cfg`` of type 'Pretrained'.

    Raises:
        ValueError: If an index is not possible, or both ``init_cfg`` and ``pretrained`` are given.
            The message names what is allowed.
    """

    def __init__(
        self,
        total_stages: int,
        out_indices: Sequence[int] | int,
        frozen_stages: int,
        norm_eval: bool,
        init_cfg: dict | list[dict] | None,
        pretrained: str | None,
    ) -> None:
        super().__init__(init_cfg=resolve_init_cfg(init_cfg, pretrained))
        self.out_indices = resolve_out_indices(out_indices, total_stages)
        self.num_stages = self.out_indices[-1] + 1
        self.frozen_stages = check_frozen_stages(frozen_stages, self.num_stages)
        self.norm_eval = norm_eval

    @property
    @abstractmethod
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each returned map."""

    @abstractmethod
    def stage(self, index: int) -> list[nn.Module]:
        """The modules of a stage, the first one being 0, in the order of a map's trip."""

    @abstractmethod
    def stage_blocks(self, index: int) -> list[nn.Module]:
        """Those of them, or parts of them, that are layers of their own, in this order."""

    @abstractmethod
    def forward_stage(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Run a stage on the map of the one before, or on the images."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Turn images into a pyramid of feature maps.

        Args:
            x (Tensor): Images ``(N, in_channels, H, W)`` of any size.

        Returns:
            tuple[Tensor]: One map ``(N, C_i, ceil(H / s_i), ceil(W / s_i))`` for each out index, at
            strides ``s`` of 4, 8, 16 and 32. They are contiguous, whatever layout a stage computes
            in: operators of mmcv misread others, see :mod:`mmlska.patches`.
        """
        outs = []
        for i in range(self.num_stages):
            x = self.forward_stage(i, x)
            if i in self.out_indices:
                outs.append(x.contiguous())
        return tuple(outs)

    def train(self, mode: bool = True) -> 'StagedBackbone':
        """Set the training mode; frozen stages, and norms under ``norm_eval``, stay as they are."""
        super().train(mode)
        self.freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of the layer of a parameter, for learning rates that decay with it.

        The contract is that of mmpretrain's backbones, for its optimizer constructor
        ``LearningRateDecayOptimWrapperConstructor``. Layer 0 is the stem, up to the first block;
        every block is a layer, with what stands before it in its stage and, if it is the last one,
        what stands after it; whatever follows the backbone is the last layer.

        Args:
            param_name (str): Name of a parameter of the backbone, or of a model around it.
            prefix (str): What the names of the backbone's parameters begin with in that model.
                Defaults to ''.

        Returns:
            tuple[int, int]: Depth of the layer, from 0 on, and the number of layers.

        Raises:
            ValueError: If the backbone has no parameter of this name.
        """
        depths = self._layer_depths()
        num_layers = max(depths.values()) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        try:
            parameter = self.get_parameter(param_name.removeprefix(prefix))
        except AttributeError as error:
            raise ValueError(
                f'{type(self).__name__} has no parameter {param_name!r} (prefix {prefix!r})'
            ) from error
        # What a derived class adds outside of the stages counts as what follows them.
        return depths.get(parameter, num_layers - 1), num_layers

    def _layer_depths(self) -> dict[nn.Parameter, int]:
        depths, depth = {}, 0
        for i in range(self.num_stages):
            blocks = self.stage_blocks(i)
            own = {p: depth + 1 + j for j, block in enumerate(blocks) for p in block.parameters()}
            # Before the first block; from there on, that of the last block that was passed.
            here = 0 if i == 0 else depth + 1
            for parameter in chain.from_iterable(part.parameters() for part in self.stage(i)):
                depths[parameter] = here = own.get(parameter, here)
            depth += len(blocks)
        return depths

    def freeze_stages(self) -> None:
        """Freeze what ``frozen_stages`` says.

        Called when the model is built, before an optimizer or a DDP wrapper sees it, and not only
        by :meth:`train`.
        """
        for i in range(self.frozen_stages + 1):
            for module in self.stage(i):
                module.eval()
                module.requires_grad_(False)


def resolve_init_cfg(
    init_cfg: dict | list[dict] | None, pretrained: str | None
) -> dict | list[dict] | None:
    """The initialisation config, made of ``pretrained`` where that is given.

    Raises:
        ValueError: If both are given.
    """
    if pretrained is None:
        return init_cfg
    if init_cfg is not None:
        raise ValueError(
            f'pretrained={pretrained!r} and init_cfg={init_cfg!r} both name what to start from: '
            "leave one out; the first is short for init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    return dict(type='Pretrained', checkpoint=pretrained)


def drop_path_rates(last_rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth of each block of each stage: linear from 0 at the first to ``last_rate``."""
    rates = iter(torch.linspace(0, last_rate, sum(depths), device='cpu').tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]


def resolve_arch(
    arch: str | dict, zoo: Mapping[str, Mapping], other_keys: Iterable[str] = ()
) -> dict:
    """The settings of a named architecture, or a checked copy of a custom one.

    Args:
        arch (str | dict): Name in ``zoo`` or a dict with the lists ``embed_dims``, ``depths`` and
            ``ffn_ratios``, one positive number a stage, and the other keys.
        zoo (Mapping): Named architectures.
        other_keys (Iterable[str]): Keys whose values are handed through. Defaults to none.

    Raises:
        ArchError: If the name is not in ``zoo`` or the dict is not as described.
    """
    if isinstance(arch, str):
        if arch.lower() not in zoo:
            raise ArchError(f'Arch {arch!r} is not in default archs: {", ".join(zoo)}')
        arch = zoo[arch.lower()]
    lists = ('embed_dims', 'depths', 'ffn_ratios')
    keys = (*lists, *other_keys)
    if not isinstance(arch, dict) or set(arch) != set(keys):
        got = sorted(arch) if isinstance(arch, dict) else repr(arch)
        raise ArchError(f'Custom arch needs a dict with the keys {", ".join(keys)}, but got {got}')
    for key in lists:
        _check_numbers(key, arch[key], (int, float) if key == 'ffn_ratios' else int)
    if len({len(arch[key]) for key in lists}) != 1 or not arch['depths']:
        lengths = ', '.join(f'{key} has {len(arch[key])}' for key in lists)
        raise ArchError(f'Custom arch needs one entry a stage in each list, but {lengths}')
    return {key: list(arch[key]) if key in lists else arch[key] for key in keys}


def _check_numbers(key: str, values: Sequence, number: type | tuple[type, ...]) -> None:
    if not isinstance(values, Sequence) or not all(
        isinstance(value, number) and not isinstance(value, bool) and value > 0 for value in values
    ):
        raise ArchError(f'Custom arch needs positive numbers, but {key} is {values!r}')


def resolve_out_indices(out_indices: Sequence[int] | int, num_stages: int) -> tuple[int, ...]:
    """Out indices as an increasing tuple within the stages; negative ones count from the end.

    Raises:
        ValueError: If there is none, one is out of range, or they do not increase.
    """
    given = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices or ())
    allowed = f'stages 0 to {num_stages - 1} in increasing order, each once'
    if not given or not all(isinstance(i, int) and -num_stages <= i < num_stages for i in given):
        raise ValueError(f'out_indices={out_indices!r} is out of range: allowed are {allowed}')
    indices = tuple(i % num_stages for i in given)
    if any(later <= earlier for earlier, later in pairwise(indices)):
        raise ValueError(f'out_indices={out_indices!r} is not possible: allowed are {allowed}')
    return indices


def check_frozen_stages(frozen_stages: int, num_stages: int) -> int:
    """Refuse to freeze a stage that is not built.

    Raises:
        ValueError: If the index is out of range.
    """
    if not -1 <= frozen_stages < num_stages:
        raise ValueError(
            f'frozen_stages={frozen_stages} is out of range: allowed are -1 (none) to '
            f'{num_stages - 1}, the last stage that is built'
        )
    return frozen_stages


def check_rates(**rates: float) -> None:
    """Refuse a rate of dropping that is no probability below 1.

    Raises:
        ValueError: If one is not. The message names the option.
    """
    for name, rate in rates.items():
        if not isinstance(rate, Real) or not 0 <= rate < 1:
            raise ValueError(f'{name}={rate} is not possible: it must be one number in [0, 1)')
