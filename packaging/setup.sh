#!/usr/bin/env bash
# Prepare this checkout: system packages, .venv, the project and its native programs.
# Safe to run again; does only what is missing. `PYTHON=...` chooses the interpreter, `VENV=...` the place.
# `setup.sh vm|bench|deb|rpm|docs` also sees to what `make test-vm`, `make bench`, `make deb`, `make rpm` and `make docs` need.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly venv=${VENV:-.venv}
readonly stamp=$venv/.setup-done
readonly purpose=${1:-}

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$@" >&2; exit 1; }

# -- system packages ------------------------------------------------------------------------------------------

# What is probed | package on Debian | Fedora | Arch | openSUSE. A probe is a program, a library, a header or a path.
readonly needs='
mksquashfs            | squashfs-tools    | squashfs-tools    | squashfs-tools    | squashfs
mkfs.erofs            | erofs-utils       | erofs-utils       | erofs-utils       | erofs-utils
tar2sqfs              | squashfs-tools-ng | squashfs-tools-ng | squashfs-tools-ng | squashfs-tools-ng
slirp4netns           | slirp4netns       | slirp4netns       | slirp4netns       | slirp4netns
pasta                 | passt             | passt             | passt             | passt
nft                   | nftables          | nftables          | nftables          | nftables
ip                    | iproute2          | iproute           | iproute2          | iproute2
squashfuse_ll         | squashfuse        | squashfuse        | squashfuse        | squashfuse
libarchive.so.13      | libarchive13      | libarchive        | libarchive        | libarchive13
libseccomp.so.2       | libseccomp2       | libseccomp        | libseccomp        | libseccomp2
sys/capability.h      | libcap-dev        | libcap-devel      | libcap            | libcap-devel
cc                    | gcc               | gcc               | gcc               | gcc
errno.h               | libc6-dev         | glibc-devel       | glibc             | glibc-devel
python.h              | python3-dev       | python3-devel     | python            | python3-devel
venv                  | python3-venv      | python3           | python            | python3
losetup               | mount             | util-linux-core   | util-linux        | util-linux
unshare               | util-linux        | util-linux        | util-linux        | util-linux
useradd               | passwd            | shadow-utils      | shadow            | shadow
mkfs.ext4             | e2fsprogs         | e2fsprogs         | e2fsprogs         | e2fsprogs
mkfs.xfs              | xfsprogs          | xfsprogs          | xfsprogs          | xfsprogs
mkfs.btrfs            | btrfs-progs       | btrfs-progs       | btrfs-progs       | btrfsprogs
newuidmap             | uidmap            | shadow-utils      | shadow            | shadow
strace                | strace            | strace            | strace            | strace
setfacl               | acl               | acl               | acl               | acl
setfattr              | attr              | attr              | attr              | attr
sudo                  | sudo              | sudo              | sudo              | sudo
ping                  | iputils-ping      | iputils           | iputils           | iputils
unzip                 | unzip             | unzip             | unzip             | unzip
bzip2                 | bzip2             | bzip2             | bzip2             | bzip2
xz                    | xz-utils          | xz                | xz                | xz
zstd                  | zstd              | zstd              | zstd              | zstd
ps                    | procps            | procps-ng         | procps-ng         | procps
man                   | man-db            | man-db            | man-db            | man
mandoc                | mandoc            | mandoc            | mandoc            | mandoc
fish                  | fish              | fish              | fish              | fish
zsh                   | zsh               | zsh               | zsh               | zsh
busybox               | busybox-static    | busybox           | busybox           | busybox-static
vi                    | vim-tiny          | vim-minimal       | vim               | vim
git                   | git               | git               | git               | git
'
# make test-vm builds its machines from Debian's packages.
readonly needs_vm='
qemu-system-x86_64    | qemu-system-x86   | qemu-system-x86   | qemu-system-x86   | qemu-x86
mmdebstrap            | mmdebstrap        | mmdebstrap        | mmdebstrap        | mmdebstrap
apt-get               | apt               | apt               | apt               | apt
dpkg-deb              | dpkg              | dpkg              | dpkg              | dpkg
depmod                | kmod              | kmod              | kmod              | kmod
mke2fs                | e2fsprogs         | e2fsprogs         | e2fsprogs         | e2fsprogs
/usr/share/keyrings/debian-archive-keyring.gpg | debian-archive-keyring | debian-keyring | debian-archive-keyring | debian-keyring
'
# Who is compared; make bench says of what is not there that it is not, and goes on.
readonly needs_bench='
hyperfine             | hyperfine         | hyperfine         | hyperfine         | hyperfine
bwrap                 | bubblewrap        | bubblewrap        | bubblewrap        | bubblewrap
firejail              | firejail          | firejail          | firejail          | firejail
crun                  | crun              | crun              | crun              | crun
runc                  | runc              | runc              | runc              | runc
systemd-nspawn        | systemd-container | systemd-container | systemd           | systemd-container
'
readonly needs_deb='
dpkg-buildpackage     | dpkg-dev          | dpkg-dev          | dpkg              | dpkg
dh                    | debhelper         | debhelper         | debhelper         | debhelper
dh_apparmor           | dh-apparmor       | dh-apparmor       | dh-apparmor       | dh-apparmor
dh_python3            | dh-python         | dh-python         | dh-python         | dh-python
py3compile            | python3-minimal   | python3           | python            | python3
lintian               | lintian           | lintian           | lintian           | lintian
fakeroot              | fakeroot          | fakeroot          | fakeroot          | fakeroot
mmdebstrap            | mmdebstrap        | mmdebstrap        | mmdebstrap        | mmdebstrap
'
readonly needs_rpm='
rpmbuild              | rpm               | rpm-build         | rpm-tools         | rpm-build
rpmlint               | rpmlint           | rpmlint           | rpmlint           | rpmlint
'

