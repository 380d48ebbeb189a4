#!/bin/sh
# Installs the Python package gguf and what it needs (NumPy; 78 MB) in a folder of its own and prints its
# path. Needs python3 with pip; what is there already is kept.
#
#   scripts/fetch-python-gguf.sh [FOLDER]        (default: target/python-gguf)
set -eu

folder=${1:-$(dirname "$0")/../target/python-gguf}

mkdir -p "$(dirname "$folder")"
folder=$(cd "$(dirname "$folder")" && pwd)/$(basename "$folder")
if [ ! -d "$folder" ]; then
    part=$folder.part-$$
    trap 'rm -rf "$part"' EXIT
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$part" \
        gguf==0.17.1 >&2
    mv "$part" "$folder"
fi
echo "$folder"
