"""What is beside the code: source archive, index page, container, hosted CI, data sets."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
UNPACKERS = REPOSITORY / 'tools' / 'dataset_tools'


def run(*command, **options):
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )


@pytest.fixture(scope='module')
def source_archive(tmp_path_factory):
    """The files of a source archive that is built from a clean copy of the checkout."""
    if not (REPOSITORY / '.git').exists():
        pytest.skip('this is no git checkout')
    listed = run('git', 'ls-files', cwd=REPOSITORY)
    tracked = listed.stdout.split()
    copy = tmp_path_factory.mktemp('checkout')
    for name in tracked:
        if (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, copy / name)
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    built = run(sys.executable, '-c', code, cwd=copy)
    assert built.returncode == 0, built.stderr
    (archive,) = (copy / 'dist').iterdir()
    with tarfile.open(archive) as opened:
        opened.extractall(copy / 'unpacked', filter='data')
    (unpacked,) = (copy / 'unpacked').iterdir()
    return tracked, unpacked


def test_the_source_archive_holds_every_file_of_the_repository(source_archive):
    tracked, unpacked = source_archive
    assert len(tracked) > 500
    assert [name for name in tracked if not (unpacked / name).exists()] == []


def test_the_page_of_the_index_links_to_the_repository_alone(source_archive):
    _, unpacked = source_archive
    page = message_from_string((unpacked / 'PKG-INFO').read_text(encoding='utf-8'))
    home = page['Home-page']
    assert home.startswith('https://')
    assert {entry.split(',')[0] for entry in page.get_all('Project-URL')} == {
        *('Documentation', 'Source', 'Issues', 'Changelog'),
    }
    assert page['Description-Content-Type'] == 'text/markdown'
    targets = re.findall(r'\]\(([^)\s]+)\)', page.get_payload())
    own = [target for target in targets if target.startswith(home)]
    assert len(own) > 20
    assert [target for target in targets if not re.match(r'https?://|#', target)] == []
    for target in own:
        kind, branch, path = target.removeprefix(f'{home}/').split('#')[0].split('/', 2)
        assert branch == 'main' and (REPOSITORY / path).exists(), target
        assert (kind == 'raw') == (Path(path).suffix in ('.png', '.jpg', '.svg')), target


def test_hosted_ci_calls_targets_and_stacks_that_exist():
    workflow = yaml.safe_load((REPOSITORY / '.github' / 'workflows' / 'test.yml').read_text())
    jobs = workflow['jobs']
    makefile = (REPOSITORY / 'Makefile').read_text()
    commands = [step['run'] for job in jobs.values() for step in job['steps'] if 'run' in step]
    targets = [command.split()[1] for command in commands if command.startswith('make ')]
    assert targets == ['test', 'lint', 'release']
    assert all(re.search(rf'^{target}:', makefile, re.M) for target in targets)
    script = (REPOSITORY / 'tools' / 'misc' / 'test_stack.sh').read_text()
    stacks = re.search(r"^STACKS='(.*)'$", script, re.M)[1].split()
    matrix = jobs['stacks']['strategy']['matrix']['include']
    assert {entry['stack'] for entry in matrix} == set(stacks) - {'onedl'}
    assert jobs['maintained']['strategy']['matrix']['python'] == ['3.10', '3.11', '3.12']


@pytest.mark.parametrize('name', ['bug.yml', 'wish.yml', 'question.yml'])
def test_issue_forms_ask_for_something(name):
    form = yaml.safe_load((REPOSITORY / '.github' / 'ISSUE_TEMPLATE' / name).read_text())
    assert form['name'] and form['description']
    assert any(field.get('validations', {}).get('required') for field in form['body'])
    identities = [field['id'] for field in form['body']]
    assert len(set(identities)) == len(identities)


def test_hadolint_finds_nothing_in_the_dockerfile():
    hadolint = shutil.which('hadolint', path=str(Path(sys.executable).parent)) or shutil.which(
        'hadolint'
    )
    if hadolint is None:
        pytest.skip('hadolint is not installed')
    result = run(hadolint, REPOSITORY / 'Dockerfile')
    assert (result.returncode, result.stdout) == (0, '')


@pytest.mark.slow
def test_the_dockerfile_builds():
    if shutil.which('docker') is None or run('docker', 'info').returncode:
        pytest.skip('no docker daemon runs here')
    result = run('docker', 'build', '--quiet', REPOSITORY)
    assert result.returncode == 0, result.stderr
    check = run('docker', 'run', '--rm', result.stdout.strip(), 'python', '-m', 'mmlska', 'check')
    assert check.returncode == 0, check.stdout


def archive(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w') as opened:
        for name in names:
            opened.writestr(name, 'content')


def test_the_dataset_index_names_scripts_and_folders_of_the_configs():
    index = yaml.safe_load((REPOSITORY / 'dataset-index.yml').read_text())
    assert index.pop('openxlab') is True
    assert set(index) == {'coco2017', 'ade20k'}
    assert all((REPOSITORY / entry['script']).is_file() for entry in index.values())
    assert {entry['data_root'] for entry in index.values()} == {'data/coco', 'data/ade'}


@pytest.mark.skipif(shutil.which('unzip') is None, reason='unzip is not installed')
class TestUnpacking:
    def test_coco(self, tmp_path):
        raw = tmp_path / 'data' / 'OpenDataLab___COCO_2017' / 'raw'
        archive(raw / 'Images' / 'train2017.zip', 'train2017/1.jpg')
        archive(raw / 'Images' / 'val2017.zip', 'val2017/2.jpg')
        archive(raw / 'Annotations' / 'annotations_trainval2017.zip', 'annotations/x.json')
        target = tmp_path / 'data' / 'coco'
        for _ in range(2):
            result = run(UNPACKERS / 'unpack_coco.sh', tmp_path / 'data', target)
            assert result.returncode == 0, result.stderr
        found = {str(path.relative_to(target)) for path in target.rglob('*') if path.is_file()}
        assert found == {'train2017/1.jpg', 'val2017/2.jpg', 'annotations/x.json'}

    def test_ade20k(self, tmp_path):
        names = ('images/training/1.jpg', 'annotations/validation/2.png')
        archive(
            tmp_path / 'raw' / 'ADEChallengeData2016.zip',
            *(f'ADEChallengeData2016/{name}' for name in names),
        )
        result = run(UNPACKERS / 'unpack_ade20k.sh', tmp_path, tmp_path / 'data' / 'ade')
        assert result.returncode == 0, result.stderr
        assert (tmp_path / 'data' / 'ade' / 'ADEChallengeData2016' / names[0]).is_file()

    def test_what_is_missing_is_named(self, tmp_path):
        result = run(UNPACKERS / 'unpack_coco.sh', tmp_path, tmp_path / 'coco')
        assert result.returncode == 1
        assert f'there is no annotations_trainval2017.zip below {tmp_path}' in result.stderr
        archive(tmp_path / 'ADEChallengeData2016.zip', 'other/1.jpg')
        result = run(UNPACKERS / 'unpack_ade20k.sh', tmp_path, tmp_path / 'ade')
        assert result.returncode == 1
        assert 'holds no ADEChallengeData2016/images/training' in result.stderr
        assert run(UNPACKERS / 'unpack_ade20k.sh').returncode == 2