family() { # 2 Debian, 3 Fedora, 4 Arch, 5 openSUSE (the column in the table), 0 unknown
    local ID='' ID_LIKE=''
    # shellcheck disable=SC1091
    [ -r /etc/os-release ] && . /etc/os-release
    case " $ID $ID_LIKE " in
        *' debian '* | *' ubuntu '*) echo 2 ;;
        *' fedora '* | *' rhel '*) echo 3 ;;
        *' arch '*) echo 4 ;;
        *' suse '* | *' opensuse '*) echo 5 ;;
        *) echo 0 ;;
    esac
}

install_command() {
    case $1 in
        2) echo 'apt-get install -y --no-install-recommends' ;;
        3) echo 'dnf install -y' ;;
        4) echo 'pacman -S --needed --noconfirm' ;;
        5) echo 'zypper install -y' ;;
    esac
}

# Programs for root live outside an ordinary user's PATH on some systems.
program() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null; }
header() { compgen -G "/usr/include/$1" >/dev/null || compgen -G "/usr/include/*-linux-gnu*/$1" >/dev/null; }
library() { compgen -G "/usr/lib/$1" >/dev/null || compgen -G "/usr/lib64/$1" >/dev/null || compgen -G "/usr/lib/*/$1" >/dev/null; }
python_says() { [ -n "$python" ] && "$python" -c "$1" 2>/dev/null; }

