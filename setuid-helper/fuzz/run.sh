#!/bin/sh
# run.sh SECONDS [TARGET ...]: build the fuzzers, and run each for so long on one core. What they find worth keeping
# goes to target/corpus, what breaks a property to target/artifacts. To keep the former: the program with
# -merge=1 corpus/TARGET target/corpus/TARGET.
set -eu
cd "$(dirname "$0")"
seconds=$1
shift
[ $# -gt 0 ] || set -- plan policy record environment
command -v cargo >/dev/null || { echo "make fuzz needs cargo" >&2; exit 1; }
command -v c++ >/dev/null || { echo "make fuzz needs a C++ compiler (apt-get install g++)" >&2; exit 1; }
host=$(rustc -vV | sed -n 's/^host: //p')
# What cargo-fuzz would pass, but for the address sanitizer: all unsafe code is in one module that no target enters.
# --target keeps the flags from the build scripts.
export RUSTFLAGS="--cfg fuzzing -C codegen-units=1 -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares"
cargo build --locked --quiet --target "$host"
for target in "$@"; do
    program=target/$host/debug/$target
    found=target/corpus/$target
    mkdir -p "$found" target/artifacts corpus/"$target"
    seeds=
    case $target in
    plan) seeds=../../tests/vectors ;;
    esac
    echo "$target: $seconds seconds"
    nice "$program" -max_total_time="$seconds" -artifact_prefix=target/artifacts/"$target"- -print_final_stats=1 \
        -max_len=4096 -timeout=10 -rss_limit_mb=2048 -verbosity=1 "$found" corpus/"$target" $seeds 2>target/"$target".log ||
        { tail -n 30 target/"$target".log >&2; exit 1; }
    grep -aE 'DONE|^stat::(number|average|peak)' target/"$target".log
done
