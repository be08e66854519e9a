"""What mmlska needs around it, what is installed, and how to repair the difference.

``collect`` looks around, ``diagnose`` judges what it found, ``format_report`` prints that. Nothing
here needs a package that may be missing.
"""

import importlib
import io
import re
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

OLDEST_PYTHON = (3, 10)
NEWEST_TESTED_PYTHON = (3, 12)
# As in setup.cfg.
OLDEST_TORCH = (2, 1)
# mmcv without its compiled operators: a segmentor needs none.
LITE = 'mmcv-lite'
# Highest setuptools that each family of distributions builds and runs with.
SETUPTOOLS = {'onedl': 'setuptools<82', 'openmmlab': 'setuptools<70'}


@dataclass(frozen=True)
class Library:
    """An OpenMMLab library.

    Attributes:
        module: Name it is imported by.
        onedl: Maintained distribution that provides the module.
        original: Original distributions that provide it.
        oldest: Lowest version that works.
        purpose: What it is for.
    """

    module: str
    onedl: str
    original: tuple[str, ...]
    oldest: tuple[int, int]
    purpose: str


LIBRARIES = (
    Library('mmengine', 'onedl-mmengine', ('mmengine', 'mmengine-lite'), (0, 10), 'needed'),
    Library('mmcv', 'onedl-mmcv', ('mmcv', 'mmcv-lite', 'mmcv-full'), (2, 0), 'needed'),
    Library('mmdet', 'onedl-mmdetection', ('mmdet',), (3, 0), 'for detection'),
    Library('mmseg', 'onedl-mmsegmentation', ('mmsegmentation',), (1, 0), 'for segmentation'),
    Library('mmpretrain', 'onedl-mmpretrain', ('mmpretrain',), (1, 0), 'for pre-training'),
    Library('mmrotate', 'onedl-mmrotate', ('mmrotate',), (1, 0), 'for rotated boxes'),
)
TASK_LIBRARIES = ('mmdet', 'mmseg')  # one of them has to be there
OPTIONAL = ('mmpretrain', 'mmrotate')
# What is imported to try a module, where that is not the module itself: the task libraries import
# what their models need, torchvision or ftfy for example, together with the models only.
TRIALS = {name: f'{name}.models' for name in (*TASK_LIBRARIES, *OPTIONAL)}
MODULES = (
    'torch',
    'torchvision',
    'cv2',
    'triton',
    'mmcv._ext',
    *(library.module for library in LIBRARIES),
)


@dataclass(frozen=True)
class Facts:
    """What is installed.

    Attributes:
        python: Version of the interpreter.
        distributions: Versions of the installed distributions by their names in lower case.
        imports: Result of importing each module that was found: what went wrong, '' if nothing.
        torch_build: What PyTorch was built for, and the GPU that it sees.
        gpu: Whether PyTorch sees a GPU.
        ops_cuda: CUDA version that mmcv's operators were compiled with, '' if without.
        registry_error: Why ``mmlska.VAN`` is not found through mmengine's registry, '' if it is.
        operations: How the large kernels are computed here, '' if that is not known.
        operations_error: Why that cannot be said, '' if it can.
    """

    python: tuple[int, ...]
    distributions: Mapping[str, str]
    imports: Mapping[str, str]
    torch_build: str = ''
    gpu: bool = False
    ops_cuda: str = ''
    registry_error: str = ''
    operations: str = ''
    operations_error: str = ''


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: Component.
        found: What is there.
        problem: What is wrong with it, '' if nothing.
        remedy: Command that repairs it.
        absent: Whether it is not there and need not be.
    """

    name: str
    found: str
    problem: str = ''
    remedy: str = ''
    absent: bool = False

    @property
    def state(self) -> str:
        """Judgement in one word."""
        return 'WRONG' if self.problem else '-' if self.absent else 'ok'


def collect() -> Facts:
    """Look at the interpreter, the installed distributions, and what can be imported."""
    distributions = {}
    for distribution in metadata.distributions():
        name = distribution.metadata['Name']
        if name:
            distributions[re.sub(r'[-_.]+', '-', name).lower()] = distribution.version
    # Warnings of the libraries have their place, but not inside the table.
    with (
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter('ignore')
        imports = {
            name: import_error(TRIALS.get(name, name)) for name in MODULES if module_exists(name)
        }
        torch_build, gpu = inspect_torch() if imports.get('torch') == '' else ('', False)
        ops_cuda = inspect_ops() if imports.get('mmcv._ext') == '' else ''
        registry_error = resolve_van()
        operations, operations_error = ('', '') if registry_error else inspect_operations()
    return Facts(
        sys.version_info[:3],
        distributions,
        imports,
        torch_build,
        gpu,
        ops_cuda,
        registry_error,
        operations,
        operations_error,
    )


def module_exists(name: str) -> bool:
    """Whether a module can be found, were it broken or not."""
    try:
        return find_spec(name) is not None
    except Exception:
        # The parent of a submodule is imported here: where that fails, the parent is reported.
        return False


def import_error(name: str) -> str:
    """Import a module and describe the exception it raises, '' if none."""
    try:
        importlib.import_module(name)
    except Exception as error:
        return describe(error)
    return ''


def describe(error: Exception) -> str:
    """Type and first line of an exception."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__


