"""What surrounds a call: gradients, tracers, transforms."""

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

# Missing in PyTorch 2.0, where nothing else says so either.
_compiler = getattr(torch, 'compiler', None)
is_compiling = getattr(_compiler, 'is_compiling', lambda: False)

# Marks a function that compilers call once, when they see it, and whose answer they keep.
constant_when_compiled = getattr(_compiler, 'assume_constant_result', lambda function: function)


def needs_gradients(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd records what is done with these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def is_plain_tensor(tensor: torch.Tensor) -> bool:
    """Whether it is a tensor with values, and no proxy, fake or otherwise special one."""
    return type(tensor) in (torch.Tensor, nn.Parameter) and not tensor.is_meta


def is_transformed() -> bool:
    """Whether something looks at the operations: a tracer, a counter, or a function transform."""
    return (
        torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def is_autocast(device_type: str) -> bool:
    """Whether autocast is on for this type of device."""
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.is_autocast_enabled(device_type)
    # Before PyTorch 2.4 each type of device has a function of its own.
    return torch.is_autocast_cpu_enabled() if device_type == 'cpu' else torch.is_autocast_enabled()


def layout_of(x: torch.Tensor) -> torch.memory_format:
    """Memory format of what a layer makes of a map: contiguous, unless it is channels_last alone.

    A map of one channel or one position is both.
    """
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_channels_last else torch.contiguous_format


def _has_global_hook() -> bool:
    """Whether a hook waits for calls of all modules; PyTorch 2.1 has no function that tells."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def is_watched(*modules: nn.Module) -> bool:
    """Whether hooks wait for calls of these modules, which must then be made, each once."""
    return _has_global_hook() or any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )
