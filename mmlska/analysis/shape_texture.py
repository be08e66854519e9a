"""How many dimensions of a representation hold shape, and how many texture.

The estimator of "Shape or Texture: Understanding Discriminative Features in CNNs" (arXiv
2101.11604), with which LSKA's paper finds that larger kernels hold more shape. A
neuron is a channel of a stage, averaged over the map. Over pairs of pictures that share the shape
and differ in texture, a neuron that responds to shape correlates with itself; over pairs that share
the texture, one that responds to texture. The mean correlation is the score of a factor, that of
the residual is 1, and the softmax of the scores divides the neurons up.

The authors' code replaces the mean of correlations by one ratio of the summed covariances to the
summed variances, so that neurons of high variance decide; here every neuron counts alike, as the
paper describes it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mmlska.datasets.cue_conflict import CuePairs

RESIDUAL_SCORE = 1.0


@dataclass(frozen=True)
class FactorDimensions:
    """What a representation of N neurons holds.

    Attributes:
        neurons: N.
        shape_score: Mean correlation over pairs of one shape, -1 to 1.
        texture_score: Mean correlation over pairs of one texture, -1 to 1.
        shape: Neurons for shape.
        texture: Neurons for texture.
        residual: Neurons for all else; the three add up to N.
    """

    neurons: int
    shape_score: float
    texture_score: float
    shape: int
    texture: int
    residual: int

    def share(self, factor: str) -> float:
        """Neurons of ``'shape'``, ``'texture'`` or ``'residual'`` in percent of all."""
        return 100 * getattr(self, factor) / self.neurons


def pair_correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    r"""Correlation of each neuron with itself over pairs of pictures.

    .. math:: \rho_i = \frac{\mathrm{Cov}(z^a_i, z^b_i)}{\sqrt{\mathrm{Var}(z^a_i)
        \mathrm{Var}(z^b_i)}}

    Args:
        first: Responses to the first picture of each pair, ``(P, N)``.
        second: Responses to the second one, ``(P, N)``.

    Returns:
        ``(N,)``, from -1 to 1. A neuron that responds alike to all pictures has 0.

    Raises:
        ValueError: If shapes differ, there are fewer than two pairs, or values are not finite.
    """
    if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
        raise ValueError(
            'responses to both pictures of at least two pairs have the shape (pairs, neurons), '
            f'got {first.shape} and {second.shape}'
        )
    a, b = (values - values.mean(0) for values in (_float64(first), _float64(second)))
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        raise ValueError('responses are not finite: check the weights')
    deviations = np.sqrt((a**2).mean(0) * (b**2).mean(0))
    # What is left of a constant in float32.
    scale = np.abs(np.concatenate([first, second])).max(0).astype(np.float64)
    responds = deviations > (1e-6 * scale) ** 2
    ratios = (a * b).mean(0) / np.where(responds, deviations, 1)
    return np.where(responds, ratios, 0.0).clip(-1, 1)


def _float64(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def factor_dimensions(shape: np.ndarray, texture: np.ndarray) -> FactorDimensions:
    r"""Divide neurons up among shape, texture and residual.

    .. math:: N_f = \lfloor N \, e^{s_f} / (e^{s_{shape}} + e^{s_{texture}} + e^1) \rfloor,
        \quad s_f = \frac{1}{N} \sum_i \rho^f_i

    As scores lie between -1 and 1, so do shares in bounds: neurons that correlate with neither give
    21 % each to shape and texture, and a representation of nothing but shape 42 % to shape.

    Args:
        shape: Correlation of each neuron over pairs of one shape, ``(N,)``.
        texture: The same over pairs of one texture, ``(N,)``.

    Raises:
        ValueError: If shapes differ, or there is no neuron.
    """
    if shape.shape != texture.shape or shape.ndim != 1 or not shape.size:
        raise ValueError(
            f'two correlations of each neuron are needed, got {shape.shape} and {texture.shape}'
        )
    neurons = shape.size
    scores = float(shape.mean()), float(texture.mean())
    powers = [math.exp(score) for score in (*scores, RESIDUAL_SCORE)]
    first, second = (math.floor(neurons * power / sum(powers)) for power in powers[:2])
    return FactorDimensions(neurons, *scores, first, second, neurons - first - second)


def stage_dimensions(features: Sequence[np.ndarray], pairs: CuePairs) -> list[FactorDimensions]:
    """Estimate the dimensions of each stage.

    Args:
        features: Of each stage the responses to all pictures, ``(pictures, neurons)``.
        pairs: Indices of the pictures that share a cue.

    Raises:
        ValueError: See :func:`pair_correlations`.
    """
    found = []
    for responses in features:
        correlations = [
            pair_correlations(responses[both[:, 0]], responses[both[:, 1]])
            for both in (pairs.shape, pairs.texture)
        ]
        found.append(factor_dimensions(*correlations))
    return found


def dimension_rows(found: Mapping[str, Sequence[FactorDimensions]]) -> list[list[str]]:
    """Lay models out: a row per stage, dimensions in percent of its neurons."""
    rows = [['model', 'stage', 'neurons', 'shape', 'texture', 'residual', 'scores']]
    for name, stages in found.items():
        for index, one in enumerate(stages):
            shares = [
                f'{getattr(one, factor)} ({one.share(factor):.1f} %)'
                for factor in ('shape', 'texture', 'residual')
            ]
            scores = f'{one.shape_score:.3f} / {one.texture_score:.3f}'
            rows.append([name, str(index), str(one.neurons), *shares, scores])
    return rows


def dimension_records(found: Mapping[str, Sequence[FactorDimensions]]) -> dict:
    """All figures, for JSON."""
    return {name: [asdict(stage) for stage in stages] for name, stages in found.items()}


def draw_dimensions(path: str | Path, found: Mapping[str, Sequence[FactorDimensions]]) -> None:
    """Draw the share of shape and of texture over the stages, a line per model.

    Args:
        path: The picture. Its folder is made.
        found: Stages by the name of the model.
    """
    figure = Figure(figsize=(9, 4), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    for axis, factor in zip(axes, ('shape', 'texture'), strict=True):
        for name, stages in found.items():
            shares = [one.share(factor) for one in stages]
            axis.plot(range(len(stages)), shares, marker='.', label=name)
        axis.set_title(factor)
        axis.set_xlabel('stage')
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel('neurons (%)')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside upper center', ncols=2)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