def inspect_torch() -> tuple[str, bool]:
    """What PyTorch was built for, and whether it sees a GPU."""
    import torch

    cuda, hip = torch.version.cuda, torch.version.hip
    build = f'CUDA {cuda}' if cuda else f'ROCm {hip}' if hip else 'CPU'
    if not torch.cuda.is_available():
        return f'{build} build, no GPU', False
    return f'{build} build, {torch.cuda.get_device_name(0)}', True


def inspect_ops() -> str:
    """CUDA version that mmcv's operators were compiled with, '' if without."""
    import mmcv._ext

    version = mmcv._ext.get_compiling_cuda_version()
    return '' if version == 'not available' else version


def resolve_van() -> str:
    """Resolve ``mmlska.VAN`` as a config does, and describe what prevents it.

    mmengine hides the exception of a package that it cannot import, so that ours is imported first.
    """
    for name in ('mmengine', 'mmlska.registry', 'mmlska.models'):
        error = import_error(name)
        if error:
            return f'{name}: {error}'
    from mmengine.registry import MODELS

    try:
        found = MODELS.get('mmlska.VAN')
    except Exception as error:
        return describe(error)
    return '' if found is not None else 'mmlska.VAN is not in the registry of mmlska.models'


def inspect_operations() -> tuple[str, str]:
    """How the large kernels are computed here, and what prevents an answer."""
    from mmlska.ops.describe import describe_forms

    try:
        return describe_forms(), ''
    except ValueError as error:
        return '', str(error)


def diagnose(facts: Facts) -> list[Finding]:
    """Judge what was collected.

    Returns:
        One finding per component. The environment works if none has a problem.
    """
    return [
        check_python(facts),
        check_torch(facts),
        check_torchvision(facts),
        *(check_library(library, facts) for library in LIBRARIES),
        *check_families(facts),
        check_ops(facts),
        check_opencv(facts),
        check_triton(facts),
        check_registry(facts),
        check_operations(facts),
    ]


def check_python(facts: Facts) -> Finding:
    """Judge the version of Python."""
    version = '.'.join(map(str, facts.python))
    if facts.python[:2] < OLDEST_PYTHON:
        remedy = 'make the environment with Python 3.10, 3.11 or 3.12'
        return Finding('Python', version, 'too old', remedy)
    newer = facts.python[:2] > NEWEST_TESTED_PYTHON
    return Finding('Python', f'{version} (newer than what is tested)' if newer else version)


