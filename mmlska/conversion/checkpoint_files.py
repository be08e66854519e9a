"""Rewriting checkpoint files in the names of another codebase."""

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from mmlska.checkpoint import CheckpointError, read_checkpoint, to_mmlska, to_naming, unwrap
from mmlska.checkpoint.files import check_target
from mmlska.checkpoint.naming import HEAD_KEY, VAN_KEY, canonical, recognise_naming
from mmlska.checkpoint.reading import WRAPPERS, check_keys, find_wrapper
from mmlska.checkpoint.recognition import describe_van, find_backbone, recognise_van
from mmlska.models import VAN

# How mmpretrain, transformers and torchvision call it.
CLASSIFIER = re.compile(r'^(?:head\.fc|classifier|fc)\.')
# Where these name a whole model: how they call its head. The others name a backbone.
HEADS = {'mmpretrain': 'head.fc.', 'transformers': 'classifier.'}
SUFFIXES = ('.pth', '.pth.tar', '.pt', '.safetensors')


def convert_checkpoint(
    source: str | os.PathLike,
    target: str | os.PathLike,
    naming: str = 'mmlska',
    force: bool = False,
    change: Callable[[dict], tuple[dict, str]] | None = None,
) -> str:
    """Rewrite the weights of a VAN, or of a model with one, in the names of another codebase.

    Only names change, unless ``change`` is given. A classification head and the other parts of a
    detector are kept; what lies in the file beside the weights (optimizer, epoch) is left out.

    Args:
        source (str | PathLike): Checkpoint in any naming and wrapping that the backbone takes.
        target (str | PathLike): File to write; ``.safetensors``, or what ``torch.load`` reads.
        naming (str): See :func:`mmlska.checkpoint.to_naming`. Defaults to 'mmlska'.
        force (bool): Write over an existing file. Defaults to False.
        change (Callable, optional): Makes other weights of a VAN out of those of the source, under
            our names, and tells of it; see :func:`mmlska.conversion.report.warm_start`.
            Defaults to None.

    Returns:
        str: What was recognised, kept and left out, for the user.

    Raises:
        FileNotFoundError: If the source or the target's folder does not exist.
        FileExistsError: If the target exists and ``force`` is not set.
        CheckpointError: If the source cannot be read, or holds no complete VAN.
        ValueError: If the naming or the target's suffix is unknown.
    """
    target = check_target(target, SUFFIXES, force)
    checkpoint = read_checkpoint(source)
    check_keys(checkpoint)
    backbone, head, other = split_weights(unwrap(checkpoint))
    origin = recognise_naming(list(backbone)) or 'unknown'
    backbone = to_mmlska(backbone)
    kind, told = check_complete(backbone), []
    if change is not None:
        backbone, report = change(backbone)
        check_complete(backbone)
        told = ['', report]
    weights = join_weights(backbone, head, other, naming)
    write_checkpoint(weights, target)
    wrapper = find_wrapper(checkpoint)
    beside = sorted(set(checkpoint) - {*WRAPPERS, wrapper}) if wrapper else []
    lines = [
        f'recognised: {kind}, in {origin} names',
        f'written:    {target} ({len(weights)} weights) in {naming} names',
        f'kept:       {len(head)} weights of a classification head, {len(other)} of other parts',
        f'left out:   {", ".join(beside) or "nothing"}',
        *told,
    ]
    return '\n'.join(lines)


def split_weights(weights: Mapping) -> tuple[dict, dict, dict]:
    """Split into a bare backbone, a classification head and other parts.

    The head's weights are named as in the official code, ``head.weight`` and ``head.bias``. The
    norm before that of transformers, which its model never runs, is left out.
    """
    parts = find_backbone(weights, VAN_KEY.fullmatch)
    backbone = {key: value for key, value in parts.backbone.items() if not HEAD_KEY.fullmatch(key)}
    every = {**parts.backbone, **parts.outside}
    heads = {key: value for key, value in every.items() if HEAD_KEY.fullmatch(key)}
    named = {CLASSIFIER.sub('head.', key): value for key, value in heads.items()}
    return (
        backbone,
        {key: value for key, value in named.items() if key.startswith('head.')},
        {key: value for key, value in parts.outside.items() if key not in heads},
    )


def join_weights(backbone: dict, head: dict, other: dict, naming: str) -> dict:
    """The inverse of :func:`split_weights`, in the names of ``naming``."""
    renamed = to_naming(backbone, naming)
    if other and naming not in HEADS:
        renamed = {f'backbone.{key}': value for key, value in renamed.items()}
    own = HEADS.get(naming, 'head.')
    head = {key.replace('head.', own): value for key, value in head.items()}
    return {**renamed, **head, **other}


def check_complete(backbone: dict) -> str:
    """Load the weights into the VAN that they are of, and describe it.

    Raises:
        CheckpointError: If they are of no VAN, or a weight is missing, superfluous or misshaped.
    """
    model = build_van(backbone)
    traits = describe_van(backbone, model.num_stages, VAN.arch_zoo)
    return f'{traits["arch"].text}, {traits["attention"].text}'


def build_van(backbone: Mapping) -> VAN:
    """The VAN that the weights are of, with them.

    Raises:
        CheckpointError: If they are of no VAN, or a weight is missing, superfluous or misshaped.
    """
    options = recognise_van(backbone)
    if not options or options['attention'] is None:
        first = ', '.join(map(canonical, list(backbone)[:3])) or 'nothing'
        raise CheckpointError(
            f'the checkpoint holds no VAN of the large-kernel family, but {first}'
        )
    model = VAN(**options)
    model.load_state_dict(backbone)
    return model


def write_checkpoint(weights: dict[str, torch.Tensor], target: Path) -> None:
    """Write the file whole or not at all."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f'.{target.name}.')
    os.close(handle)
    try:
        if target.suffix == '.safetensors':
            from safetensors.torch import save_file

            save_file({key: value.contiguous() for key, value in weights.items()}, name)
        else:
            torch.save({'state_dict': weights}, name)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
