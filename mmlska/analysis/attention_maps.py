"""What a detector or segmentor looks at: class activation maps, gates, feature maps.

Class activation maps are captum's product of a feature map and its gradient, position by position
(HiResCAM, arXiv 2011.08891), of the score of one detection, or of the mean score of one class over
the pixels that get it (Seg-Grad-CAM, arXiv 2002.11434). Unlike Grad-CAM's mean of the gradient over
the map, which smears one detection over everything alike, it stays where the score comes from.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn
from torch.overrides import TorchFunctionMode

from mmlska.engine.inference import Predictor, displayable
from mmlska.layers import ECA, LKA, LSKA, ContextAggregation, LKATrivial, LSKATrivial
from mmlska.layers.dfc_attention import DFCGate
from mmlska.shipped import nearest

COLUMNS = 6
TILE_SIDE = 320
DRAWN_CHANNELS = 4
BACKBONE = 'backbone'
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        title: What it shows.
        values: ``(H, W)`` a map over the image, ``(H, W, 3)`` colours from 0 to 1, or ``(C,)`` one
            value a channel.
        is_laid_over: Whether the map is laid over the image.
        box: Left, top, right and bottom of a frame, as shares of the image.
    """

    title: str
    values: np.ndarray
    is_laid_over: bool = False
    box: Box | None = None


@dataclass(frozen=True)
class Row:
    """What a sheet shows of one image.

    Attributes:
        name: Name of the image.
        image: Its pixels, RGB bytes ``(H, W, 3)``.
        tiles: The pictures.
    """

    name: str
    image: np.ndarray
    tiles: list[Tile]


class Scene:
    """An image as a model sees it.

    Args:
        predictor: The model with the pipeline of its config.
        path: The image.

    Attributes:
        inputs: Batch ``(1, C, H, W)``, normalised and padded.
        samples: What the model is told about it, a list of one.
        image: The pixels of the file for drawing, RGB bytes.
    """

    def __init__(self, predictor: Predictor, path: str | Path) -> None:
        batch = predictor.batch(path)
        self.inputs, self.samples = batch['inputs'], batch['data_samples']
        self.image = displayable(predictor.read(path)['img'], predictor.channel_order)

    def content(self) -> tuple[int, int]:
        """Height and width of what is no padding, pixels of the model's input."""
        info = self.samples[0].metainfo
        height, width = info.get('img_shape', self.inputs.shape[2:])[:2]
        if 'scale_factor' in info and 'ori_shape' in info:
            # A pipeline that pads counts the padding to the image.
            x, y = info['scale_factor'][:2]
            height = min(height, round(info['ori_shape'][0] * y))
            width = min(width, round(info['ori_shape'][1] * x))
        return height, width

    def crop(self, values: torch.Tensor, smooth: bool = False) -> np.ndarray:
        """A map ``(H, W)`` or ``(H, W, 3)`` over the padded input, cut to the image."""
        mode = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
        size = self.inputs.shape[3], self.inputs.shape[2]
        array = cv2.resize(values.detach().float().cpu().numpy(), size, interpolation=mode)
        height, width = self.content()
        return shrink(array[:height, :width])


def shrink(array: np.ndarray) -> np.ndarray:
    """Scale a picture down to the size of a tile."""
    scale = TILE_SIDE / max(array.shape[:2])
    if scale >= 1:
        return array
    size = max(round(array.shape[1] * scale), 1), max(round(array.shape[0] * scale), 1)
    return cv2.resize(array, size, interpolation=cv2.INTER_AREA)


# Class activation maps


class Target(NamedTuple):
    """Something that a model found, and how to ask for its score."""

    title: str
    index: int
    box: Box | None


def class_activations(
    predictor: Predictor, scene: Scene, limit: int = 6, score_thr: float = 0.3
) -> list[Tile]:
    """Where the score of each detection, or of each class of a segmentor, comes from.

    The maps that backbone and neck hand to the heads are computed once; each tile costs one pass
    forth and back through the heads. Contributions of several maps are added as densities, each
    spread over the pixels of its positions.

    Args:
        predictor: The model.
        scene: The image.
        limit: Most tiles: detections with the best scores, classes with the largest areas.
            Defaults to 6.
        score_thr: Least score of a detection. Defaults to 0.3.

    Returns:
        One tile for each; none if nothing is found. Where no position contributes to a score, as
        to one that rounds to 1 and has no gradient, the title says so.

    Raises:
        ImportError: If captum is not installed.
        TypeError: If the model is built in another way than these are.
    """
    if find_spec('captum') is None:
        raise ImportError("class activation maps need captum: `pip install 'mmlska[analysis]'`")
    from captum.attr import InputXGradient

    model = predictor.model
    find = detections if predictor.is_detector else segments
    with frozen(model):
        with torch.no_grad():
            features = list_maps(model.extract_feat(scene.inputs), 'extract_feat')
            score_of, targets = find(predictor, scene, features, limit, score_thr)
        tiles = []
        for target in targets:
            parts = InputXGradient(score_of).attribute(tuple(features), target=target.index)
            heat = add_densities(parts, scene.inputs.shape[2:])
            title = target.title if heat.any() else f'{target.title} (nothing speaks for it)'
            tiles.append(Tile(title, scene.crop(heat, smooth=True), True, target.box))
    return tiles


