"""Measuring one case: ours against the plain official order, in one process, in turns."""

import contextlib
import dataclasses
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mmlska.analysis import timing
from mmlska.analysis.timing import Sample, Spread
from mmlska.ops import Choice, record_choices, use_backend
from mmlska.ops.large_kernel_attention.operation import ATTENTION

from .settings import WHOLE_MODELS, Settings
from .subjects import MapSubject, Tensors

REFERENCE, AGAIN, OURS = 'plain', 'plain again', 'ours'
COMPILED, OURS_COMPILED = 'plain compiled', 'ours compiled'
# Largest relative error of ours, by what is compared and the dtype in which it was computed.
TOLERANCES = {'float64': 1e-10, 'float32': 1e-4, 'float16': 1e-2, 'bfloat16': 5e-2}
# Which regions a detector trains on flips with the last bit of a score: of many thousand scores
# some are all but equal.
LOOSE_TOLERANCES = {'loss': 1e-2, 'drawn_gradients': 0.2}


@dataclass
class Result:
    """What was measured.

    Attributes:
        settings: What was asked for.
        samples: Seconds of each round, by variant.
        clock: The field of the samples that ratios are taken from.
        forms: What computed the cascades of ours, with the layout of their maps.
        bytes: Peak memory of one run, by variant.
        errors: Largest relative errors of ours, by what was compared.
        copy_share: For an op, the time that copying a map of this size takes, as a share of ours.
    """

    settings: Settings
    samples: dict[str, list[Sample]]
    clock: str
    forms: list[str]
    bytes: dict[str, int]
    errors: dict[str, float]
    copy_share: float | None = None

    def milliseconds(self, variant: str) -> float:
        """Median time of one run."""
        return 1e3 * statistics.median(getattr(s, self.clock) for s in self.samples[variant])

    def speed_up(self, variant: str = OURS, clock: str | None = None) -> Spread:
        """How many times faster than the reference a variant is."""
        return timing.ratios(self.samples[REFERENCE], self.samples[variant], clock or self.clock)

    def record(self) -> dict[str, Any]:
        """All of it for a JSON file, with times as medians and ratios as quartiles."""
        variants = {
            name: dict(
                milliseconds=self.milliseconds(name),
                speed_up=self.speed_up(name)._asdict(),
                speed_up_by_the_wall=self.speed_up(name, 'wall')._asdict(),
                rounds=len(samples),
            )
            for name, samples in self.samples.items()
        }
        return asdict(self) | dict(variants=variants)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> 'Result':
        """The result that a record, read from a JSON file, is of; it may say more."""
        fields = {field.name: record[field.name] for field in dataclasses.fields(cls)}
        settings = dict(record['settings'], shape=tuple(record['settings']['shape']))
        samples = {name: [Sample(*s) for s in taken] for name, taken in record['samples'].items()}
        return cls(**fields | dict(settings=Settings(**settings), samples=samples))


def measure(settings: Settings) -> Result:
    """Measure one case in this process.

    Raises:
        ValueError: If the settings are impossible.
        ArithmeticError: If ours computes something else than the reference does.
    """
    settings.check()
    # Libraries print what they do.
    with contextlib.redirect_stdout(sys.stderr):
        return _measure(settings)


