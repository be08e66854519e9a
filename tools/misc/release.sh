#!/usr/bin/env bash
# Build wheel and source archive, check their metadata, install each into an environment of its own, and try it there from
# outside the checkout. `make release` calls it.
set -euo pipefail

if [[ $# -ne 1 ]]; then
    echo "usage: $0 PYTHON, the interpreter of an environment with mmlska's extras [release] and [onedl]" >&2
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
checkout=$PWD
python=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

rm -rf dist
echo '==> Building source archive and wheel'
"$python" -m build --quiet --no-isolation --outdir dist .
"$python" -m twine check --strict dist/*

libraries=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for file in dist/*; do
    echo "==> Trying $file"
    environment=$scratch/$(basename "$file")
    "$python" -m venv "$environment"
    # PyTorch and OpenMMLab's packages are those of the calling environment; its own mmlska stays unseen, since it is
    # installed in editable mode.
    echo "$libraries" > "$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/libraries.pth"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation "$file"
    (cd "$scratch" && env -u PYTHONPATH PYTHONWARNINGS=ignore "$environment/bin/python" "$checkout/tests/smoke.py")
done
echo "==> dist/ is ready: $(cd dist && echo *)"