def check_torch(facts: Facts) -> Finding:
    """Judge PyTorch."""
    error = facts.imports.get('torch')
    version = facts.distributions.get('torch', '')
    if error is None:
        return Finding(
            'PyTorch', '', 'not installed', f"pip install 'torch>={dotted(OLDEST_TORCH)}'"
        )
    if error:
        remedy = f'pip install --force-reinstall torch{pinned(version)}'
        return Finding('PyTorch', version, error, remedy)
    if is_older(version, OLDEST_TORCH):
        remedy = f"pip install --upgrade 'torch>={dotted(OLDEST_TORCH)}'"
        return Finding('PyTorch', version, 'too old', remedy)
    return Finding('PyTorch', f'{version}, {facts.torch_build}'.strip(', '))


def check_torchvision(facts: Facts) -> Finding:
    """Judge torchvision, which MMPreTrain and MMRotate need; a wrong one fails other imports."""
    error = facts.imports.get('torchvision')
    remedy = install_torchvision(facts)
    if error is None:
        found = f'not installed (for pre-training: {remedy})'
        return Finding('torchvision', found, absent=True)
    version = facts.distributions.get('torchvision', '')
    if not error:
        return Finding('torchvision', version)
    torch_version = facts.distributions.get('torch', '')
    problem = f'does not fit PyTorch {torch_version}: {error}'
    return Finding('torchvision', version, problem, f'pip uninstall -y torchvision && {remedy}')


def install_torchvision(facts: Facts) -> str:
    """Command that installs the torchvision of this PyTorch, and leaves PyTorch as it is.

    torchvision 0.15 belongs to PyTorch 2.0, and the second numbers have gone in step since.
    """
    version = facts.distributions.get('torch', '')
    numbers = [int(number) for number in re.findall(r'\d+', version.partition('+')[0])[:2]]
    fitting = f'torchvision==0.{numbers[1] + 15}.*' if numbers[:1] == [2] else 'torchvision'
    cuda = re.match(r'CUDA (\d+)\.(\d+)', facts.torch_build)
    build = f'cu{cuda[1]}{cuda[2]}' if cuda else 'cpu'
    index = f'https://download.pytorch.org/whl/{build}'
    return f"pip install --no-deps --index-url {index} '{fitting}'"


def check_library(library: Library, facts: Facts) -> Finding:
    """Judge one OpenMMLab library: there, new enough, importable."""
    error = facts.imports.get(library.module)
    installed = providers(library, facts)
    found = ', '.join(f'{name} {facts.distributions[name]}' for name in installed)
    if error is None:
        return check_absent(library, facts, found)
    for name in installed:
        if is_older(facts.distributions[name], library.oldest):
            problem = f'too old, {dotted(library.oldest)} or newer is needed'
            remedy = f'pip uninstall -y {name} && {install_family(facts)}'
            return Finding(library.module, found, problem, remedy)
    if error and library.module in OPTIONAL:
        return Finding(library.module, f'{found} (cannot be imported: {error})', absent=True)
    if error:
        return Finding(library.module, found, error, repair_import(error, facts))
    return Finding(library.module, found or 'no distribution, imported from a folder')


def check_absent(library: Library, facts: Facts, found: str) -> Finding:
    """Judge an OpenMMLab library that cannot be found."""
    name = library.module
    if found:
        # Another distribution of the same module was uninstalled and took the files along.
        remedy = f'{uninstall_all(facts)} && {install_family(facts)}'
        return Finding(name, found, f'its files are missing, there is no module {name}', remedy)
    others = [task for task in TASK_LIBRARIES if task in facts.imports]
    if library.module in OPTIONAL or (library.module in TASK_LIBRARIES and others):
        return Finding(name, f'not installed ({library.purpose})', absent=True)
    return Finding(name, '', 'not installed', install_family(facts))


