#!/bin/sh
# Runs the tests of all executables, several at a time: most of them wait for something. Those that measure time or
# memory run alone afterwards. Of each it says one line, and of one that fails everything. The simulation is left out: it
# runs in an optimized build.
#
#   sh tests/run.sh [LANES]
#
# CARGO names the program to build with.
set -u
cargo=${CARGO:-cargo}

# Runs one executable, for xargs.
if [ "${1-}" = one ]; then
    results=$2 executable=$3
    file=$(basename "$executable")
    name=${file%-*}
    begun=$(date +%s)
    if "$executable" >"$results/$file.log" 2>&1; then verdict=ok; else verdict=FAILED; fi
    counts=$(sed -n 's/^test result: [A-Za-z]*\. \([0-9]* passed; [0-9]* failed\).*/\1/p' "$results/$file.log")
    line=$(printf '%-6s %-24s %4d s  %s' "$verdict" "$name" $(($(date +%s) - begun)) "$counts")
    if [ "$verdict" = ok ]; then
        printf '%s\n' "$line"
    else
        # In one piece: others write at the same time.
        touch "$results/$name.failed"
        printf '%s\n%s\n' "$line" "$(cat "$results/$file.log")"
    fi
    exit 0
fi

lanes=${1:-2}
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
$cargo test --locked --no-run || exit 1
# It names each executable in parentheses.
$cargo test --locked --no-run --color never 2>&1 | sed -n 's/^ *Executable .*(\(.*\))$/\1/p' | grep -v '/simulation-' >"$results/all"
[ -s "$results/all" ] || { echo "cargo names no executables of tests"; exit 1; }
measuring='/\(hostile_\|bounds_\|agent_bounds_memory-\|page_bounds-\|edge_forward_bounds-\|edge_fairness-\|database_load-\)'
grep -v "$measuring" "$results/all" | xargs -n 1 -P "$lanes" sh "$0" one "$results" || touch "$results/lanes.failed"
grep "$measuring" "$results/all" | xargs -n 1 sh "$0" one "$results" || touch "$results/measuring.failed"
$cargo test --locked --doc --quiet || touch "$results/documentation.failed"
failed=$(ls "$results" | sed -n 's/\.failed$//p')
[ -z "$failed" ] || { printf 'failed: %s\n' "$(echo $failed)"; exit 1; }
printf 'all tests of %d executables passed\n' "$(wc -l <"$results/all")"
