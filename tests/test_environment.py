import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mmlska.environment import Facts, diagnose, format_report, import_error, module_exists

REPOSITORY = Path(__file__).resolve().parent.parent
ONEDL = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
}
ORIGINAL = {'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0', 'mmsegmentation': '1.2.2'}
OTHERS = {'mmlska': '0.1.0', 'torch': '2.13.0+cpu', 'opencv-python-headless': '4.12.0.88'}
MODULES = ('torch', 'cv2', 'mmengine', 'mmcv', 'mmcv._ext', 'mmdet', 'mmseg')
GOOD = Facts(
    python=(3, 11, 7),
    distributions={**ONEDL, **OTHERS},
    imports=dict.fromkeys(MODULES, ''),
    torch_build='CPU build, no GPU',
)


def without(mapping, *names):
    return {name: value for name, value in mapping.items() if name not in names}


def problems(facts):
    return {item.name: item for item in diagnose(facts) if item.problem}


@pytest.mark.parametrize('family', [ONEDL, ORIGINAL])
def test_either_family_alone_is_fine(family):
    facts = replace(GOOD, distributions={**family, **OTHERS})
    assert problems(facts) == {}
    report = format_report(diagnose(facts))
    for name, version in family.items():
        assert f'{name} {version}' in report
    assert '3.11.7' in report
    assert 'CPU build' in report


