#!/usr/bin/env bash
# Run the unit tests of this checkout in a virtual environment of its own, on one stack of PyTorch and OpenMMLab.
set -euo pipefail

STACKS='onedl onedl-oldest openmmlab torch-only'

usage() {
    cat <<'USAGE'
usage: test_stack.sh [option ...] PYTHON STACK [argument of pytest ...]

  PYTHON  interpreter that the environment is made from, 3.10 to 3.12
  STACK   onedl         the maintained distributions, torch 2.13.0; compiles mmcv unless a wheel is found
          onedl-oldest  onedl-mmengine and mmcv-lite on torch 2.4.1: no compiled operators, mmdet or mmseg; Python 3.10 to 3.12
          openmmlab     the original distributions, mmcv 2.1 and torch 2.1.2; Python 3.10 only
          torch-only    nothing but torch 2.1.2: the tests that hold this of the layers; Python 3.10 or 3.11

options
  --dir DIR          folder of the environment (work_dirs/stacks/STACK-pyVERSION); one that exists is installed into again
  --find-links PATH  folder or page of ready wheels, of mmcv above all; may be repeated
  --dry-run          print the commands, run none

The tests run with -m 'not slow'; arguments of pytest are added. Example:
  tools/misc/test_stack.sh --find-links ~/wheels python3.10 openmmlab tests/test_layers -x
USAGE
}

fail() {
    printf 'test_stack.sh: error: %s\n' "$1" >&2
    exit 2
}

run() {
    printf '+%s\n' "$(printf ' %q' "$@")"
    [ "$dry_run" = 1 ] || "$@"
}

pip() {
    run "$venv/bin/python" -m pip install --disable-pip-version-check --quiet "${links[@]}" "$@"
}

# As `make install` does it, which compiles mmcv in a quarter of the time.
install_onedl() {
    local places=
    [ "${#links[@]}" = 0 ] || printf -v places '%q ' "${links[@]}"
    run make install PYTHON="$python" VENV="$venv" TORCH_SPEC=torch==2.13.0 TORCH_ARGS="$places" MMCV_ARGS="$places"
}

install_onedl_oldest() {
    pip 'setuptools<70' wheel
    pip torch==2.4.1 'numpy<2.3' safetensors pytest hypothesis onedl-mmengine==0.10.12
    # It asks for the original mmengine, which would overwrite the maintained one.
    pip --no-deps mmcv-lite==2.2.0
}

install_openmmlab() {
    pip 'setuptools<70' wheel ninja 'numpy<2'
    pip torch==2.1.2 'numpy<2'
    # mmcv compiles against the torch that is installed, by the setuptools that is.
    pip --no-build-isolation --editable '.[openmmlab]' mmcv==2.1.0 mmengine==0.10.7 mmdet==3.3.0 \
        mmsegmentation==1.2.2 pytest hypothesis
}

install_torch_only() {
    pip torch==2.1.2 'numpy<2' pytest hypothesis
}

dry_run=0
folder=
links=()
while [ "$#" -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --dry-run) dry_run=1 && shift ;;
        --dir | --find-links)
            [ "$#" -ge 2 ] || fail "$1 needs a value"
            if [ "$1" = --dir ]; then folder=$2; else links+=(--find-links "$2"); fi
            shift 2
            ;;
        -*) fail "there is no option $1; --help lists them (arguments of pytest come after STACK)" ;;
        *) break ;;
    esac
done
[ "$#" -ge 2 ] || { usage >&2 && exit 2; }
python=$1 stack=$2
shift 2

case "$stack" in
    onedl | onedl-oldest) allowed='3.10 3.11 3.12' ;;
    openmmlab) allowed='3.10' ;;
    torch-only) allowed='3.10 3.11' ;;
    *) fail "there is no stack '$stack'; choose one of: $STACKS" ;;
esac
command -v "$python" > /dev/null || fail "there is no interpreter '$python'"
python=$(command -v "$python")
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case " $allowed " in
    *" $version "*) ;;
    *) fail "the stack $stack needs Python ${allowed// / or }, and $python is $version" ;;
esac

# Relative paths mean the folder that the user stands in, and the tests run in the checkout.
here=$PWD
cd "$(dirname "$0")/../.."
venv=${folder:-$PWD/work_dirs/stacks/$stack-py$version}
case "$venv" in /*) ;; *) venv=$here/$venv ;; esac
for place in "${!links[@]}"; do
    [ ! -e "$here/${links[$place]}" ] || links[place]=$here/${links[$place]}
done

run "$python" -m venv "$venv"
"install_${stack//-/_}"
tests=()
# One of these laws is about mmengine without mmcv.
laws=tests/test_layers/test_without_openmmlab.py
[ "$stack" != torch-only ] || tests=(--noconftest "$laws" --deselect
    "$laws::test_an_unknown_name_is_told_as_such_where_mmengine_is_and_mmcv_is_not")
[ "$stack" != onedl-oldest ] || tests=(tests/test_layers tests/test_ops)
[ "$#" = 0 ] || tests+=("$@")
# The second folder holds what tests share; without a conftest file pytest does not add it.
run env OMP_NUM_THREADS=1 PYTHONPATH="$PWD:$PWD/tests" "$venv/bin/python" -m pytest -q -m 'not slow' "${tests[@]}"