def _measure(settings: Settings) -> Result:
    torch.set_num_threads(settings.threads)
    timing.set_allocator(settings.allocator)
    timing.forbid_tf32()
    device = timing.find_device(settings.device)
    subject = make_subject(settings)
    modules, backends = subject.modules(), {'plain': 'plain', 'ours': settings.backend}
    forms, tensors = {}, {}
    for name, module in modules.items():
        with use_backend(backends[name]), record_choices() as choices:
            tensors[name] = subject.compare(module)
        forms[name] = name_forms(choices)
    check_reference(forms[REFERENCE])
    errors = check_errors(tensors[OURS], tensors[REFERENCE], settings)
    del tensors

    runs = {name: in_backend(backends[name], subject.runner(modules[name])) for name in modules}
    runs = {REFERENCE: runs['plain'], AGAIN: runs['plain'], OURS: runs['ours']}
    if settings.compile:
        for name, side in ((COMPILED, 'plain'), (OURS_COMPILED, 'ours')):
            compiled = subject.compiled(modules[side])
            runs[name] = in_backend(backends[side], subject.runner(compiled))
    # Large models have been run by the comparison, except for what is compiled.
    warm_up = settings.compile or settings.case not in ('backbone', *WHOLE_MODELS)
    samples = timing.time_rounds(runs, settings.rounds, device, settings.max_seconds, warm_up)
    memory = {name: timing.peak_bytes(run, device) for name, run in runs.items() if name != AGAIN}
    clock = timing.headline_clock(device, settings.threads)
    result = Result(settings, samples, clock, forms[OURS], memory, errors)
    if settings.case == 'op' and not settings.train:
        result.copy_share = copy_share(result, subject.x)
    return result


def make_subject(settings: Settings) -> Any:
    """What is timed, with its inputs."""
    if settings.case not in WHOLE_MODELS:
        return MapSubject(settings)
    # They need mmdet or mmseg, which everything else does without.
    from .whole_models import EvaluationSubject, StepSubject

    return (StepSubject if settings.case == 'detector' else EvaluationSubject)(settings)


def in_backend(name: str, run: Callable[[], object]) -> Callable[[], object]:
    """A function that runs another one in a backend."""

    def call() -> object:
        with use_backend(name):
            return run()

    return call


def name_forms(choices: Iterable[Choice]) -> list[str]:
    """Which forms computed the convolutions, in which layout, and whether FFNs ran by bands."""
    names = set()
    for choice in choices:
        if choice.operation == 'in_bands':
            names |= {'bands'} & {choice.form}
        # The plain form of an attention leaves its convolutions to the choice for its cascade.
        elif choice.operation.startswith('depthwise') or (
            choice.operation == ATTENTION.name and choice.form != 'plain'
        ):
            names.add(choice.form + ' (channels_last)' * (choice.layout == 'channels_last'))
    return sorted(names)


def check_reference(forms: list[str]) -> None:
    """Check that nothing of ours runs in the reference.

    Raises:
        RuntimeError: If a fast form does.
    """
    if not all(form.startswith('plain') for form in forms):
        raise RuntimeError(f'the reference must be plain, but was computed by {", ".join(forms)}')


def check_errors(got: Tensors, wanted: Tensors, settings: Settings) -> dict[str, float]:
    """Relative errors of ours, by what is compared.

    Raises:
        ArithmeticError: If one is larger than the dtype explains.
    """
    errors = {name: timing.relative_error(got[name], wanted[name]) for name in wanted}
    for name, error in errors.items():
        allowed = LOOSE_TOLERANCES.get(name, TOLERANCES[settings.dtype])
        if not error <= allowed:
            raise ArithmeticError(
                f'{settings.name}, {settings.map_name}, {settings.mode}: the {name} of ours differ '
                f'from the reference by {error:.1e} of their size; allowed are {allowed:.0e}'
            )
    return errors


def copy_share(result: Result, x: torch.Tensor) -> float:
    """Time to copy the map at the bandwidth that was measured, as a share of the time of ours."""
    bandwidth = timing.copy_bandwidth(x.device, x.dtype)
    return 2 * x.nbytes / bandwidth / (result.milliseconds(OURS) / 1e3)


def measure_apart(settings: Settings) -> Result:
    """Measure one case in a new process.

    What an earlier case left behind, in the allocator above all, changes the times of the next one.

    Raises:
        Exception: What :func:`measure` raises.
    """
    # Its processes are copies of one that has imported everything and computed nothing.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__, 'torch._dynamo', 'mmdet.models', 'mmseg.models'])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, settings).result()
