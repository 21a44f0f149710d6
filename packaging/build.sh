#!/usr/bin/env bash
# What `make wheel|sdist|deb|rpm` run: build.sh KIND puts the packages of this checkout into dist/ (or $DIST).
#
# They are built in a directory outside the tree, from what git has of it (an unpacked sdist: from all of it), and a
# second build gives the same bytes: every time in them is $SOURCE_DATE_EPOCH, which is that of the last commit unless
# it is set. Cargo's part is shared between the kinds.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
readonly kind=${1:?wheel, sdist, deb or rpm} top=$PWD venv=${VENV:-.venv}
readonly dist=${DIST:-$top/dist}
readonly python=$(cd "$(dirname "$venv")" && pwd)/$(basename "$venv")/bin/python
export LC_ALL=C.UTF-8 TZ=UTC PYTHONWARNINGS=ignore PYTHONDONTWRITEBYTECODE=1
# The date of the last commit; without git the newest file's.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || find sandbox -name '*.py' -printf '%Ts\n' | sort -n | tail -1)}
export SOURCE_DATE_EPOCH

cargo_dir() { # one for each state of the sources, whose times tell cargo nothing here; only the last one is kept
    local above=$top/setuid-helper/target/packages state
    state=$(find .cargo setuid-helper -path setuid-helper/target -prune -o -path setuid-helper/fuzz -prune -o -type f -print0 |
        sort -z | xargs -0 sha256sum | sha256sum | cut -c-16)
    mkdir -p "$above"
    find "$above" -mindepth 1 -maxdepth 1 ! -name "$state" -exec rm -rf {} +
    echo "$above/$state"
}
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$(cargo_dir)}
export CARGO_TARGET_DIR

die() { printf 'build: %s\n' "$@" >&2; exit 1; }

files() { # of this checkout, without what is ignored
    git ls-files -z --cached --others --exclude-standard -- ':!setuid-helper/fuzz/corpus' 2>/dev/null ||
        find . -name target -prune -o -name "$(basename "$venv")" -prune -o -name __pycache__ -prune -o -type f -printf '%P\0'
}

stage() { # into the new directory $work/$1, every file as old as the last commit
    mkdir "$work/$1"
    files | while IFS= read -r -d '' name; do [ ! -e "$name" ] || printf '%s\0' "$name"; done |
        LC_ALL=C sort -z | tar --create --null --files-from=- --mtime="@$SOURCE_DATE_EPOCH" | tar --extract -C "$work/$1"
}

tarball() { # DIRECTORY FILE: the same bytes from the same content
    tar --create --directory "$(dirname "$1")" --sort=name --format=gnu --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 \
        --numeric-owner --mode=u+rwX,go+rX,go-w "$(basename "$1")" | gzip -9n >"$2"
}

version() { sed -n 's/^__version__ = "\(.*\)"$/\1/p' sandbox/__init__.py; }

built() { # FILE...: into dist
    mkdir -p "$dist"
    cp --preserve=mode,timestamps "$@" "$dist/"
    local file
    for file; do echo "$dist/$(basename "$file")"; done
}

wheel() {
    stage source
    "$python" -m pip --disable-pip-version-check --quiet wheel --no-deps --no-build-isolation -w "$work/out" "$work/source"
    # setuptools-rust goes on without its programs, which is right for an install and wrong here.
    if command -v cargo >/dev/null && [[ $(echo "$work"/out/*.whl) = *-any.whl ]]; then
        die 'cargo is here, but the native programs were not built' "try: cargo build --release --manifest-path setuid-helper/Cargo.toml"
    fi
    built "$work"/out/*.whl
}

sdist() {
    stage source
    (cd "$work/source" && "$python" -c 'import setuptools.build_meta as b; b.build_sdist("../out")' >/dev/null)
    mkdir "$work/unpacked"
    tar --extract --directory "$work/unpacked" --file "$work"/out/*.tar.gz
    local name
    name=$(basename "$work"/unpacked/*)
    tarball "$work/unpacked/$name" "$work/out/$name.tar.gz"
    built "$work/out/$name.tar.gz"
}

# shellcheck disable=SC1091
deb() { . packaging/debian/build.sh; }
# shellcheck disable=SC1091
rpm() { . packaging/rpm/build.sh; }

# Not a name that a sandbox would have there: tests that look for what sandboxes leave may run meanwhile.
work=$(mktemp -d "${TMPDIR:-/tmp}/sbx-build-XXXXXXXX")
trap 'rm -rf "$work"' EXIT
case $kind in
    wheel | sdist | deb | rpm) "$kind" ;;
    *) die "$kind is not wheel, sdist, deb or rpm" ;;
esac