def test_bare_environment_names_everything_that_is_needed():
    found = problems(Facts((3, 11, 7), {}, {}, registry_error='mmengine: No module'))
    assert set(found) == {'PyTorch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'OpenCV', 'registry'}
    assert found['PyTorch'].remedy.startswith('pip install')
    assert "-e '.[onedl]'" in found['mmcv'].remedy
    assert '--no-build-isolation' in found['mmcv'].remedy


@pytest.mark.parametrize(
    ('module', 'distribution'), [('mmdet', 'onedl-mmdetection'), ('mmseg', 'onedl-mmsegmentation')]
)
def test_one_task_library_is_enough(module, distribution):
    facts = replace(
        GOOD,
        distributions=without(GOOD.distributions, distribution),
        imports=without(GOOD.imports, module),
    )
    assert problems(facts) == {}
    (row,) = [item for item in diagnose(facts) if item.name == module]
    assert row.state == '-'
    assert 'not installed' in row.found


def test_mixed_families_are_refused():
    facts = replace(GOOD, distributions={**GOOD.distributions, 'mmcv': '2.1.0'})
    found = problems(facts)
    assert set(found) == {'both families'}
    remedy = found['both families'].remedy
    assert found['both families'].found == f'{", ".join(ONEDL)} and mmcv'
    assert remedy.startswith('pip uninstall -y ')
    removed = remedy.split('&&')[0].split()[3:]
    assert set(removed) == {*ONEDL, 'mmcv'}
    assert "'mmlska[onedl]'" in remedy


def test_registered_distribution_without_files():
    facts = replace(GOOD, imports=without(GOOD.imports, 'mmdet'))
    found = problems(facts)
    assert set(found) == {'mmdet'}
    assert 'files are missing' in found['mmdet'].problem
    assert 'onedl-mmdetection' in found['mmdet'].remedy


@pytest.mark.parametrize('name', ['mmcv-lite', 'mmcv-full', 'onedl-mmcv'])
def test_mmcv_without_operators(name):
    family = {**without(ORIGINAL if name != 'onedl-mmcv' else ONEDL, 'mmcv'), name: '2.1.0'}
    facts = replace(
        GOOD, distributions={**family, **OTHERS}, imports=without(GOOD.imports, 'mmcv._ext')
    )
    found = problems(facts)
    assert set(found) == {'mmcv operators'}
    remedy = found['mmcv operators'].remedy
    assert ('--no-cache-dir' in remedy) == (name == 'onedl-mmcv')
    assert (f'pip uninstall -y {name}' in remedy) == (name != 'onedl-mmcv')


LITE = replace(
    GOOD,
    distributions={
        **without(ONEDL, 'onedl-mmcv', 'onedl-mmdetection'),
        **OTHERS,
        'mmcv-lite': '2.2.0',
    },
    imports=without(GOOD.imports, 'mmcv._ext', 'mmdet'),
)


def test_without_operators_there_is_segmentation_only():
    assert problems(LITE) == {}
    assert 'none in mmcv-lite: segmentation only, no detectors' in format_report(diagnose(LITE))


@pytest.mark.parametrize('added', [{'mmengine': '0.10.7'}, {'onedl-mmcv': '2.3.6'}])
def test_what_overwrites_files_of_the_lite_stack_is_named(added):
    facts = replace(LITE, distributions={**LITE.distributions, **added})
    found = problems(facts)['both families']
    assert set(added) <= set(found.remedy.split('&&')[0].split())
    # Without operators the remedy compiles nothing, and leaves out what overwrote the files.
    if 'mmengine' in added:
        assert found.remedy.endswith(
            "&& pip install 'mmlska[lite]' && pip install --no-deps mmcv-lite"
        )


def test_operators_of_another_torch():
    error = 'ImportError: _ext.so: undefined symbol: _ZN3c10'
    found = problems(replace(GOOD, imports={**GOOD.imports, 'mmcv._ext': error}))
    assert set(found) == {'mmcv operators'}
    assert 'another build of PyTorch' in found['mmcv operators'].problem
    assert 'undefined symbol' in found['mmcv operators'].problem
    assert '--no-cache-dir --no-build-isolation onedl-mmcv==2.3.6' in (
        found['mmcv operators'].remedy
    )


@pytest.mark.parametrize(
    ('torch', 'build', 'command'),
    [
        ('2.13.0+cpu', 'CPU build, no GPU', "whl/cpu 'torchvision==0.28.*'"),
        ('2.1.2', 'CUDA 11.8 build, no GPU', "whl/cu118 'torchvision==0.16.*'"),
        ('2.10.0+cu128', 'CUDA 12.8 build, H200', "whl/cu128 'torchvision==0.25.*'"),
    ],
)
def test_a_torchvision_that_does_not_fit_is_named_with_the_one_that_does(torch, build, command):
    error = 'RuntimeError: operator torchvision::nms does not exist'
    facts = replace(
        GOOD,
        distributions={**GOOD.distributions, 'torch': torch, 'torchvision': '0.19.0'},
        imports={**GOOD.imports, 'torchvision': error, 'mmdet': error},
        torch_build=build,
        registry_error=f'mmlska.models: {error}',
    )
    found = problems(facts)
    assert set(found) == {'torchvision', 'mmdet', 'registry'}
    assert f'does not fit PyTorch {torch}: {error}' in found['torchvision'].problem
    for name in ('torchvision', 'mmdet'):
        assert found[name].remedy.endswith(command) and '--no-deps' in found[name].remedy
    assert found['registry'].remedy == 'repair what stands above'


@pytest.mark.parametrize(('ops_cuda', 'expected'), [('', {'mmcv operators'}), ('12.9', set())])
def test_operators_must_fit_the_gpu(ops_cuda, expected):
    facts = replace(GOOD, gpu=True, torch_build='CUDA 12.9 build, H200', ops_cuda=ops_cuda)
    found = problems(facts)
    assert set(found) == expected
    assert all('FORCE_CUDA=1 pip install' in item.remedy for item in found.values())


def test_opencv_without_libgl():
    error = 'ImportError: libGL.so.1: cannot open shared object file'
    distributions = {**GOOD.distributions, 'opencv-python': '4.12.0.88'}
    imports = {**GOOD.imports, 'cv2': error, 'mmcv': error, 'mmdet': error}
    found = problems(replace(GOOD, distributions=distributions, imports=imports))
    remedy = 'pip install --force-reinstall --no-deps opencv-python-headless==4.12.0.88'
    assert {name: item.remedy for name, item in found.items()} == dict.fromkeys(
        ('mmcv', 'mmdet', 'OpenCV'), remedy
    )


def test_original_mmengine_without_pkg_resources():
    error = "ModuleNotFoundError: No module named 'pkg_resources'"
    found = problems(
        replace(
            GOOD,
            distributions={**ORIGINAL, **OTHERS},
            imports={**GOOD.imports, 'mmengine': error},
        )
    )
    assert found['mmengine'].remedy == "pip install 'setuptools<70'"


def test_refused_mmcv_is_replaced_by_the_original_set():
    error = 'AssertionError: MMCV==2.2.0 is used but incompatible.'
    found = problems(
        replace(
            GOOD,
            distributions={**ORIGINAL, **OTHERS, 'mmcv': '2.2.0'},
            imports={**GOOD.imports, 'mmdet': error},
        )
    )
    assert set(found) == {'mmdet'}
    assert found['mmdet'].problem == error
    assert "'mmlska[openmmlab]'" in found['mmdet'].remedy


def test_broken_mmpretrain_is_told_but_no_obstacle():
    error = "ModuleNotFoundError: No module named 'torchvision'"
    facts = replace(
        GOOD,
        distributions={**GOOD.distributions, 'onedl-mmpretrain': '1.3.6'},
        imports={**GOOD.imports, 'mmpretrain': error},
    )
    assert problems(facts) == {}
    assert f'onedl-mmpretrain 1.3.6 (cannot be imported: {error})' in format_report(diagnose(facts))


@pytest.mark.parametrize(
    ('name', 'version', 'row'),
    [
        ('mmdet', '2.28.2', 'mmdet'),
        ('mmcv', '1.7.2', 'mmcv'),
        ('mmsegmentation', '0.30.0', 'mmseg'),
        ('torch', '1.13.1', 'PyTorch'),
    ],
)
def test_versions_of_the_old_generation(name, version, row):
    found = problems(replace(GOOD, distributions={**ORIGINAL, **OTHERS, name: version}))
    assert set(found) == {row}
    assert 'too old' in found[row].problem


@pytest.mark.parametrize(
    ('python', 'bad', 'words'),
    [((3, 9, 18), True, '3.9.18'), ((3, 12, 1), False, '3.12.1'), ((3, 13, 0), False, 'newer')],
)
def test_python(python, bad, words):
    facts = replace(GOOD, python=python)
    assert ('Python' in problems(facts)) == bad
    assert words in format_report(diagnose(facts))


def test_broken_registry_says_why():
    error = "mmlska.models: ImportError: cannot import name 'x'"
    found = problems(replace(GOOD, registry_error=error))
    assert set(found) == {'registry'}
    assert found['registry'].problem == error
    assert '-e .' in found['registry'].remedy


def test_triton_is_optional_but_described():
    imports = {**GOOD.imports, 'triton': 'ImportError: no ptxas'}
    facts = replace(GOOD, imports=imports, distributions={**GOOD.distributions, 'triton': '3.6'})
    assert problems(facts) == {}
    assert '3.6 (cannot be imported: ImportError: no ptxas)' in format_report(diagnose(facts))


def test_it_says_how_large_kernels_are_computed():
    facts = replace(GOOD, operations='on the GPU (H200): kernels in Triton')
    assert problems(facts) == {}
    assert 'on the GPU (H200): kernels in Triton' in format_report(diagnose(facts))
    found = problems(replace(GOOD, operations_error="MMLSKA_OPS is 'gpu', but must be one of"))
    assert set(found) == {'large kernels'}
    assert found['large kernels'].remedy == 'unset MMLSKA_OPS'


def test_report_ends_with_the_remedies():
    lines = format_report(diagnose(replace(GOOD, imports=without(GOOD.imports, 'cv2'))))
    assert lines.splitlines()[-2:] == [
        'OpenCV: not installed',
        '  pip install --force-reinstall --no-deps opencv-python-headless==4.12.0.88',
    ]


def test_import_errors_are_described(tmp_path, monkeypatch):
    (tmp_path / 'broken_module.py').write_text("raise AssertionError('first\\nsecond')")
    monkeypatch.syspath_prepend(tmp_path)
    assert module_exists('broken_module')
    assert import_error('broken_module') == 'AssertionError: first'
    assert not module_exists('broken_module.child')
    assert not module_exists('absent_module')
    assert import_error('json') == ''


def run_module(*arguments, **options):
    command = [sys.executable, '-m', 'mmlska', *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.slow
def test_check_passes_here():
    pytest.importorskip('mmdet')
    result = run_module('check')
    assert result.returncode == 0, result.stdout + result.stderr
    assert "type='mmlska.VAN' is found" in result.stdout
    assert 'Everything that is needed is there.' in result.stdout


def test_check_reports_packages_that_do_not_import(tmp_path):
    """Each module is shadowed by one that raises, and the command lives through all of them."""
    for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'cv2', 'triton'):
        (tmp_path / f'{name}.py').write_text(f"raise RuntimeError('{name} is shadowed')")
    result = run_module('check', env={'PYTHONPATH': str(tmp_path)})
    assert result.returncode == 1, result.stderr
    assert result.stderr == ''
    for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'cv2'):
        assert f'RuntimeError: {name} is shadowed' in result.stdout
    assert 'pip install' in result.stdout


