#!/usr/bin/env bash
# Fuzzes everything that reads bytes from outside, one target after the other. Installs what is missing.
#
#   scripts/fuzz.sh [TARGET…]      all targets of fuzz/fuzz_targets/ when none is named
#
#   FUZZ_SECONDS=120   for each target
#   FUZZ_MEMORY=512    the most memory that a target may take, in MiB
#
# Coverage without sanitizers: works on stable Rust, with debug assertions and overflow checks. What a run has
# found out stays in fuzz/corpus/ for the next one; an input that fails is kept in fuzz/artifacts/ and printed.
# Exit codes: 0 no target failed, 1 one failed, 2 something has to be installed by hand.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
seconds=${FUZZ_SECONDS:-120}
memory=${FUZZ_MEMORY:-512}
target_dir=${FUZZ_TARGET_DIR:-$HOME/.cache/tidegate/fuzz}
tools=$HOME/.cache/tidegate/tools
triple=$(rustc -vV | sed -n 's/^host: //p')
export PATH=$PATH:$tools/bin

if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "cargo-fuzz is missing: installing it into $tools"
    CARGO_TARGET_DIR=$target_dir/tools cargo install cargo-fuzz --locked --quiet --root "$tools" || {
        echo "cargo-fuzz cannot be installed; try: cargo install cargo-fuzz --locked" >&2
        exit 2
    }
fi

cd "$root"
# Not into the main build's folder: everything here is compiled with coverage.
unset CARGO_TARGET_DIR
options=(--sanitizer none --target "$triple" --target-dir "$target_dir")
if [ $# -eq 0 ]; then
    for file in fuzz/fuzz_targets/*.rs; do set -- "$@" "$(basename "$file" .rs)"; done
fi
cargo fuzz build "${options[@]}"

failed=()
printf '%-16s %12s %10s %14s %10s\n' target executions per-second coverage memory
for target in "$@"; do
    log=$target_dir/$target.log
    mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
    corpora=("fuzz/corpus/$target")
    if [ -d "fuzz/seeds/$target" ]; then corpora+=("fuzz/seeds/$target"); fi
    limits=(-max_total_time="$seconds" -rss_limit_mb="$memory" -timeout=10 -max_len=65536)
    words=()
    if [ -f "fuzz/seeds/$target.dict" ]; then words=(-dict="fuzz/seeds/$target.dict"); fi
    status=ok
    "$target_dir/$triple/release/$target" "${limits[@]}" "${words[@]}" -print_final_stats=1 \
        -artifact_prefix="fuzz/artifacts/$target/" "${corpora[@]}" >"$log" 2>&1 || status=failed
    statistic() { sed -n "s/^stat::$1: *//p" "$log"; }
    # Edges covered by what was known before, and in the end.
    first=$(grep -m1 -oE 'INITED cov: [0-9]+' "$log" | grep -oE '[0-9]+$' || echo 0)
    last=$(grep -oE ' cov: [0-9]+' "$log" | tail -1 | grep -oE '[0-9]+$' || echo 0)
    printf '%-16s %12s %10s %14s %7s MiB\n' "$target" "$(statistic number_of_executed_units)" \
        "$(statistic average_exec_per_sec)" "$first -> $last" "$(statistic peak_rss_mb)"
    if [ "$status" = failed ]; then
        failed+=("$target")
        grep -vE '^(#[0-9]|INFO|stat::)' "$log" | tail -30
    fi
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; run one input again with $target_dir/$triple/release/TARGET fuzz/artifacts/TARGET/FILE" >&2
    exit 1
fi
