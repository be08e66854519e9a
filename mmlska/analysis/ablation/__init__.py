"""Ablations: which layer, where, at which cost, and does it help?

:func:`make_spec` reads the settings, :func:`run_ablation` trains a config for each cell and writes
the reports. The way through the modules: ``spec`` and ``notation`` (what is asked for), ``placing``
and ``cells`` (one config a cell), ``runs`` and ``records`` (trainings and their figures),
``costs``, ``start``, ``course``, ``statistics``, ``table``, ``examples`` and ``page`` (what is made
of them).
"""

from .driver import describe, run_ablation, summary
from .runs import InterruptedRunsError, Launch
from .spec import Spec, make_spec, read_settings
from .statistics import Estimate, estimate, paired_difference

__all__ = [
    'Estimate',
    'InterruptedRunsError',
    'Launch',
    'Spec',
    'describe',
    'estimate',
    'make_spec',
    'paired_difference',
    'read_settings',
    'run_ablation',
    'summary',
]