def check_families(facts: Facts) -> list[Finding]:
    """Judge whether the maintained and the original distributions overwrite each other's files."""
    # Of mmcv's lite build there is one for both families.
    neutral = {LITE} if has_lite_mmcv(facts) else set()
    installed = [name for library in LIBRARIES for name in providers(library, facts)]
    onedl = [name for name in installed if name.startswith('onedl-')]
    original = [name for name in installed if name not in neutral.union(onedl)]
    if not (onedl and original):
        return []
    found = f'{", ".join(onedl)} and {", ".join(original)}'
    remedy = f'{uninstall_all(facts)} && {install_family(facts)}'
    return [Finding('both families', found, "they overwrite each other's files", remedy)]


def check_ops(facts: Facts) -> Finding:
    """Judge mmcv's compiled operators."""
    name = 'mmcv operators'
    if facts.imports.get('mmcv') != '':
        return Finding(name, 'not checked, mmcv comes first', absent=True)
    error = facts.imports.get('mmcv._ext')
    if error is None and for_segmentation_only(facts):
        return Finding(name, 'none in mmcv-lite: segmentation only, no detectors', absent=True)
    if error is None:
        return Finding(name, '', 'this mmcv has none (RoIAlign, NMS)', rebuild_mmcv(facts))
    if error:
        problem = f'compiled for another build of PyTorch: {error}'
        return Finding(name, '', problem, rebuild_mmcv(facts))
    found = f'compiled with CUDA {facts.ops_cuda}' if facts.ops_cuda else 'compiled for the CPU'
    if facts.gpu and not facts.ops_cuda:
        problem = 'PyTorch sees a GPU, the operators do not'
        return Finding(name, found, problem, rebuild_mmcv(facts, 'FORCE_CUDA=1 '))
    return Finding(name, found)


def check_opencv(facts: Facts) -> Finding:
    """Judge OpenCV, two builds of which get installed over each other."""
    names = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python')
    installed = {name: facts.distributions[name] for name in names if name in facts.distributions}
    found = ', '.join(f'{name} {version}' for name, version in installed.items())
    error = facts.imports.get('cv2')
    if error == '':
        return Finding('OpenCV', found or 'imported from a folder')
    version = next(iter(installed.values()), '')
    remedy = f'pip install --force-reinstall --no-deps opencv-python-headless{pinned(version)}'
    problem = 'not installed' if error is None else error
    if error and 'libGL' in error:
        problem = f'{error} (only the headless build works without it)'
    return Finding('OpenCV', found, problem, remedy)


def check_triton(facts: Facts) -> Finding:
    """Describe Triton, which is optional."""
    error = facts.imports.get('triton')
    if error is None:
        return Finding('Triton', 'not installed (optional, GPU kernels)', absent=True)
    version = facts.distributions.get('triton', '')
    return Finding('Triton', f'{version} (cannot be imported: {error})' if error else version)


def check_registry(facts: Facts) -> Finding:
    """Judge whether a config can name our classes."""
    name = 'registry'
    if not facts.registry_error:
        return Finding(name, "type='mmlska.VAN' is found")
    own = facts.registry_error.startswith('mmlska') and not facts.imports.get('torchvision')
    remedy = (
        'reinstall mmlska; from a checkout: pip install --no-build-isolation --no-deps -e .'
        if own
        else 'repair what stands above'
    )
    return Finding(name, '', facts.registry_error, remedy)


def check_operations(facts: Facts) -> Finding:
    """Say how the large kernels are computed."""
    name = 'large kernels'
    if facts.operations_error:
        return Finding(name, '', facts.operations_error, 'unset MMLSKA_OPS')
    if not facts.operations:
        return Finding(name, 'not checked, the registry comes first', absent=True)
    return Finding(name, facts.operations)


def providers(library: Library, facts: Facts) -> list[str]:
    """Installed distributions that provide a library."""
    return [name for name in (library.onedl, *library.original) if name in facts.distributions]


def has_lite_mmcv(facts: Facts) -> bool:
    """Whether mmcv-lite, and no other build, provides mmcv."""
    library = next(library for library in LIBRARIES if library.module == 'mmcv')
    return providers(library, facts) == [LITE]


