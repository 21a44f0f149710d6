# shellcheck shell=bash disable=SC2154
# Part of packaging/build.sh: dpkg-buildpackage in the staging directory. A cargo that is not Debian's (Debian 12 has one
# that is too old) is what the build profile pkg.sandbox.rustup is for.

stage deb
cp -r "$work/deb/packaging/debian" "$work/deb/debian"
rm "$work/deb/debian/build.sh"
(cd "$work/deb" && "$python" -m manual share share)
profiles=()
dpkg-query --show --showformat='${Status}' cargo 2>/dev/null | grep -q installed || profiles=(-Ppkg.sandbox.rustup)
# The commands of Debian's packages, not those of an environment that happens to be active.
(cd "$work/deb" && PATH=/usr/sbin:/usr/bin:/sbin:/bin:$(dirname "$(command -v cargo)") dpkg-buildpackage --build=binary --no-sign "${profiles[@]}") \
    >"$work/log" 2>&1 || { tail -40 "$work/log" >&2; die 'dpkg-buildpackage failed'; }
built "$work"/*.deb
