from torch import nn
from torch.nn.modules import module as torch_module


def is_watched(*modules: nn.Module) -> bool:
    """Whether hooks wait for calls of these modules, which must then be made, each once."""
    return torch_module._has_any_global_hook() or any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )
