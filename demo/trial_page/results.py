"""Results as HTML: six figures, before and after training, that hold their pictures themselves."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import cv2
import numpy as np
from matplotlib import colormaps

from mmlska.analysis.attention_maps import Tile
from mmlska.analysis.before_after import AFTER, BEFORE, Findings
from mmlska.analysis.receptive_field import DRAWN_SHARES, FAINTEST, Field

from .drawing import (
    FIELD_COLOURS,
    GATE_COLOURS,
    Colour,
    Found,
    Mark,
    Picture,
    draw_fields,
    draw_gate,
    draw_prediction,
)

# Smaller pictures are enlarged with sharp edges: their pixels are the finding.
SMALL = 400
MAX_FOUND = 6
EMPTY = (
    '<div class="lk-empty"><p>Drop an image or click on a scene.</p>'
    '<p>Six pictures appear here: what the model predicts, which part of the image the middle of '
    'one of its maps sees, and what one of its layers multiplies with, each before training '
    '(random weights) and after it.</p></div>'
)


@dataclass(frozen=True)
class Shown:
    """An image, and what both models made of it.

    Attributes:
        image: RGB bytes ``(H, W, 3)``.
        findings: Of the untrained model and of the trained one.
        meta: Names and colours of the classes.
        score_thr: Least score of a detection that is shown.
        notes: What the reader is to know of the image, in words.
        seconds: How long it took.
    """

    image: np.ndarray
    findings: tuple[Findings, Findings]
    meta: dict
    score_thr: float
    notes: tuple[str, ...]
    seconds: float


def render(shown: Shown) -> str:
    """The figures of both models, in rows of three."""
    fields = draw_fields([found.field for found in shown.findings])
    figures = []
    for found, field, when in zip(shown.findings, fields, (BEFORE, AFTER), strict=True):
        picture, classes = draw_prediction(
            shown.image, found.prediction, shown.meta, shown.score_thr
        )
        figures.append(figure('Prediction', when, picture, list_found(classes, shown)))
        figures.append(figure('Receptive field', when, field, explain_field(found.field)))
        figures.append(gate_figure(found.gate, when))
    notes = ''.join(f'<p class="lk-note">{escape(note)}</p>' for note in shown.notes)
    took = f'<p class="lk-note">Computed in {shown.seconds:.1f} s.</p>'
    return f'{notes}<div class="lk-figures">{"".join(figures)}</div>{took}'


def render_error(message: str) -> str:
    """A message in the place of the figures."""
    return f'<div class="lk-error" role="alert">{escape(message)}</div>'


def gate_figure(gate: Tile | None, when: str) -> str:
    """The figure of a gate, or why there is none."""
    if gate is None:
        nothing = '<div class="lk-nothing">No layer of this model has a gate.</div>'
        return f'<figure>{heading("Gate", when)}{nothing}</figure>'
    return figure('Gate', when, draw_gate(gate), explain_gate(gate))


def figure(title: str, when: str, picture: Picture, caption: str) -> str:
    """A picture with its marks, under a heading, over a caption in HTML."""
    marks = ''.join(map(draw_mark, picture.marks))
    text = escape(f'{title} {when}')
    image = f'<img src="{data_uri(picture.pixels)}" alt="{text}">'
    return (
        f'<figure>{heading(title, when)}<div class="lk-picture">{image}{marks}</div>'
        f'<figcaption>{caption}</figcaption></figure>'
    )


def heading(title: str, when: str) -> str:
    """Title of a figure and the state of its model."""
    state = 'after' if when == AFTER else 'before'
    return f'<div class="lk-title">{title}<span class="lk-{state}">{when}</span></div>'


def data_uri(pixels: np.ndarray) -> str:
    """RGB bytes as a picture that stands in the page itself."""
    factor = max(SMALL // max(pixels.shape[:2]), 1)
    large = pixels.repeat(factor, 0).repeat(factor, 1)
    _, encoded = cv2.imencode('.png', large[..., ::-1])
    return f'data:image/png;base64,{base64.b64encode(encoded).decode()}'


def draw_mark(mark: Mark) -> str:
    """A frame or a label, placed in per cent of its picture."""
    left, top, width, height = (f'{100 * share:.2f}%' for share in mark.place)
    label = f'<b>{escape(mark.label)}</b>' if mark.label else ''
    kind = 'lk-frame' if mark.place[2] else 'lk-label'
    dashed = ' lk-dashed' if mark.is_dashed else ''
    place = f'left:{left};top:{top};width:{width};height:{height};--colour:{css(mark.colour)}'
    return f'<span class="{kind}{dashed}" style="{place}">{label}</span>'


def css(colour: Colour) -> str:
    """A colour in the words of style sheets."""
    return f'rgb({colour[0]} {colour[1]} {colour[2]})'


def list_found(found: Sequence[Found], shown: Shown) -> str:
    """The most frequent classes with their colours and amounts."""
    if not found:
        return f'Nothing above a score of {shown.score_thr:g}.'
    chips = [
        f'<span class="lk-chip">{patch(one)}{escape(one.name)} <small>{one.amount}</small></span>'
        for one in found[:MAX_FOUND]
    ]
    more = len(found) - MAX_FOUND
    return ' '.join(chips) + (f' <small>and {more} more</small>' if more > 0 else '')


def patch(found: Found) -> str:
    """The colour in which a class is drawn; the background is not."""
    return '' if found.colour is None else f'<i style="background:{css(found.colour)}"></i>'


def explain_field(field: Field) -> str:
    """How large a field is, and what its colours mean."""
    height, width = field.contribution.shape
    within = [f'{reach.share:.0%} within {reach.side} px' for reach in field.reaches(DRAWN_SHARES)]
    top, left, bottom, right = field.box
    most = (
        'the whole image' if field.is_cut_off() else f'{right - left} × {bottom - top} px, dashed'
    )
    return (
        f'What the middle of stage {field.stage + 1} (stride {field.stride} px) takes in: '
        f'{", ".join(within)}, of {width} × {height} px. The architecture allows: {most}.'
        + scale(FIELD_COLOURS, f'{FAINTEST:g}', 'peak, log')
    )


def explain_gate(gate: Tile) -> str:
    """Which layer a gate is of, its range, and what its colours mean."""
    name, _, values = gate.title.partition('\n')
    text = f'{escape(name)}: {escape(values)} over all channels. '
    if gate.values.ndim == 1:
        return f'{text}One column for each of {len(gate.values)} channels.'
    return f'{text}Mean magnitude over the channels:' + scale(
        GATE_COLOURS, f'{gate.values.min():.2g}', f'{gate.values.max():.2g}'
    )


def scale(colours: str, low: str, high: str) -> str:
    """A bar of colours with what its ends stand for."""
    steps = (colormaps[colours](np.linspace(0, 1, 9))[:, :3] * 255).astype(int)
    gradient = ', '.join(css(tuple(step)) for step in steps)
    return (
        f'<span class="lk-scale"><small>{low}</small>'
        f'<i style="background:linear-gradient(90deg, {gradient})"></i>'
        f'<small>{high}</small></span>'
    )
