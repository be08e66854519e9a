"""What surrounds a call: the one place that says why a fast form may not take it.

Fast forms compute a map as their reference does, but by other operations and without calling the
modules that hold the parameters. So they may run only where nobody looks at the operations
(:func:`why_observed`), where nobody waits for calls of the modules (:func:`why_watched`), and where
the modules are what the form takes them for (:func:`why_no_same_conv`). Each of these returns the
reason, '' if there is none.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

if hasattr(torch.compiler, 'is_compiling'):
    is_compiling = torch.compiler.is_compiling
else:  # PyTorch 2.1
    from torch._dynamo.external_utils import is_compiling as is_compiling

if hasattr(torch.compiler, 'is_exporting'):
    is_exporting = torch.compiler.is_exporting
else:  # before PyTorch 2.7, where no form has operators of its own

    def is_exporting() -> bool:
        """Whether ``torch.export`` records the call."""
        return False


PLAIN_TENSORS = (torch.Tensor, nn.Parameter)


def constant_when_compiled(function: Callable) -> Callable:
    """Mark a function that compilers call once, when they see it, and whose answer they keep.

    It is ``torch.compiler.assume_constant_result`` without the import of the whole compiler, which
    takes seconds wherever a layer is imported.
    """
    function._dynamo_marked_constant = True
    # PyTorch 2.1 keeps the answer in a global named like the code, in place of the function.
    function.__code__ = function.__code__.replace(co_name=f'_answer_of_{function.__name__}')
    return function


def needs_gradients(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd records what is done with these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def why_special(*tensors: torch.Tensor | None) -> str:
    """Which of these is a proxy, a fake, a subclass or otherwise no tensor with values, and why."""
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in PLAIN_TENSORS:
            return f'{type(tensor).__name__} is no plain tensor'
        if tensor.is_meta:
            return 'a tensor on the meta device has no values'
    return ''


def why_observed(*tensors: torch.Tensor) -> str:
    """What looks at the operations of an eager call, or stands in for its tensors.

    Those are symbolic values of ``torch.fx``, fake and meta tensors, subclasses,
    ``torch.jit.trace`` with or without gradients, function transforms (``torch.func``), dispatch
    modes such as counters, and forward-mode differentiation. A compiler is none of them, see
    :data:`is_compiling`: what it may see is decided where it is asked for.

    Args:
        *tensors (Tensor): Some or all of the tensors of the call.

    Returns:
        str: The reason to let PyTorch's own operations be seen; '' if there is none.
    """
    # Asked before every call: the functions of PyTorch behind torch.jit and torch.func themselves.
    for tensor in tensors:
        if type(tensor) not in PLAIN_TENSORS or tensor.is_meta:
            return why_special(tensor)
    if torch._C._is_tracing():
        return 'torch.jit.trace records the call'
    if torch._C._are_functorch_transforms_active():
        return 'a function transform of torch.func is active'
    if torch._C._len_torch_dispatch_stack() > 0:
        return 'a dispatch mode sees the operations'
    if forward_ad._current_level >= 0:
        return 'forward-mode differentiation is on'
    return ''


def are_transforms_active() -> bool:
    """Whether a function transform, such as ``torch.func.vmap``, surrounds the call."""
    return torch._C._are_functorch_transforms_active()


def is_autocast(device_type: str) -> bool:
    """Whether autocast is on for this type of device."""
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.is_autocast_enabled(device_type)
    # Before PyTorch 2.4 each type of device has a function of its own.
    return torch.is_autocast_cpu_enabled() if device_type == 'cpu' else torch.is_autocast_enabled()


def autocast_dtype(device_type: str) -> torch.dtype:
    """The dtype that autocast gives the maps of convolutions on this type of device."""
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype(device_type)
    # Before PyTorch 2.4, as above.
    is_cpu = device_type == 'cpu'
    return torch.get_autocast_cpu_dtype() if is_cpu else torch.get_autocast_gpu_dtype()


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


def why_watched(*modules: nn.Module) -> str:
    """What waits for calls of these modules, which must then be made, each once, with whole maps.

    Args:
        *modules (nn.Module): Modules that a fast form would not call, or would call by parts.

    Returns:
        str: The reason to call them; '' if there is none.
    """
    if _has_global_hook():
        return 'a hook waits for calls of all modules'
    for module in modules:
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        ):
            return f'a hook waits for calls of a {type(module).__name__}'
        if 'forward' in module.__dict__:
            return f'forward of a {type(module).__name__} was replaced'
    return ''


def is_watched(*modules: nn.Module) -> bool:
    """Whether something waits for calls of these modules, see :func:`why_watched`."""
    return bool(why_watched(*modules))


def why_no_pointwise_conv(conv: nn.Module) -> str:
    """What keeps a module from being a 1x1 convolution of as many channels as it takes.

    Args:
        conv (nn.Module): The module.

    Returns:
        str: The reason; '' if there is none.
    """
    reason = why_no_same_conv(conv)
    if reason:
        return reason
    if conv.kernel_size != (1, 1) or conv.groups > 1 or conv.in_channels != conv.out_channels:
        return 'a convolution is not a 1x1 one of equally many channels in and out'
    return ''


def why_no_same_conv(*convs: nn.Module, depthwise: bool = False, reach: int | None = None) -> str:
    """What keeps modules from being 2-D convolutions that leave the size of a map as it is.

    That is: of the class ``nn.Conv2d`` itself, of stride 1, with zeros as padding, as many as an
    odd kernel reaches, and one dilation for both axes. Forms see weights, biases and dilations
    alone, so that anything else is computed by calling the modules.

    Args:
        *convs (nn.Module): The modules.
        depthwise (bool): Whether each channel is to have a kernel of its own too. Defaults to
            False.
        reach (int, optional): Rows that they are to see above and below. Defaults to None: any.

    Returns:
        str: The first reason; '' if there is none.
    """
    for conv in convs:
        if type(conv) is not nn.Conv2d:
            return f'{type(conv).__name__} is not nn.Conv2d itself'
        (height, width), (down, right) = conv.kernel_size, conv.dilation
        if (
            conv.stride != (1, 1)
            or conv.padding_mode != 'zeros'
            or down != right
            or not height & width & 1
            or conv.padding not in ('same', (down * (height // 2), right * (width // 2)))
        ):
            return 'a convolution has another stride, padding or dilation'
        if depthwise and not conv.groups == conv.in_channels == conv.out_channels:
            return 'a convolution mixes channels'
        if reach not in (None, down * (height // 2)):
            return 'a convolution has another kernel'
    return ''