present() {
    case $1 in
        venv) python_says 'import ensurepip, venv' ;;
        python.h) python_says 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ;;
        /*) [ -e "$1" ] ;;
        *.h) header "$1" ;;
        *.so.*) library "$1" ;;
        *) program "$1" ;;
    esac
}

missing_packages() { # column
    local probe row
    while IFS='|' read -r -a row; do
        [ ${#row[@]} -gt 0 ] || continue
        probe=${row[0]//[[:space:]]/}
        present "$probe" || echo "${row[$1 - 1]//[[:space:]]/}"
    done <<<"$needs$(more="needs_$purpose"; echo "${!more-}")" | sort -u
}

system_packages() {
    local column install missing
    column=$(family)
    if [ "$column" = 0 ]; then
        missing=$(missing_packages 2 | tr '\n' ' ')
        [ -z "$missing" ] || say "install these with your package manager (Debian's names): $missing"
        return 0
    fi
    missing=$(missing_packages "$column" | tr '\n' ' ')
    [ -n "$missing" ] || return 0
    install=$(install_command "$column")
    # shellcheck disable=SC2086  # a list of packages, and a command with options
    if [ "$(id -u)" != 0 ] && [ "$purpose" = bench ]; then
        say "not compared, for want of packages: sudo $install ${missing% }"
    elif [ "$(id -u)" != 0 ]; then
        die 'some system packages are missing. Run this, then the same make again:' "    sudo $install ${missing% }"
    elif [ "$column" != 2 ]; then
        die 'some system packages are missing. Run this, then the same make again:' "    $install ${missing% }"
    else
        say "installing ${missing% }"
        export DEBIAN_FRONTEND=noninteractive
        # An image without package lists, or with old ones, needs the update; the others are spared it.
        $install $missing >/dev/null 2>&1 || { apt-get update -q >/dev/null && $install $missing >/dev/null; }
    fi
}

# -- Python ---------------------------------------------------------------------------------------------------

world_executable() { # every directory on the way to the real file is open to others
    local at
    at=$(readlink -f "$1") || return 1
    while [ "$at" != / ]; do
        [ $((0$(stat -c %a "$at") & 1)) = 1 ] || return 1
        at=$(dirname "$at")
    done
}

# Root's tests run the interpreter as other users too, and ~/.pyenv of root is closed to them.
choose_python() {
    local candidate
    local candidates=(/usr/bin/python3 /usr/bin/python3.1[1-9] /usr/local/bin/python3 python3 python3.1{4,3,2,1})
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        candidate=$(command -v "$candidate") || continue
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        # A shim (pyenv) is not the interpreter.
        candidate=$("$candidate" -c 'import sys; print(sys.executable)')
        [ "$(id -u)" != 0 ] || world_executable "$candidate" || continue
        echo "$candidate"
        return
    done
}

# -- the project ----------------------------------------------------------------------------------------------

# What the installed environment depends on. Python sources do not count: the install is editable.
inputs() {
    "$python" -V
    ! command -v cargo >/dev/null || cargo --version
    local input present=()
    for input in pyproject.toml setup.py packaging/setup.sh packaging/sandbox .cargo setuid-helper; do
        [ ! -e "$input" ] || present+=("$input")
    done
    find "${present[@]}" -path setuid-helper/target -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
}

project() {
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)
    # What pyproject.toml needs to build.
    "${pip[@]}" install 'pip>=24' 'setuptools>=77' 'setuptools-rust>=1.10' wheel 'argparse-manpage>=4.6' 'markdown-it-py>=3' 'shtab>=1.13'
    # The build goes on when theirs fails: what an older one left is not to be taken for today's.
    rm -f sandbox/bin/sandbox-engine sandbox/bin/sandbox-helper
    PYTHONWARNINGS=ignore "${pip[@]}" install --no-build-isolation --config-settings editable_mode=compat --editable '.[test,lint]'
    local program why='there is no cargo here'
    ! command -v cargo >/dev/null || why='cargo build --release --manifest-path setuid-helper/Cargo.toml says why'
    for program in sandbox-engine sandbox-helper; do
        [ -x "sandbox/bin/$program" ] || say "$program was not built ($why); the Python engine works without it"
    done
}

python=$(choose_python)
system_packages
[ -n "$python" ] || python=$(choose_python)
[ -n "$python" ] || die 'no Python 3.11 or later that every user can execute; set PYTHON=/path/to/python3'
wanted=$(inputs | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    say "making $venv with $python"
    rm -f "$stamp"
    project
    echo "$wanted" >"$stamp"
fi
if [ "$purpose" = docs ] && ! [ -x "$venv/bin/mkdocs" ]; then
    say 'installing what makes the docs'
    "$venv/bin/python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' |
        "$venv/bin/python" -m pip --disable-pip-version-check --quiet install -r /dev/stdin
fi
