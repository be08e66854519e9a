#!/usr/bin/env bash
# Unpacks the archives of COCO 2017 that the configs need, wherever they lie below a folder; `mim download` calls it.
set -euo pipefail

if [[ $# -ne 2 ]]; then
    echo "usage: $0 DOWNLOADS DATA_ROOT, e.g. $0 downloads data/coco" >&2
    exit 2
fi
downloads=$1
data_root=$2

mkdir -p "$data_root"
for name in annotations_trainval2017 train2017 val2017; do
    archive=$(find "$downloads" -name "$name.zip" -print -quit)
    if [[ -z $archive ]]; then
        echo "error: there is no $name.zip below $downloads" >&2
        exit 1
    fi
    echo "unpacking $archive into $data_root"
    # Files that are there are kept: an interrupted run goes on.
    unzip -q -n "$archive" -d "$data_root"
done
