#!/usr/bin/env bash
# What `make run` shows: a static image, a dynamic tree and the scratch directory, for real.
# shellcheck disable=SC2016  # the commands' own variables are theirs to expand
set -euo pipefail
sandbox=$(realpath -s "${1:-.venv/bin/sandbox}")
work=$(mktemp -d "${TMPDIR:-/tmp}/sandbox-demo.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' off=$'\e[0m'; else bold='' off=''; fi
explain() { printf '\n%s# %s%s\n' "$bold" "$*" "$off"; }
run() { # show the command as it would be typed, then do it
    local word shown='sandbox'
    for word in "$@"; do
        case $word in
            *[!A-Za-z0-9_./:=,-]* | '') shown+=" '$word'" ;;
            *) shown+=" $word" ;;
        esac
    done
    printf '%s$ %s%s\n' "$bold" "$shown" "$off"
    "$sandbox" "$@" 2>&1
}

mkdir -p tools/bin src
printf '#!/bin/sh\necho "hello from a tool that is not installed anywhere"\n' >tools/bin/hello
chmod +x tools/bin/hello
printf 'first line\n' >src/notes.txt
mksquashfs tools tools.sfs -quiet -no-progress >/dev/null
tar -czf src.tar.gz src
export SANDBOX_HOME=$work/home

explain "Two archives: tools.sfs (a squashfs image with bin/hello) and src.tar.gz (src/notes.txt)."
ls -l tools.sfs src.tar.gz

explain 'Static: the image appears read-only at $SANDBOX_STATIC/NAME, only for this command.'
run run --static tools.sfs -- sh -c '"$SANDBOX_STATIC/tools/bin/hello"; touch "$SANDBOX_STATIC/tools/x" || echo "as promised"'

explain 'Dynamic: a private copy of the archive that may be changed. What is changed is gone at the end ...'
run run --dynamic src.tar.gz -- sh -c 'cd "$SANDBOX_DYNAMIC/src/src" && echo "second line" >>notes.txt && cat notes.txt'

explain '... as the next run shows.'
run run --dynamic src.tar.gz -- sh -c 'cat "$SANDBOX_DYNAMIC/src/src/notes.txt"'

explain 'Scratch: $SANDBOX_TMPDIR is in memory, for this run alone.'
run run -- sh -c 'echo "result" >"$SANDBOX_TMPDIR/result" && ls -l "$SANDBOX_TMPDIR" && df -h --output=fstype,size "$SANDBOX_TMPDIR"'

explain 'The exit code is the command'"'"'s own.'
run run -- sh -c 'exit 42' || echo "exit code $?"

explain 'Nothing is left: no mount, no loop device, no directory of a run.'
mounts=$(grep -c "$work" /proc/self/mountinfo || true)
loops=$(cat /sys/block/loop*/loop/backing_file 2>/dev/null | grep -c "$work" || true)
echo "mounts: $mounts, loop devices: $loops, run directories: $(find "$SANDBOX_HOME/procdirs" -mindepth 1 | wc -l)"

explain "Now your own: make run ARGS='--static some.zip -- ls'"
