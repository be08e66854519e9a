"""What the tests of fusing share: models far from their initial state, and the law itself."""

import torch
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from mmlska.deploy import fuse

NANO = dict(embed_dims=[8, 12, 16, 20], depths=[1, 2, 1, 1], ffn_ratios=[2, 2, 2, 2])


def trained(model, seed=0):
    """Every parameter and statistic far from its initial value, in whatever order they stand."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point():
            spread = 0.5 + torch.rand(tensor.shape, generator=generator)
            sign = torch.randn(tensor.shape, generator=generator).sign()
            sign = 1 if 'running_var' in name else sign
            tensor.copy_(spread * sign * (1 if tensor.ndim < 2 else tensor[0].numel() ** -0.5))
    return model.eval()


def flat(outs):
    """Tensors of nested outputs, in order."""
    if isinstance(outs, torch.Tensor):
        return [outs]
    return [tensor for out in outs for tensor in flat(out)]


def relative_error(out, expected):
    return ((out - expected).norm() / expected.norm()).item()


def largest_error(outs, expected):
    return max(relative_error(*pair) for pair in zip(flat(outs), flat(expected), strict=True))


@torch.no_grad()
def fuses_exactly(model, *shape, dtype=torch.float64):
    """The fused model, checked to have the same outputs.

    In float32 both models round, deep ones with random weights much more than once: the fused one
    may be as far from the truth, which is computed in float64, as the other one is.
    """
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = model.double()(x)
    fused = fuse(model.to(dtype))
    error = largest_error(fused(x.to(dtype)), truth)
    if dtype == torch.float64:
        assert error < 1e-12
    else:
        assert error < max(1e-6, 1.5 * largest_error(model(x.to(dtype)), truth))
    return fused


def batch_norms(model):
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


class _Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        # Views compute nothing.
        self.count += not operation.is_view
        return out


@torch.no_grad()
def count_operations(model, *shape):
    """Operations of PyTorch that compute something in one forward pass."""
    dtype = next(model.parameters()).dtype
    with _Counter() as counter:
        model(torch.zeros(*shape, dtype=dtype))
    return counter.count
