#!/bin/sh
# Compresses a model at several rates with every solver, without recovery, and prints the table of
# docs/quality.md.
#
#   scripts/measure.sh MODEL CALIBRATION_TEXT EVALUATION_TEXT OUT_DIR ["RATES"] [OPTION...]
#
# Options go to every `littlebit compress` (for example --eval-tokens 32768 --calibration-samples 64).
# The JSON reports stay in OUT_DIR; a report that is there already is not measured again.
set -eu

model=$1
calibration=$2
evaluation=$3
out=$4
rates=${5:-"2.0 1.0 0.55 0.3 0.1"}
if [ $# -gt 5 ]; then shift 5; else shift $#; fi
here=$(cd "$(dirname "$0")/.." && pwd)
bin=${LLM_QUANTIZE_BIN:-$here/target/release/llm-quantize}

mkdir -p "$out"

# compress NAME RATE OPTION...: a report under OUT_DIR/NAME-RATE.json, unless it is there.
compress() {
    name=$1
    rate=$2
    shift 2
    [ -s "$out/$name-$rate.json" ] && return 0
    if "$bin" --format json littlebit compress "$model" --target-bpw "$rate" \
        -o "$out" -n "$name-$rate.littlebit" --checkpoint-dir "$out/checkpoint" \
        --calibration-data "$calibration" --eval-data "$evaluation" --effort none "$@" \
        >"$out/$name-$rate.tmp" 2>"$out/$name-$rate.log"; then
        mv "$out/$name-$rate.tmp" "$out/$name-$rate.json"
    else
        echo "$name at $rate: $(tail -n 2 "$out/$name-$rate.log" | tr '\n' ' ')" >&2
    fi
}

# value FILE KEY: the first number or string under a key of our pretty-printed JSON.
value() {
    sed -n "s/^ *\"$2\": \(.*[^,]\),\{0,1\}\$/\1/p" "$1" | head -n 1
}

# What is measured with does nothing where nothing is measured.
others=
skip=no
for word in "$@"; do
    case $skip$word in
    no--eval-tokens) skip=yes ;;
    no*) others="$others $word" ;;
    *) skip=no ;;
    esac
done

for rate in $rates; do
    compress admm "$rate" "$@"
    for solver in itq dual-svid; do
        # shellcheck disable=SC2086 # options, one a word
        compress "$solver" "$rate" $others --init "$solver" --skip-validation
    done
done

echo "| bpw | solver | achieved | error | weighted error | file bytes | perplexity before | after | seconds | peak memory bytes |"
echo "|---|---|---|---|---|---|---|---|---|---|"
for rate in $rates; do
    for solver in admm itq dual-svid; do
        report=$out/$solver-$rate.json
        [ -s "$report" ] || continue
        printf '| %s | %s |' "$rate" "$solver"
        for key in achieved_bpw mean_relative_error mean_weighted_error compressed_size_bytes \
            perplexity_original perplexity_compressed duration_seconds peak_memory_bytes; do
            printf ' %s |' "$(value "$report" "$key")"
        done
        echo
    done
done
