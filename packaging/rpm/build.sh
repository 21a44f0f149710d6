# shellcheck shell=bash disable=SC2154
# Part of packaging/build.sh: rpmbuild, below the staging directory. Every time and the name of the machine are fixed.

stage "sandbox-$(version)"
(cd "$work/sandbox-$(version)" && "$python" -m manual share share)
mkdir -p "$work"/rpm/{SOURCES,BUILD,RPMS}
tarball "$work/sandbox-$(version)" "$work/rpm/SOURCES/sandbox-$(version).tar.gz"
options=(--define "source_version $(version)" --define "_topdir $work/rpm" --define "_buildhost localhost"
    --define "use_source_date_epoch_as_buildtime 1" --define "clamp_mtime_to_source_date_epoch 1")
# Cargo may come from elsewhere than from an RPM; on Debian everything does.
command -v cargo >/dev/null && ! command rpm --query cargo >/dev/null 2>&1 && options+=(--define "without_cargo 1")
grep -qiE '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release && options+=(--nodeps)
rpmbuild "${options[@]}" -bb packaging/rpm/sandbox.spec >"$work/log" 2>&1 || { tail -40 "$work/log" >&2; die 'rpmbuild failed'; }
built "$work"/rpm/RPMS/*/*.rpm
