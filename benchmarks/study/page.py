"""The generated part of ``docs/study.md``: claims, figures, and all that they were drawn from."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mmlska.analysis.ablation import estimate, paired_difference
from mmlska.analysis.complexity import format_table

from .. import report
from .claims import Claim, Figures, in_words
from .judging import Findings
from .transfer import gain

TEMPLATE = Path(__file__).resolve().parents[2] / 'docs' / 'study.md'
SECTION = 'study'


def write_page(
    path: Path, findings: Findings, claims: Sequence[Claim], cells: str, name: str
) -> None:
    """Fill the generated part of a page in; a page that is not there begins as a copy of ours.

    Args:
        path: The page; its picture goes into the folder ``images`` beside it.
        findings: What was measured.
        claims: What became of the claims.
        cells: The report of the ablation in Markdown.
        name: Name of the scale.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TEMPLATE, path)
    picture = path.parent / 'images' / 'study.png'
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(picture, findings)
    parts = [
        provenance(findings, name),
        claims_table(claims),
        '![Figures over the kernel size](images/study.png)',
        '### Cells',
        'The base is LSKA with k = 23. All cells share schedule, seeds and order of scenes.',
        cells,
        '### LSKA against LKA',
        differences_table(findings),
        '### Fields, robustness, shape',
        'Means ± standard deviations over seeds.',
        instruments_table(findings),
        '### Transfer',
        transfer_text(findings),
        '### VAN-tiny',
        times_table(findings),
    ]
    report.rewrite(path, SECTION, '\n\n'.join(part.strip() for part in parts))


def provenance(findings: Findings, name: str) -> str:
    """How it was measured, where and when."""
    scale = findings.scale
    command = 'make study' if name == 'full' else f'make study STUDY={name}'
    return (
        f'`{command}`: {scale.seeds} seeds, {scale.iterations} iterations of 8 scenes of 64×64 '
        f'pixels, {scale.num_val} scenes to evaluate on. {report.here_and_today("cpu")}'
    )


def claims_table(claims: Sequence[Claim]) -> str:
    """A row for each claim."""
    rows = [['claim', 'our figure [95 % interval]', 'verdict']]
    rows += [[claim.text, claim.figure, f'**{claim.verdict}**'] for claim in claims]
    return format_table(rows, markdown=True)


def differences_table(findings: Findings) -> str:
    """Differences of mIoU at each kernel size, paired over seeds."""
    rows = [['difference', 'points of mIoU [95 % interval]']]
    for ours, theirs in (('LSKA', 'LKA'), ('LSKATrivial', 'LKATrivial')):
        for size, cell in findings.family(ours).items():
            own, other = (
                findings.accuracy.get(c, {}) for c in (cell, findings.family(theirs)[size])
            )
            found = paired_difference(own, other)
            rows.append([f'{ours} - {theirs}, k = {size}', in_words(found, 'points')])
    return format_table(rows, markdown=True)


def instruments_table(findings: Findings) -> str:
    """What the instruments say of each cell."""
    columns: dict[str, Figures] = {}
    columns |= {f'field {share} (px)': values for share, values in findings.fields.items()}
    columns |= {f'{name} (%)': values for name, values in findings.robustness.items()}
    columns |= {f'{name} dimensions (%)': values for name, values in findings.shape.items()}
    names = list(findings.accuracy)
    rows = [['cell', *columns]]
    rows += [
        [cell, *(mean_text(values.get(cell, {})) for values in columns.values())] for cell in names
    ]
    return format_table(rows, markdown=True)


def transfer_text(findings: Findings) -> str:
    """What a detector gains by the backbone of a segmentor."""
    rows = [['start of the backbone', 'AP of boxes (%)']]
    rows += [[start, mean_text(values)] for start, values in findings.transfer.items()]
    words = in_words(gain(findings.transfer), 'points of AP')
    return (
        'A RetinaNet on the same scenes, trained as long, with the backbone of the segmentor '
        f'(LSKA, k = 23, seed 0) against a random start: {words}.\n\n'
        f'{format_table(rows, markdown=True)}'
    )


def mean_text(values: Mapping[int, float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return '–'
    found = estimate(list(values.values()))
    return f'{found.mean:.1f}' + (f' ± {found.std:.1f}' if found.std is not None else '')


def times_table(findings: Findings) -> str:
    """Costs of VAN-tiny by attention."""
    rows = [['attention', 'parameters (M)', 'multiply-adds (G)', 'time [quartiles]']]
    for name, cost in findings.times.items():
        low, middle, high = cost['time']
        sizes = [f'{cost["params"] / 1e6:.3f}', f'{cost["macs"] / 1e9:.3f}']
        rows.append([name, *sizes, f'{middle:.2f} [{low:.2f}, {high:.2f}]'])
    return format_table(rows, markdown=True)


def draw(path: Path, findings: Findings) -> None:
    """Draw figures over the kernel size, one panel each; points are seeds, lines their means."""
    panels: dict[str, Figures] = {'mIoU (%)': findings.accuracy}
    panels |= {f'side of {share} of the field (px)': v for share, v in findings.fields.items()}
    if 'kept' in findings.robustness:
        panels['kept on corrupted scenes (%)'] = findings.robustness['kept']
    if 'shape' in findings.shape:
        panels['dimensions of shape (%)'] = findings.shape['shape']
    figure = Figure(figsize=(4 * len(panels), 3.6), layout='constrained')
    for axis, (title, figures) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for kind in ('LSKA', 'LKA', 'LSKATrivial', 'LKATrivial'):
            points = {
                size: list(figures[cell].values())
                for size, cell in findings.family(kind).items()
                if figures.get(cell)
            }
            means = [sum(values) / len(values) for values in points.values()]
            (line,) = axis.plot(list(points), means, label=kind, marker='o', markersize=3)
            for size, values in points.items():
                axis.plot([size] * len(values), values, '.', color=line.get_color(), alpha=0.4)
        axis.set(title=title, xlabel='k', xscale='log')
        axis.set_xticks(findings.scale.kernel_sizes, map(str, findings.scale.kernel_sizes))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
