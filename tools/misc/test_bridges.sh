#!/usr/bin/env bash
# Make an environment with the frameworks of mmlska/bridges, and run the tests of the bridges in it.
set -euo pipefail

if [[ $# -lt 1 || $1 == -h || $1 == --help ]]; then
    cat <<'USAGE'
usage: test_bridges.sh PYTHON MMCV [argument of pytest ...]

  PYTHON  interpreter that the environment (work_dirs/bridges) is made from
  MMCV    a wheel of onedl-mmcv for torch 2.13.0, or "lite": without compiled operators, which no bridge needs
USAGE
    exit 2
fi
python=$1
mmcv=${2:?name a wheel of onedl-mmcv, or lite}
shift 2
[[ $mmcv == lite ]] || mmcv=$(realpath "$mmcv")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

venv=work_dirs/bridges
"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" 'setuptools<81' torch==2.13.0
# Without its dependencies: pip would take another torch. If its operators do not load, the tests name them.
"${pip[@]}" --no-deps torchvision==0.28.0
"${pip[@]}" torch==2.13.0 timm transformers segmentation-models-pytorch onedl-mmengine opencv-python-headless scipy \
    safetensors pytest hypothesis scikit-image scikit-learn onnx onnxscript
"${pip[@]}" --no-deps ultralytics
"${pip[@]}" torch==2.13.0 psutil polars ultralytics-thop pyyaml requests matplotlib pillow
if [[ $mmcv == lite ]]; then
    # It asks for the original mmengine, which would overwrite the maintained one.
    "${pip[@]}" --no-deps mmcv-lite==2.2.0
else
    "${pip[@]}" --no-deps "$mmcv"
fi
OMP_NUM_THREADS=1 PYTHONPATH=$PWD "$venv/bin/python" -m pytest -q tests/test_bridges "$@"
