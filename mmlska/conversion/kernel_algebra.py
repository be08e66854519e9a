"""Algebra of depth-wise kernels: composing, splitting and separating them.

Kernels are weights of depth-wise convolutions, ``(C, 1, height, width)`` with odd sides; each
channel is dealt with by itself. A row or a column is a kernel with a side of 1, so that every
function takes the 2-D kernels of LKA and the 1-D kernels of LSKA alike.
"""

import torch
from torch.nn.functional import conv_transpose2d, pad

# Numbers in the largest tensor that `split` works with at a time.
CHUNK = 2**25
# Share of a kernel's energy that an iteration of `split` must gain to be followed by another one.
LEAST_GAIN = 1e-6


def resize(kernel: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Give a kernel another size about its centre: new taps are zero, those outside are cut off."""
    rows, columns = ((new - old) // 2 for new, old in zip(size, kernel.shape[2:], strict=True))
    return pad(kernel, [columns, columns, rows, rows])


def compose(local: torch.Tensor, dilated: torch.Tensor, dilation: int) -> torch.Tensor:
    """The one kernel that acts as ``local`` and then ``dilated`` do, away from the borders."""
    channels = len(local)
    maps = conv_transpose2d(dilated.transpose(0, 1), local, stride=dilation, groups=channels)
    return maps.transpose(0, 1)


def outer(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """The 2-D kernel that acts as a row and a column one after the other do."""
    return column * row


def separate(kernel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the row and the column whose product is nearest to a kernel.

    By the theorem of Eckart and Young they are the first singular vectors, and the squared distance
    is the sum of the squares of the other singular values.

    Args:
        kernel (Tensor): Kernels ``(C, 1, height, width)``.

    Returns:
        tuple[Tensor, Tensor]: Rows ``(C, 1, 1, width)`` and columns ``(C, 1, height, 1)`` of equal
        norm. The largest tap of a row is positive.
    """
    left, values, right = torch.linalg.svd(kernel, full_matrices=False)
    scale = values[..., :1, None].sqrt()
    row, column = right[..., :1, :] * scale, left[..., :1] * scale
    sign = row.gather(-1, row.abs().argmax(-1, keepdim=True)).sign()
    return row * sign, column * sign


def split(
    kernel: torch.Tensor, dilation: int, iterations: int = 30
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find a local and a dilated kernel whose composition is near to a kernel.

    Alternating least squares: each factor in turn is the best one for the other, so that no
    iteration raises the distance. It starts from a tent, which makes the composition a linear
    interpolation, and from a single tap, which samples the kernel; each channel takes the better
    end. Neither need be the best of all.

    Args:
        kernel (Tensor): Kernels ``(C, 1, height, width)``; a side is 1 or a legal kernel size for
            the dilation, see :func:`mmlska.models.decompose_kernel`.
        dilation (int): Dilation of the second factor.
        iterations (int): Most updates of both factors. Defaults to 30.

    Returns:
        tuple[Tensor, Tensor]: Local kernels, whose sides are ``2 * dilation - 1`` or 1, and dilated
        ones of equal norm.
    """
    # A factor has at most as many taps as the kernel.
    chunks = kernel.split(max(1, CHUNK // kernel[0].numel() ** 2))
    pairs = [_best_split(chunk, dilation, iterations) for chunk in chunks]
    return torch.cat([local for local, _ in pairs]), torch.cat([dilated for _, dilated in pairs])


def scale_to(kernel: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The factor ``(C, 1, 1, 1)`` that brings each kernel nearest to its target."""
    both = (kernel * target).sum((1, 2, 3), keepdim=True)
    return both / kernel.square().sum((1, 2, 3), keepdim=True).clamp_min(_tiny(kernel))


def energy_kept(kernel: torch.Tensor, approximation: torch.Tensor) -> float:
    """Share of the squared norm of the kernels that an approximation of any size keeps."""
    pair = (kernel, approximation)
    size = tuple(max(sides) for sides in zip(*(each.shape[2:] for each in pair), strict=True))
    total = kernel.square().sum()
    lost = (resize(kernel, size) - resize(approximation, size)).square().sum()
    return 1.0 if total == 0 else float(1 - lost / total)


def least_squares_step(
    gram: torch.Tensor, moment: torch.Tensor, start: torch.Tensor, ridge: float
) -> torch.Tensor:
    r"""Solve normal equations, held near the present solution.

    Minimises :math:`|A w - y|^2 + \lambda |w - w_0|^2`. As the second term is zero at the start
    :math:`w_0`, the first one never rises.

    Args:
        gram (Tensor): :math:`A^T A`, ``(..., T, T)``.
        moment (Tensor): :math:`A^T y`, ``(..., T, K)``.
        start (Tensor): :math:`w_0`, ``(..., T, K)``.
        ridge (float): :math:`\lambda` in multiples of the mean of the diagonal of ``gram``.

    Returns:
        Tensor: :math:`w`, ``(..., T, K)``.
    """
    penalty = ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    penalty = torch.where(penalty > 0, penalty, torch.ones_like(penalty))
    held = gram + penalty[..., None, None] * torch.eye(gram.shape[-1]).to(gram)
    return start + torch.linalg.solve(held, moment - gram @ start)


def _best_split(
    kernel: torch.Tensor, dilation: int, iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    ends = [_alternate(kernel, start, dilation, iterations) for start in _starts(kernel, dilation)]
    errors = [(compose(*end, dilation) - kernel).square().sum((1, 2, 3)) for end in ends]
    second = (errors[1] < errors[0])[:, None, None, None]
    local, dilated = (torch.where(second, b, a) for a, b in zip(*ends, strict=True))
    return local, dilated


def _starts(kernel: torch.Tensor, dilation: int) -> list[torch.Tensor]:
    """Local kernels: a tent and a single tap."""
    sides = [1 if side == 1 else 2 * dilation - 1 for side in kernel.shape[2:]]
    ramps = [1 - (torch.arange(side) - side // 2).abs() * 2 / (side + 1) for side in sides]
    tent = (ramps[0][:, None] * ramps[1]).to(kernel)
    return [start.expand(len(kernel), 1, *sides) for start in (tent, (tent == 1).to(kernel))]


def _alternate(
    kernel: torch.Tensor, local: torch.Tensor, dilation: int, iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = [(side + 1) // dilation - 1 if side > 1 else 1 for side in kernel.shape[2:]]
    dilated = kernel.new_zeros(len(kernel), 1, *sizes)
    energy = lost = kernel.square().sum((1, 2, 3))
    for _ in range(iterations):
        dilated = _best_factor(kernel, local, dilated, stride=dilation)
        local = _best_factor(kernel, dilated, local, dilation=dilation)
        local, dilated = _balance(local, dilated)
        before, lost = lost, (compose(local, dilated, dilation) - kernel).square().sum((1, 2, 3))
        if (before - lost <= LEAST_GAIN * energy).all():
            break
    return local, dilated


def _best_factor(
    kernel: torch.Tensor, other: torch.Tensor, start: torch.Tensor, **spacing: int
) -> torch.Tensor:
    """One factor by least squares, the other one being fixed.

    The composition is linear in each of them: the columns of the system are the compositions with a
    single tap. ``stride`` spreads the taps of the factor, ``dilation`` those of the other one.
    """
    channels, taps = len(kernel), start[0].numel()
    single = torch.eye(taps).to(kernel).view(taps, 1, *start.shape[2:])
    system = conv_transpose2d(
        single.expand(-1, channels, -1, -1), other, groups=channels, **spacing
    )
    system = system.flatten(2).transpose(0, 1)
    moment = system @ kernel.reshape(channels, -1, 1)
    found = least_squares_step(
        system @ system.mT, moment, start.reshape(channels, taps, 1), ridge=1e-10
    )
    return found.view_as(start)


def _balance(local: torch.Tensor, dilated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    norms = [kernel.square().sum((1, 2, 3), keepdim=True).sqrt() for kernel in (local, dilated)]
    factor = (norms[1] / norms[0].clamp_min(_tiny(local))).sqrt()
    return local * factor, dilated / factor.clamp_min(_tiny(local))


def _tiny(tensor: torch.Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny
