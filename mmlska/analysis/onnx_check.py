"""An exported file beside the model that it is made of: largest errors, and times in turns."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmlska.datasets.digit_scenes import photograph_file
from mmlska.deploy.onnx_files import OnnxModel, by_name

from .timing import Spread, headline_clock, time_rounds

# So many pixels apart two boxes may be to count as one.
COUNTERPART = 2.0
# Photographs of three shapes, none of them square.
PHOTOGRAPHS = ('skimage/data/coffee.png', 'skimage/data/chelsea.png', 'skimage/data/rocket.jpg')
SHAPES = ((240, 320), (320, 240), (200, 333))
ROUNDS = 7


class Limits(NamedTuple):
    """Largest errors that a file may have.

    Attributes:
        maps: Of feature maps and logits, as a share of the largest value.
        labels: Share of the pixels with another label.
        boxes: Of the corners of a box, in pixels.
        scores: Of a score.
        masks: Of a probability in a mask.
        detections: Share of the detections without a counterpart: suppression and the limits on
            score and number are yes or no, and turn over where two values nearly tie.
    """

    maps: float
    labels: float
    boxes: float
    scores: float
    masks: float
    detections: float


SINGLE = Limits(maps=1e-3, labels=1e-3, boxes=0.1, scores=1e-3, masks=1e-2, detections=0.01)
HALF = Limits(maps=2e-2, labels=5e-2, boxes=2.0, scores=2e-2, masks=0.1, detections=0.1)
UNITS = Limits(
    maps='of the largest value',
    labels='of the pixels',
    boxes='px',
    scores='',
    masks='',
    detections='without a counterpart',
)


class Check(NamedTuple):
    """What a comparison has found.

    Attributes:
        errors: Largest error by output, with the field of :class:`Limits` that it belongs to.
        times: Seconds for an image, by program: median and quartiles.
        failures: What is beyond its limit, in words.
        detections: How many detections were compared; None of other models.
    """

    errors: dict[str, tuple[str, float]]
    times: dict[str, Spread]
    failures: list[str]
    detections: int | None = None

    def describe(self) -> str:
        """Errors and times, a line each."""
        lines = [
            f'{name:16}{error:12.3g} {getattr(UNITS, kind)}'.rstrip()
            for name, (kind, error) in self.errors.items()
        ]
        lines += [f'{name:16}{1e3 * time.median:12.1f} ms' for name, time in self.times.items()]
        if self.detections is not None:
            lines.append(f'{"compared":16}{self.detections:12} detections')
        if self.detections == 0:
            lines.append('Nothing was compared: give --images in which the model finds something.')
        return '\n'.join(lines)


@torch.no_grad()
def check_file(
    file: str | Path,
    graph: nn.Module,
    images: Sequence[Tensor],
    limits: Limits = SINGLE,
    rounds: int = ROUNDS,
) -> Check:
    """Run a file and the graph that it was written from on the same images.

    Args:
        file: The file in ONNX.
        graph: The graph in PyTorch; one of a model that is not fused shows what fusing changes.
        images: What both get, ``(N, 3, H, W)`` each.
        limits: What the errors may be.
        rounds: How often both are timed, in turns, on the first image; 0 for no timing.
    """
    model = OnnxModel(file)
    errors: dict[str, tuple[str, float]] = {}
    detections = 0
    for image in images:
        expected = {name: value.numpy() for name, value in by_name(graph, graph(image)).items()}
        for name, (kind, error) in compare(model(image), expected).items():
            errors[name] = kind, max(error, errors.get(name, (kind, 0.0))[1])
        if 'boxes' in expected:
            detections += int((expected['labels'] >= 0).sum())
    failures = [
        f'{name} differ by {error:.3g} {getattr(UNITS, kind)}, at most {getattr(limits, kind)} is '
        'allowed'
        for name, (kind, error) in errors.items()
        # What is not a number is no small error either.
        if not error <= getattr(limits, kind)
    ]
    times = {}
    if rounds and not failures:
        image = images[0]
        runs = {'PyTorch': lambda: graph(image), 'ONNX Runtime': lambda: model(image)}
        times = time_in_turns(runs, len(image), rounds)
    return Check(errors, times, failures, detections if 'boxes' in errors else None)


def time_in_turns(
    runs: Mapping[str, Callable[[], Any]], images: int, rounds: int
) -> dict[str, Spread]:
    """Seconds on the CPU for an image, by program.

    Args:
        runs: What is timed, by name.
        images: How many images a run takes.
        rounds: How often each runs.
    """
    device = torch.device('cpu')
    clock = headline_clock(device, torch.get_num_threads())
    return {
        name: Spread.of(getattr(sample, clock) / images for sample in taken)
        for name, taken in time_rounds(runs, rounds, device).items()
    }


def compare(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> dict[str, tuple[str, float]]:
    """Errors by output, each with the field of :class:`Limits` that it belongs to.

    Raises:
        ValueError: If there are other outputs than expected.
    """
    if list(found) != list(expected):
        raise ValueError(f'the file returns {", ".join(found)}, expected {", ".join(expected)}')
    if 'boxes' in expected:
        return compare_detections(found, expected)
    errors = {}
    for name, value in expected.items():
        if name == 'labels':
            errors[name] = 'labels', _share_of_others(found[name], value)
        else:
            errors[name] = 'maps', _relative_error(found[name], value)
    return errors


def _share_of_others(found: np.ndarray, expected: np.ndarray) -> float:
    return float((found != expected).mean()) if found.shape == expected.shape else np.inf


def _relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return np.inf
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))


def compare_detections(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> dict[str, tuple[str, float]]:
    """Errors of the detections that have a counterpart, and the share of those that have none.

    Two detections are counterparts if they have the same label, and corners no further apart than
    :data:`COUNTERPART`; the nearest one counts.
    """
    errors = {name: [0.0] for name in expected if name != 'labels'}
    missing = total = 0
    for i in range(len(expected['labels'])):
        one, other = (
            {name: value[i] for name, value in side.items()} for side in (expected, found)
        )
        one, other = _present(one), _present(other)
        nearest, distance = _counterparts(one, other)
        _, distance_back = _counterparts(other, one)
        has_one = distance <= COUNTERPART
        missing += (~has_one).sum() + (distance_back > COUNTERPART).sum()
        total += len(distance) + len(distance_back)
        errors['boxes'].extend(distance[has_one])
        for name in errors.keys() - {'boxes'}:
            difference = np.abs(one[name][has_one] - other[name][nearest[has_one]])
            errors[name].append(difference.max(initial=0.0))
    largest = {name: (name, float(max(values))) for name, values in errors.items()}
    return largest | {'detections': ('detections', float(missing / max(total, 1)))}


def _present(detections: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The detections of an image without the rows that fill up a batch."""
    return {name: value[detections['labels'] >= 0] for name, value in detections.items()}


