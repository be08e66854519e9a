"""What is exported of a model: its network alone, or a segmentor from image to label map."""

import copy

import torch
from torch import Tensor, nn


class NetworkGraph(nn.Module):
    """Backbone, neck and head of a detector or segmentor, without what follows the head's maps.

    Args:
        model (nn.Module): A segmentor of mmseg, or a detector of mmdet with a dense head or an RPN.

    Raises:
        ValueError: If the model is none of these.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        is_known = any(hasattr(model, head) for head in ('decode_head', 'bbox_head', 'rpn_head'))
        # The heads of DETR and its kind take queries, which their transformers make.
        if not is_known or hasattr(model, 'encoder'):
            raise ValueError(
                f'the network of {type(model).__name__} cannot be exported alone: it has to have '
                'a decode_head, a bbox_head on the maps of its neck, or an rpn_head'
            )
        self.model = exportable(model)
        self.has_regions = hasattr(model, 'rpn_head')

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map images ``(N, 3, H, W)``, normalised and padded, to the maps of the head by name."""
        if hasattr(self.model, 'decode_head'):
            return {'logits': self.model(image)}
        features = self.model.extract_feat(image)
        head = self.model.rpn_head if self.has_regions else self.model.bbox_head
        named = {
            f'output{i}_level{j}': level_map
            for i, maps in enumerate(head(features))
            for j, level_map in enumerate(maps)
        }
        if self.has_regions:
            named |= {f'feature_level{j}': level_map for j, level_map in enumerate(features)}
        return named


class SegmentationGraph(nn.Module):
    """A segmentor of mmseg from image to label map.

    Args:
        model (nn.Module): The segmentor. One that is tested in windows is exported for a window.

    Raises:
        ValueError: If the model is no segmentor.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not hasattr(model, 'encode_decode'):
            raise ValueError(f'{type(model).__name__} is no segmentor: it has no encode_decode()')
        self.model = exportable(model)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map images ``(N, 3, H, W)`` to ``logits`` ``(N, C, H, W)`` and ``labels`` ``(N, H, W)``.

        The images are normalised and padded. A model with a single logit tells what is above its
        threshold, 1, from the rest, 0.
        """
        size = image.shape[2:]
        metas = [dict(img_shape=size, ori_shape=size, pad_shape=size)]
        logits = self.model.encode_decode(image, metas)
        if self.model.out_channels == 1:
            labels = (logits[:, 0].sigmoid() > self.model.decode_head.threshold).long()
        else:
            labels = logits.argmax(1)
        return {'logits': logits, 'labels': labels}


class GridPool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two products of matrices, whose shapes may stay unknown.

    Cell ``i`` of ``k`` averages the positions from ``floor(i n / k)`` to ``ceil((i + 1) n / k)``.

    Args:
        output_size (int | tuple[int | None, int | None]): Cells of a side, or rows and columns of
            them; None keeps a side as it is.
    """

    def __init__(self, output_size: int | tuple[int | None, int | None]) -> None:
        super().__init__()
        is_pair = isinstance(output_size, tuple)
        self.output_size = output_size if is_pair else (output_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, *output_size)``."""
        rows, columns = self.output_size
        if rows is not None:
            x = _shares(rows, x.shape[2], x) @ x
        if columns is not None:
            x = x @ _shares(columns, x.shape[3], x).transpose(0, 1)
        return x


def _shares(cells: int, positions: int, like: Tensor) -> Tensor:
    """Which share of each cell each position makes up: ``(cells, positions)``."""
    cell = torch.arange(cells, device=like.device)[:, None]
    position = torch.arange(positions, device=like.device)
    first, end = cell * positions // cells, -(-(cell + 1) * positions // cells)
    inside = (position >= first) & (position < end)
    return inside.to(like.dtype) / (end - first).to(like.dtype)


def exportable(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode that is exported for every size.

    torch.export takes the sizes of the example, without a word, where a module turns a size into a
    plain number: mmseg's ``Upsample``, and ``nn.AdaptiveAvgPool2d``. Both are replaced by modules
    that compute the same.
    """
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            setattr(parent, name, _for_every_size(child))
    return model


def _for_every_size(module: nn.Module) -> nn.Module:
    kind = type(module)
    if kind is nn.AdaptiveAvgPool2d:
        size = module.output_size
        # A mean over the map is exported as one.
        return module if size in (1, (1, 1)) else GridPool(size)
    if kind.__name__ == 'Upsample' and kind.__module__.startswith('mmseg.') and not module.size:
        return nn.Upsample(None, module.scale_factor, module.mode, module.align_corners)
    return module
