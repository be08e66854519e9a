#!/usr/bin/env bash
# Unpacks ADE20K as its scene parsing challenge published it (2016), wherever it lies below a folder; `mim download` calls it.
set -euo pipefail

if [[ $# -ne 2 ]]; then
    echo "usage: $0 DOWNLOADS DATA_ROOT, e.g. $0 downloads data/ade" >&2
    exit 2
fi
downloads=$1
data_root=$2

archive=$(find "$downloads" -name 'ADEChallengeData2016.zip' -print -quit)
if [[ -z $archive ]]; then
    echo "error: there is no ADEChallengeData2016.zip below $downloads" >&2
    exit 1
fi
mkdir -p "$data_root"
echo "unpacking $archive into $data_root"
# Files that are there are kept: an interrupted run goes on.
unzip -q -n "$archive" -d "$data_root"
for folder in images/training annotations/validation; do
    if [[ ! -d $data_root/ADEChallengeData2016/$folder ]]; then
        echo "error: $archive holds no ADEChallengeData2016/$folder" >&2
        exit 1
    fi
done