def for_segmentation_only(facts: Facts) -> bool:
    """Whether this is an environment without operators, and without the library that needs them."""
    detection = next(library for library in LIBRARIES if library.module == 'mmdet')
    installed = 'mmdet' in facts.imports or providers(detection, facts)
    return has_lite_mmcv(facts) and not installed


def family(facts: Facts) -> str:
    """Extra of mmlska that fits what is installed: ``onedl`` unless all of it is original."""
    installed = [name for library in LIBRARIES for name in providers(library, facts)]
    only_original = installed and not any(name.startswith('onedl-') for name in installed)
    return 'openmmlab' if only_original else 'onedl'


def install_family(facts: Facts) -> str:
    """Command that installs the family of distributions in use, with the right versions."""
    extra = family(facts)
    lite = extra == 'onedl' and for_segmentation_only(facts)
    extra = 'lite' if lite else extra
    target = f"'mmlska[{extra}]'" if 'mmlska' in facts.distributions else f"-e '.[{extra}]'"
    if lite:
        # It asks for the original mmengine, which would overwrite the maintained one.
        return f'pip install {target} && pip install --no-deps {LITE}'
    return f'{install_build_tools(extra)} && pip install --no-build-isolation {target}'


def install_build_tools(extra: str) -> str:
    """Command that installs what compiling mmcv needs."""
    return f"pip install '{SETUPTOOLS[extra]}' wheel ninja packaging"


def uninstall_all(facts: Facts) -> str:
    """Command that removes all distributions of both families."""
    installed = [name for library in LIBRARIES for name in providers(library, facts)]
    return f'pip uninstall -y {" ".join(installed)}'


def rebuild_mmcv(facts: Facts, settings: str = '') -> str:
    """Command that compiles mmcv anew for the PyTorch that is installed.

    pip would otherwise take the wheel that it compiled for another PyTorch from its cache.
    """
    library = next(library for library in LIBRARIES if library.module == 'mmcv')
    kept = [name for name in providers(library, facts) if name in (library.onedl, 'mmcv')]
    if not kept:
        without_ops = ' '.join(providers(library, facts))
        removal = f'pip uninstall -y {without_ops} && ' if without_ops else ''
        return removal + install_family(facts)
    name = kept[0]
    return (
        f'{install_build_tools(family(facts))} && {settings}pip install --force-reinstall '
        f'--no-deps --no-cache-dir --no-build-isolation {name}{pinned(facts.distributions[name])}'
    )


def repair_import(error: str, facts: Facts) -> str:
    """Command that repairs a library which is there but cannot be imported."""
    if 'pkg_resources' in error:
        return f"pip install '{SETUPTOOLS[family(facts)]}'"
    if 'libGL' in error:
        return check_opencv(facts).remedy
    if 'torchvision' in error:
        return check_torchvision(facts).remedy or install_torchvision(facts)
    return install_family(facts)


def is_older(version: str, oldest: tuple[int, ...]) -> bool:
    """Whether a version number is lower than ``oldest``.

    >>> is_older('2.13.0+cpu', (2, 4)), is_older('1.7.2', (2, 0))
    (False, True)
    """
    numbers = tuple(int(part) for part in re.findall(r'\d+', version)[: len(oldest)])
    return bool(numbers) and numbers < oldest


def dotted(version: tuple[int, ...]) -> str:
    """Version number as text."""
    return '.'.join(map(str, version))


def pinned(version: str) -> str:
    """Version as pip wants it behind a name, '' if it is unknown."""
    return f'=={version}' if version else ''


def format_report(findings: list[Finding]) -> str:
    """Table of all findings, followed by the problems and their remedies."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        found = finding.found or finding.problem
        lines.append(f'{finding.state:5}  {finding.name:{width}}  {found}')
    problems = [finding for finding in findings if finding.problem]
    for finding in problems:
        lines += ['', f'{finding.name}: {finding.problem}', f'  {finding.remedy}']
    if not problems:
        lines += ['', 'Everything that is needed is there.']
    return '\n'.join(lines)
