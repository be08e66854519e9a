"""Norms and convolutions of which one has the output of the other."""

import copy
from collections import Counter
from collections.abc import Iterable

from torch import fx, nn

from .affine import affine_of, fuse_after, fuse_before, is_fusible, takes_input, takes_output


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        """Look into no other module: what happens there is no matter of this one."""
        return True


def traced_pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Children that run once, one right on the output of the other that nothing else has.

    Args:
        module (nn.Module): Any module. Its ``forward`` is followed on symbols instead of maps.

    Returns:
        list[tuple[str, str]]: Names of the first and the second, in the order in which they run;
        none if ``forward`` cannot be followed, as where it depends on values or sizes.
    """
    children = Counter(module._modules.values())
    try:
        # Of a copy, so that attributes that forward may set stay as they are.
        nodes = _Tracer().trace(copy.copy(module)).nodes
    except Exception:
        # What code does with a symbol that it takes for a tensor may raise anything.
        return []
    uses = Counter(str(node.target).split('.')[0] for node in nodes)

    def runs_once(node: fx.Node) -> bool:
        child = module._modules.get(node.target) if node.op == 'call_module' else None
        return child is not None and uses[node.target] == children[child] == 1

    pairs = []
    for node in filter(runs_once, nodes):
        first, *others = (*node.args, *node.kwargs.values())
        if not others and isinstance(first, fx.Node) and runs_once(first) and len(first.users) == 1:
            pairs.append((first.target, node.target))
    return pairs


def fuse_pairs(module: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Fuse BatchNorms into the convolutions that stand before or after them, in place.

    Args:
        module (nn.Module): The module.
        pairs (Iterable[tuple[str, str]]): Names of children of which the second has the output of
            the first, and nothing else has.
    """
    for names in pairs:
        first, second = (getattr(module, name) for name in names)
        if takes_output(first) and is_fusible(second):
            first, second = fuse_after(first, affine_of(second)), nn.Identity()
        elif is_fusible(first) and takes_input(second):
            first, second = nn.Identity(), fuse_before(affine_of(first), second)
        for name, child in zip(names, (first, second), strict=True):
            setattr(module, name, child)
