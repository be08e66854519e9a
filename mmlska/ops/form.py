"""What a form of an operation is, and what is known of a call when one is chosen."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch


class Signature(NamedTuple):
    """All that decides which form is the fastest.

    Attributes:
        device: Device of the map.
        dtype: The dtype in which it is computed, on a GPU under autocast another than its own.
        shape: Its shape ``(N, C, H, W)``.
        layout: Its memory format.
        kernels: Height and width of each kernel.
        dilations: Dilation of each kernel.
        training: Whether autograd records the call.
    """

    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, ...]
    layout: torch.memory_format
    kernels: tuple[tuple[int, int], ...]
    dilations: tuple[int, ...]
    training: bool


class Form(Protocol):
    """One implementation of an operation, a module: the reference form has `run` alone."""

    def run(
        self,
        x: torch.Tensor,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
        dilations: Sequence[int],
    ) -> torch.Tensor:
        """Compute the operation on a map ``(N, C, H, W)``."""


class FastForm(Form, Protocol):
    """A form that computes some calls as the reference does, and some of those faster."""

    def why_not(
        self,
        x: torch.Tensor,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
        dilations: Sequence[int],
    ) -> str:
        """What keeps it from computing a call as the reference does; '' if nothing does.

        It is remembered: only shapes, strides, dtypes, devices and what surrounds the call decide.
        """

    def why_slower(self, call: Signature) -> str:
        """Why it is not measured to be faster for such calls; '' if it is. Asked once for each."""