def add_densities(parts: Iterable[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """Positive contributions of maps ``(1, C, H_i, W_i)``, added up for each pixel of an image."""
    total = torch.zeros(*shape)
    for part in parts:
        positive = part.detach().sum(1, keepdim=True).clamp(min=0).float().cpu()
        pixels = shape[0] * shape[1] / (positive.shape[2] * positive.shape[3])
        wide = nn.functional.interpolate(positive / pixels, tuple(shape), mode='bilinear')
        total += wide[0, 0]
    return total


def list_maps(outputs: Any, source: str) -> list[torch.Tensor]:
    """The maps that a part of a model returns, without their gradients.

    Args:
        outputs: What it returns.
        source: Its name, for the message.

    Raises:
        TypeError: If these are no maps.
    """
    maps = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    if not isinstance(maps, list | tuple) or not all(
        isinstance(part, torch.Tensor) and part.ndim == 4 for part in maps
    ):
        shape = getattr(outputs, 'shape', None)
        returned = type(outputs).__name__ if shape is None else f'a tensor {tuple(shape)}'
        raise TypeError(
            f'{source} returns {returned}: only maps (N, C, H, W), or a list or tuple of them, '
            'can be shown'
        )
    return [part.detach() for part in maps]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Record no gradients of parameters: those of the maps alone need far less memory."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def given_features(model: nn.Module, features: Sequence[torch.Tensor]) -> Iterator[None]:
    """Let a model take these maps for what its backbone and neck compute."""
    own = vars(model).get('extract_feat')
    # Copies: heads may write into their inputs, which autograd forbids for leaves.
    model.extract_feat = lambda *_, **__: [part.clone() for part in features]
    try:
        yield
    finally:
        del model.extract_feat
        if own is not None:
            model.extract_feat = own


def connected(scores: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Scores ``(1, K)`` that depend on all maps, for autograd refuses what no score depends on."""
    nothing = sum(part[:0].sum() for part in features)
    return (scores + nothing)[None]


class KeepGradients(TorchFunctionMode):
    """Leaves out every ``detach``: mmdet's dense heads cut their scores off when they predict."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Call a function of PyTorch, but for that one."""
        return args[0] if func == torch.Tensor.detach else func(*args, **(kwargs or {}))


def detections(
    predictor: Predictor,
    scene: Scene,
    features: Sequence[torch.Tensor],
    limit: int,
    score_thr: float,
) -> tuple[Callable[..., torch.Tensor], list[Target]]:
    """A function of the maps that computes all scores of a detector, and the best detections.

    Raises:
        TypeError: If it predicts no scores; the function itself, if they carry no gradient.
    """
    model, classes = predictor.model, predictor.visualizer.dataset_meta['classes']

    def predict(*maps: torch.Tensor) -> Any:
        with given_features(model, maps):
            samples = copy.deepcopy(scene.samples)
            found = model.predict(scene.inputs, samples, rescale=True)[0]
        if 'pred_instances' not in found or 'scores' not in found.pred_instances:
            raise TypeError(
                f'class activation maps need detections with scores, a {type(model).__name__} '
                f'predicts {", ".join(found.keys()) or "nothing"}'
            )
        return found.pred_instances

    # What is left to be tried; what did not help once is not tried again.
    modes = [nullcontext, KeepGradients]

    def score_of(*maps: torch.Tensor) -> torch.Tensor:
        while modes:
            with modes[0]():
                scores = predict(*maps).scores
            if scores.requires_grad:
                return connected(scores, maps)
            modes.pop(0)
        raise TypeError(f'the scores of this {type(model).__name__} carry no gradient')

    found = predict(*features)
    height, width = scene.image.shape[:2]
    size = torch.tensor([width, height, width, height])
    best = found.scores.argsort(descending=True)[:limit].tolist()
    targets = []
    for index in best:
        score = found.scores[index].item()
        if score > score_thr:
            box = tuple((found.bboxes[index].cpu() / size).tolist())
            targets.append(Target(f'{classes[int(found.labels[index])]} {score:.2f}', index, box))
    return score_of, targets


def segments(
    predictor: Predictor,
    scene: Scene,
    features: Sequence[torch.Tensor],
    limit: int,
    score_thr: float,
) -> tuple[Callable[..., torch.Tensor], list[Target]]:
    """A function of the maps that computes the mean score of each class over its own pixels.

    A model that slides a window over the image sees it whole here.

    Args:
        predictor: The segmentor.
        scene: The image.
        features: The maps.
        limit: Most classes.
        score_thr: Without effect: every pixel has a class.

    Raises:
        TypeError: If the model has no ``encode_decode``.
    """
    model, classes = predictor.model, predictor.visualizer.dataset_meta['classes']
    if not hasattr(model, 'encode_decode'):
        raise TypeError(
            f'class activation maps need a segmentor with encode_decode, as EncoderDecoder is; '
            f'this is a {type(model).__name__}'
        )
    metas = [sample.metainfo for sample in scene.samples]

    def logits_of(*maps: torch.Tensor) -> torch.Tensor:
        with given_features(model, maps):
            logits = model.encode_decode(scene.inputs, metas)[0]
        # One channel stands for the second of two classes.
        return torch.cat([-logits, logits]) if len(logits) == 1 else logits

    labels = logits_of(*features).argmax(0)

    def score_of(*maps: torch.Tensor) -> torch.Tensor:
        scores = [logit[labels == index].mean() for index, logit in enumerate(logits_of(*maps))]
        return connected(torch.stack(scores), maps)

    areas = torch.bincount(labels.flatten()) / labels.numel()
    largest = areas.argsort(descending=True)[:limit].tolist()
    return score_of, [
        Target(f'{classes[index]} {areas[index].item():.0%}', index, None)
        for index in largest
        if areas[index]
    ]


# Gates


def as_it_is(x: torch.Tensor) -> torch.Tensor:
    """The gate itself."""
    return x


def over_positions(x: torch.Tensor) -> torch.Tensor:
    """Softmax over all positions of a map."""
    return x.flatten(1).softmax(1).view_as(x)


class GateSource(NamedTuple):
    """Where a gate of a layer comes out: of which part, and what is done with its output."""

    label: str
    part: str
    gate: Callable[[torch.Tensor], torch.Tensor]


GATED_LAYERS: dict[type[nn.Module], tuple[GateSource, ...]] = {
    **dict.fromkeys((LSKA, LKA, LSKATrivial, LKATrivial), (GateSource('', 'conv1', as_it_is),)),
    DFCGate: (GateSource('DFC', '', as_it_is),),
    ECA: (GateSource('', 'conv', lambda x: x.sigmoid()[:, 0]),),
    ContextAggregation: (
        GateSource('weights of the mean', 'k', over_positions),
        GateSource('gate', 'a', torch.sigmoid),
    ),
}


@dataclass(frozen=True)
class GateValue:
    """What a layer multiplies with.

    Attributes:
        name: Name of the layer in the model.
        label: Kind of the layer, and which of its gates.
        values: ``(N, C, H, W)``, or ``(N, C)`` for one value a channel.
    """

    name: str
    label: str
    values: torch.Tensor


def record_gates(model: nn.Module, run: Callable[[], Any]) -> list[GateValue]:
    """Run a model, and keep the gates of its layers in the order in which they are computed.

    Args:
        model: Any model with layers of :data:`GATED_LAYERS`.
        run: Runs it, once.

    Raises:
        ValueError: If it has no such layer. The message names those that count.
    """
    found: list[GateValue] = []
    hooks = []

    def keep(name: str, label: str, gate: Callable) -> Callable:
        def hook(_: nn.Module, __: tuple, output: torch.Tensor) -> None:
            found.append(GateValue(name, label, gate(output).detach()))

        return hook

    for name, module in model.named_modules():
        for source in GATED_LAYERS.get(type(module), ()):
            kind = source.label if type(module) is DFCGate else type(module).__name__
            label = f'{kind} {source.label}' if source.label not in ('', kind) else kind
            part = module.get_submodule(source.part)
            hooks.append(part.register_forward_hook(keep(name, label, source.gate)))
    if not hooks:
        kinds = sorted({*(kind.__name__ for kind in GATED_LAYERS), 'DFCAttention'} - {'DFCGate'})
        raise ValueError(
            f'no layer of this {type(model).__name__} has a gate: {", ".join(kinds)} have one'
        )
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def gated_layers(model: nn.Module) -> list[str]:
    """Names of the layers whose gates :func:`record_gates` keeps, in the order of the model."""
    return [name for name, module in model.named_modules() if type(module) in GATED_LAYERS]


def gate_tiles(predictor: Predictor, scene: Scene, limit: int | None = None) -> list[Tile]:
    """The gates of backbone and neck: mean magnitude over the channels, or one bar a channel.

    Args:
        predictor: The model.
        scene: The image.
        limit: Most tiles, spread evenly over the depth of the model. Defaults to None: all.

    Raises:
        ValueError: If no layer has a gate.
    """
    model = predictor.model
    gates = record_gates(model, lambda: model.extract_feat(scene.inputs))
    if limit is not None and len(gates) > limit:
        gates = [gates[round(i * (len(gates) - 1) / max(limit - 1, 1))] for i in range(limit)]
    return [gate_tile(scene, gate) for gate in gates]


def gate_tile(scene: Scene, gate: GateValue) -> Tile:
    """A gate as one picture: mean magnitude over the channels, or one value a channel."""
    values = gate.values[0]
    title = f'{short(gate.name)}\n{gate.label}, {values.min():.2g} to {values.max():.2g}'
    if values.ndim == 1:
        return Tile(title, values.float().cpu().numpy())
    return Tile(title, scene.crop(values.abs().mean(0)))


def short(name: str) -> str:
    """The telling part of the name of a module."""
    return name.removeprefix(f'{BACKBONE}.').removesuffix('.attn.spatial_gating_unit')


# Feature maps


def feature_tiles(predictor: Predictor, scene: Scene, layer: str = BACKBONE) -> list[Tile]:
    """Feature maps of a module: strength, colours, and the channels that vary most.

    The strength is the root of the mean square over the channels. The colours are the first three
    principal components of the channels, as red, green and blue: alike is what the model holds for
    alike.

    Args:
        predictor: The model.
        scene: The image.
        layer: Name of a module of the model that returns one map or several. Defaults to the
            backbone.

    Raises:
        TypeError: If the module returns no maps.
        ValueError: If there is no such module, or backbone and neck do not run it.
    """
    model = predictor.model
    outputs = outputs_of(model, layer, lambda: model.extract_feat(scene.inputs))
    tiles = []
    for index, map_ in enumerate(list_maps(outputs, layer)):
        values = map_[0].float()
        start = f'{layer}[{index}] {"x".join(map(str, values.shape))}'
        tiles.append(Tile(f'{start}\nstrength', scene.crop(values.square().mean(0).sqrt())))
        if len(values) >= 3:
            tiles.append(Tile('principal components', scene.crop(principal_colours(values))))
        varying = values.flatten(1).var(1).argsort(descending=True)[:DRAWN_CHANNELS].tolist()
        tiles += [Tile(f'channel {c}', scene.crop(values[c])) for c in varying]
        # The next map begins in a line of its own.
        tiles += [Tile('', np.zeros((0, 0)))] * (-len(tiles) % COLUMNS)
    return tiles


def outputs_of(model: nn.Module, layer: str, run: Callable[[], Any]) -> Any:
    """What a module returns while a model runs.

    Raises:
        ValueError: If there is no such module, or it is not run.
    """
    modules = dict(model.named_modules())
    if layer not in modules:
        top = ', '.join(name for name, _ in model.named_children())
        raise ValueError(
            f'no module {layer!r} in the model{nearest(layer, modules)} (parts: {top})'
        )
    found = []
    hook = modules[layer].register_forward_hook(lambda _, __, output: found.append(output))
    try:
        with torch.no_grad():
            run()
    finally:
        hook.remove()
    if not found:
        raise ValueError(f'{layer!r} is not run by backbone and neck: take a module of these')
    return found[-1]


def principal_colours(values: torch.Tensor) -> torch.Tensor:
    """First three principal components of channels ``(C, H, W)`` as colours ``(H, W, 3)``."""
    rows = values.flatten(1).double()
    rows = rows - rows.mean(1, keepdim=True)
    # In increasing order of variance.
    _, axes = torch.linalg.eigh(rows @ rows.T)
    axes = axes[:, -3:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    parts = axes.T @ rows
    low, high = (parts.quantile(q, dim=1, keepdim=True) for q in (0.01, 0.99))
    parts = ((parts - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return parts.view(3, *values.shape[1:]).permute(1, 2, 0).float()


# The sheet


def draw_sheet(path: str | Path, rows: Sequence[Row]) -> None:
    """Draw all images with their tiles on one sheet.

    Args:
        path: The picture. Its folder is made.
        rows: Each begins in a line of its own with the image; tiles that do not fit go on below.
    """
    columns = min(COLUMNS, max(len(row.tiles) for row in rows)) or 1
    lines = [max(-(-len(row.tiles) // columns), 1) for row in rows]
    figure = Figure(figsize=(2.5 * (columns + 1), 2.6 * sum(lines) + 0.2), layout='constrained')
    axes = figure.subplots(sum(lines), columns + 1, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    line = 0
    for row, count in zip(rows, lines, strict=True):
        first = axes[line, 0]
        first.imshow(shrink(row.image))
        first.set_title(row.name, fontsize=8)
        for index, tile in enumerate(row.tiles):
            draw_tile(axes[line + index // columns, 1 + index % columns], row.image, tile)
        line += count
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_tile(axis: Axes, image: np.ndarray, tile: Tile) -> None:
    """Draw one tile."""
    if not tile.values.size:
        return
    axis.set_title(tile.title, fontsize=7)
    if tile.values.ndim == 1:
        axis.set_axis_on()
        axis.plot(tile.values, linewidth=0.7)
        axis.tick_params(labelsize=6)
        axis.set_xlabel('channel', fontsize=6)
        axis.set_box_aspect(image.shape[0] / image.shape[1])
        return
    height, width = tile.values.shape[:2]
    if tile.is_laid_over:
        grey = cv2.cvtColor(cv2.resize(image, (width, height)), cv2.COLOR_RGB2GRAY)
        axis.imshow(grey, cmap='gray')
        axis.imshow(tile.values, cmap='inferno', alpha=0.6)
    else:
        axis.imshow(tile.values, cmap='viridis')
    if tile.box is not None:
        left, top, right, bottom = tile.box
        frame = Rectangle(
            (left * width, top * height), (right - left) * width, (bottom - top) * height
        )
        frame.set(fill=False, edgecolor='#4fd1ff', linewidth=1.2)
        axis.add_patch(frame)