def _counterparts(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the nearest one with its label, and how far its corners are, in pixels."""
    if not len(other['labels']):
        count = len(one['labels'])
        return np.zeros(count, int), np.full(count, np.inf)
    distances = np.abs(one['boxes'][:, None] - other['boxes']).max(-1)
    distances = np.where(one['labels'][:, None] == other['labels'], distances, np.inf)
    return distances.argmin(1), distances.min(1)


def example_images(folder: Path) -> list[Path]:
    """Photographs of scikit-image, or without it smooth noise, written to a folder."""
    try:
        return [photograph_file(path) for path in PHOTOGRAPHS]
    except ModuleNotFoundError:
        return [_write_noise(folder / f'{i}.png', shape) for i, shape in enumerate(SHAPES)]


def _write_noise(path: Path, shape: tuple[int, int]) -> Path:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (shape[0] // 20, shape[1] // 20, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC))
    return path


def inputs_for(images: Iterable[Tensor], size: tuple[int, int] | None) -> Iterator[Tensor]:
    """What a file is tried on, made of prepared images ``(1, 3, H, W)``.

    Args:
        images: The images.
        size: The only height and width that the file takes, which the images are stretched to.
            None for a file that takes any: it gets each image, and a batch of the first one beside
            its mirror image.
    """
    for number, image in enumerate(images):
        if size is not None:
            yield F.interpolate(image, size, mode='bilinear')
            continue
        yield image
        if not number:
            yield torch.cat([image, image.flip(3)])
