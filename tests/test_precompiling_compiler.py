"""What the compiler that `make install` names to mmcv's build makes of a call."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / 'requirements' / 'precompiling_cxx.sh'
# Compiles only with the header.
NEEDS_HEADER = 'std::array<int, 3> numbers = {1, 2, 3};\n'

pytestmark = pytest.mark.skipif(shutil.which('g++') is None, reason='there is no g++')


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Calls the compiler on a source, in a folder of its own."""
    (tmp_path / 'bin').mkdir()
    link = tmp_path / 'bin' / 'c++'
    link.symlink_to(SCRIPT)
    monkeypatch.setenv('PRECOMPILE_HEADERS', 'array cstddef')
    monkeypatch.setenv('PRECOMPILE_CXX', 'g++')

    def call(source: str, *options: str) -> subprocess.CompletedProcess:
        (tmp_path / 'one.cpp').write_text(source)
        (tmp_path / 'one.o').unlink(missing_ok=True)
        arguments = ['-MMD', '-MF', 'one.d', *options, '-c', 'one.cpp', '-o', 'one.o']
        return subprocess.run(
            [link, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return call


def test_the_header_is_made_once_and_read_by_every_file(compiler, tmp_path):
    first, second = compiler(NEEDS_HEADER, '-O1'), compiler(NEEDS_HEADER, '-O1')
    assert (first.returncode, second.returncode) == (0, 0)
    assert 'precompiled header: made in' in first.stdout and not second.stdout
    assert (tmp_path / 'one.o').stat().st_size and (tmp_path / 'one.d').exists()


def test_other_options_read_no_header_and_compile(compiler, tmp_path):
    assert compiler(NEEDS_HEADER, '-O1').returncode == 0
    # GCC takes no header of another standard; the file of its name has nothing to read.
    other = compiler('int zero = 0;\n', '-O1', '-std=c++14')
    assert other.returncode == 0 and 'invalid-pch' in other.stderr
    assert 'array' not in (tmp_path / 'one.d').read_text()


def test_what_fails_with_the_header_is_compiled_without_it(compiler):
    own = 'namespace std { template <typename T, unsigned long N> struct array {}; }\n'
    done = compiler(own)
    assert done.returncode == 0
    assert 'a file failed with it, and is compiled without it now' in done.stdout


def test_a_fault_of_the_source_stays_one(compiler, tmp_path):
    done = compiler('int wrong = "text";\n')
    assert done.returncode == 1 and 'invalid conversion' in done.stderr
    assert not (tmp_path / 'one.o').exists()


def test_a_header_that_cannot_be_made_costs_nothing(compiler, monkeypatch):
    monkeypatch.setenv('PRECOMPILE_HEADERS', 'no/such/header.h')
    first, second = compiler('int zero = 0;\n'), compiler('int zero = 0;\n')
    assert (first.returncode, second.returncode) == (0, 0)
    assert 'precompiled header: none' in first.stdout and not second.stdout


def test_of_another_compiler_no_header_is_asked(compiler, monkeypatch, tmp_path):
    other = tmp_path / 'clang++'
    other.write_text('#!/bin/sh\nexec g++ -D__clang__ "$@"\n')
    other.chmod(0o755)
    monkeypatch.setenv('PRECOMPILE_CXX', str(other))
    done = compiler('int zero = 0;\n')
    assert done.returncode == 0 and 'precompiled header: none' in done.stdout
    assert 'this is not GCC' in (tmp_path / 'bin' / 'log').read_text()


def test_a_launcher_may_stand_before_the_compiler(compiler, monkeypatch):
    monkeypatch.setenv('PRECOMPILE_CXX', 'env LC_ALL=C g++ -O1')
    assert compiler(NEEDS_HEADER).returncode == 0


def test_what_does_not_compile_is_handed_on(compiler, tmp_path):
    link = tmp_path / 'bin' / 'c++'
    version = subprocess.check_output([link, '-dumpversion'], text=True)
    assert version == subprocess.check_output(['g++', '-dumpversion'], text=True)
    assert os.listdir(link.parent) == ['c++']