@pytest.mark.slow
def test_check_notices_what_only_the_models_of_a_library_need(tmp_path):
    (tmp_path / 'mmpretrain' / 'models').mkdir(parents=True)
    (tmp_path / 'mmpretrain' / '__init__.py').touch()
    (tmp_path / 'mmpretrain' / 'models' / '__init__.py').write_text('import torchvizion')
    result = run_module('check', env={'PYTHONPATH': str(tmp_path)})
    assert "(cannot be imported: ModuleNotFoundError: No module named 'torchvizion')" in (
        result.stdout
    )


def test_check_without_any_package():
    """Without site-packages nothing but the standard library and mmlska itself is found."""
    command = [sys.executable, '-S', '-m', 'mmlska', 'check']
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert result.stderr == ''
    for name in ('PyTorch', 'mmengine', 'mmcv', 'OpenCV'):
        assert f'{name}: not installed' in result.stdout


@pytest.mark.parametrize('arguments', [['--help'], ['check', '--help'], ['configs', '--help']])
def test_help(arguments):
    result = run_module(*arguments)
    assert result.returncode == 0
    assert result.stdout.startswith('usage: python -m mmlska')


@pytest.mark.parametrize('arguments', [[], ['chekc']])
def test_unknown_command_names_the_known_ones(arguments):
    result = run_module(*arguments)
    assert result.returncode == 2
    assert 'check' in result.stderr
    assert 'configs' in result.stderr
