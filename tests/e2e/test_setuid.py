"""`sandbox setuid` and `--mode setuid` as a user types them.

What changes the system runs in a mount namespace where /etc, /usr/libexec, /var/lib and /run are throw-away overlays
(tests/support/private.py). Whether the packaged helper can do setuid mode decides what `install` must say at its end.
"""

import json
import os
from pathlib import Path

import pytest

from sandbox import policy, setuid
from sandbox.doctor import packaged_program
from tests.support import archives
from tests.support.archives import Entry
from tests.support.private import private_system
from tests.support.setuid import UNFINISHED

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to install in a mount namespace of its own")
BUILT = pytest.mark.skipif(
    not os.access(packaged_program("sandbox-helper"), os.X_OK), reason="the helper was not built here (no cargo)"
)
RECORD = f"{policy.STORE}/setuid-install.json"


class Place:
    """A private system and the command in it."""

    def __init__(self, private, command, user, scratch):
        self.private, self.command, self.user, self.scratch = private, command, user, scratch

    def sandbox(self, *args, check=None):
        done = self.private.root(self.command, *args)
        assert check is None or done.returncode == check, done.stdout + done.stderr
        return done

    def shell(self, script):
        done = self.private.root("sh", "-ec", script)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def as_user(self, *args, member=False):
        groups = [int(self.shell(f"stat -c %g {setuid.HELPER}"))] if member else []
        env = {"PATH": "/usr/bin:/bin", "SANDBOX_HOME": str(self.scratch / "home"), "HOME": "/nonexistent"}
        return self.private.run([self.command, *args], who=self.user, groups=groups, env=env)

    def everything(self):
        """All that an installation may change, as text."""
        places = "/etc/sandbox /etc/tmpfiles.d /etc/apparmor.d /usr/libexec /run/sandbox /var/lib/sandbox"
        files = f"find {places} -printf '%p %u %g %m %l\\n' 2>/dev/null | sort || :"
        return self.shell(f"{files}; sort /etc/passwd /etc/group /etc/gshadow")

    def finish(self, done):
        """Whether the proof held; an unfinished helper must be told apart, and lose its bit."""
        if done.returncode == 0:
            return True
        assert any(words in done.stderr for words in UNFINISHED), done.stdout + done.stderr
        assert len(done.stderr.splitlines()) == 1
        return False


@pytest.fixture
def place(installed, identities, session_area, area):
    with private_system(session_area / f"system-{os.urandom(4).hex()}") as private:
        if private.root("test", "-e", RECORD).returncode == 0:
            private.root(installed, "setuid", "remove")
        yield Place(private, installed, identities[True], area.dir(True))


@ROOT_ONLY
@BUILT
def test_install_status_remove(place):
    before = place.everything()
    worked = place.finish(place.sandbox("setuid", "install"))
    owner, group, mode = place.shell(f"stat -c '%U %G %a' {setuid.HELPER}").split()
    assert (owner, group, mode) == ("root", "sandbox", "4750" if worked else "750")
    assert place.sandbox("setuid", "status").returncode == (0 if worked else 1)
    text = place.shell(f"cat {policy.PATH}").encode()
    values, wrong = policy.parse(text)
    assert wrong == []
    assert values["groups"] == [int(place.shell("getent group sandbox").split(":")[2])]
    builder = place.shell("getent passwd _sandbox").split(":")
    assert [values["builder_uid"], values["builder_gid"]] == [int(builder[2]), int(builder[3])]
    assert builder[5] == "/nonexistent"
    once = place.everything()
    assert place.finish(place.sandbox("setuid", "install")) is worked, "the second time"
    assert place.everything() == once
    place.sandbox("setuid", "remove", check=0)
    assert place.everything() == before
    assert "nothing to remove" in place.sandbox("setuid", "remove", check=0).stdout
    assert "not installed" in place.sandbox("setuid", "status", check=1).stdout


@ROOT_ONLY
@BUILT
def test_what_was_there_before_stays(place):
    place.shell(f"groupadd --system sandbox; mkdir /etc/sandbox; echo 'images = \"trusted\"' > {policy.PATH}")
    before = place.everything()
    place.finish(place.sandbox("setuid", "install"))
    recorded = [(entry["what"], entry.get("name")) for entry in json.loads(place.shell(f"cat {RECORD}"))["entries"]]
    assert ("group", "sandbox") not in recorded
    assert ("user", "_sandbox") in recorded
    place.sandbox("setuid", "remove", check=0)
    assert place.everything() == before


@ROOT_ONLY
@BUILT
def test_a_policy_that_the_administrator_changed_stays(place):
    place.finish(place.sandbox("setuid", "install"))
    place.shell(f"echo '# mine' >> {policy.PATH}")
    done = place.sandbox("setuid", "remove", check=0)
    assert f"kept {policy.PATH}" in done.stdout
    assert place.shell(f"tail -n 1 {policy.PATH}") == "# mine\n"
    assert place.private.root("test", "-e", setuid.HELPER).returncode != 0


@ROOT_ONLY
@BUILT
def test_a_helper_of_somebody_else_is_not_replaced(place):
    place.shell(f"mkdir -p {os.path.dirname(setuid.HELPER)}; echo other > {setuid.HELPER}; chmod 755 {setuid.HELPER}")
    done = place.sandbox("setuid", "install", check=125)
    assert "not from sandbox setuid install" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    place.sandbox("setuid", "remove", check=0)
    assert place.shell(f"cat {setuid.HELPER}") == "other\n"


@ROOT_ONLY
@BUILT
@pytest.mark.parametrize("after", ["group", "user", "file"])
def test_an_interrupted_installation_is_gone_after_remove(place, after):
    """Killed right after it wrote down what it was going to do next."""
    before = place.everything()
    place.finish(place.sandbox("setuid", "install"))
    record = json.loads(place.shell(f"cat {RECORD}"))
    cut = [entry["what"] for entry in record["entries"]].index(after) + 1
    place.sandbox("setuid", "remove", check=0)
    place.shell("mkdir -p /var/lib/sandbox")
    short = {"format": record["format"], "entries": record["entries"][:cut]}
    (place.scratch / "record").write_text(json.dumps(short))
    place.shell(f"cp {place.scratch}/record {RECORD}; chmod 644 {RECORD}")
    place.sandbox("setuid", "remove", check=0)
    assert place.everything() == before


@ROOT_ONLY
@BUILT
def test_a_killed_installation_is_gone_after_remove(place):
    before = place.everything()
    script = f"""
{place.command} setuid install >/dev/null 2>&1 & pid=$!
sleep "$1"; kill -9 $pid 2>/dev/null || :; wait $pid 2>/dev/null || :
while pgrep --runstates D,R,S --ns $$ --nslist mnt -x 'groupadd|useradd' >/dev/null; do sleep 0.02; done
"""
    for step in range(12):
        place.private.root("sh", "-c", script, "sh", f"{0.12 + step * 0.04:.2f}")
        done = place.sandbox("setuid", "remove", check=0)
        assert place.everything() == before, done.stdout


@ROOT_ONLY
@BUILT
def test_a_helper_that_fails_the_proof_is_not_left_setuid(place):
    place.shell(f"mkdir /etc/sandbox; echo 'groups = [1]' > {policy.PATH}")
    before = place.everything()
    done = place.sandbox("setuid", "install", check=125)
    assert len(done.stderr.splitlines()) == 1
    assert "could not run a sandbox as an ordinary user: " in done.stderr
    assert place.shell(f"stat -c %a {setuid.HELPER}") == "750\n"
    place.sandbox("setuid", "remove", check=0)
    assert place.everything() == before
    assert not list(Path("/var/tmp").glob("sandbox-proof-*"))


@ROOT_ONLY
@BUILT
@pytest.mark.parametrize(
    ("images", "tree", "words"),
    [
        ("any", "-s", None),
        ("any", "-d", None),
        ("rebuild", "-s", None),
        ("rebuild", "-d", None),
        ("trusted", "-s", "does not allow"),
        ("trusted", "-d", "does not allow"),
    ],
)
def test_what_the_policy_says_of_images(place, images, tree, words):
    if not place.finish(place.sandbox("setuid", "install")):
        pytest.skip("this build of the helper does not do setuid mode yet")
    place.shell(f"sed -i 's/^images = .*/images = \"{images}\"/' {policy.PATH}")
    archives.make_zip(place.scratch / "t.zip", [Entry("sub/f", b"hello\n")])
    script = 'cd "$SANDBOX_STATIC$SANDBOX_DYNAMIC/t" && cat sub/f && { ! [ "$SANDBOX_DYNAMIC" ] || mv sub moved; }'
    done = place.as_user(
        "run", "--mode", "setuid", tree, f"{place.scratch}/t.zip", "--", "sh", "-c", script, member=True
    )
    if words is None:
        assert (done.stdout, done.returncode) == ("hello\n", 0), done.stderr
    else:
        assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
        assert words in done.stderr


@ROOT_ONLY
@BUILT
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("chmod 4755 {helper}", "4755: must be root's and 4750"),
        ("chown nobody {helper}", "nobody:sandbox"),
        ("chmod 775 {place}", "/usr/libexec/sandbox can be written to by others (0775)"),
        ("chown nobody /usr/libexec", "/usr/libexec belongs to nobody"),
        ("mount -t tmpfs -o nosuid,mode=755 x /mnt; cp -a {helper} /mnt; mount --move /mnt {place}", "mounted nosuid"),
        (
            "printf '#!/bin/sh\\necho sandbox-helper 9.9 plans 7-8\\n' > {helper}; chmod 4750 {helper}",
            "9.9, takes plans 7 to 8",
        ),
        ("printf x >> {helper}; chmod 4750 {helper}", "another build"),
        ("chmod 666 {policy}", "policy.toml, root 0666"),
        ("echo 'images = 5' > {policy}", "images: must be one of"),
        ("echo '[' > {policy}", "cannot be parsed"),
        ("echo 'groups = [1]' > {policy}", "the policy does not list sandbox"),
        ("userdel _sandbox", "there is no user"),
        ("chmod 777 /var/lib/sandbox", "/var/lib/sandbox: root 0777"),
        ("rm -r /run/sandbox", "/run/sandbox: No such file"),
    ],
)
def test_status_names_what_is_unsafe(place, spoil, words):
    place.finish(place.sandbox("setuid", "install"))
    names = {"helper": setuid.HELPER, "place": os.path.dirname(setuid.HELPER), "policy": policy.PATH}
    place.shell(spoil.format(**names))
    done = place.sandbox("setuid", "status", check=1)
    assert words in done.stdout, done.stdout
    lines = done.stdout.splitlines()
    crosses = [number for number, line in enumerate(lines) if line.startswith("✘")]
    assert crosses
    assert all("-> " in lines[number + 1] for number in crosses)
    seen = place.as_user("setuid", "status")
    assert seen.stderr == "", "anybody may look"
    assert "✔ group" in seen.stdout or words in seen.stdout


@ROOT_ONLY
@BUILT
def test_who_may_not_use_it_is_told_why(place):
    missing = place.as_user("run", "--mode", "setuid", "--", "true")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (125, 1)
    assert "not installed" in missing.stderr
    if not place.finish(place.sandbox("setuid", "install")):
        powerless = place.as_user("run", "--mode", "setuid", "--", "true")
        assert "not a setuid-root program" in powerless.stderr
        # As a helper that works would be: only the kernel's check of the group is looked at here.
        place.shell(f"chmod 4750 {setuid.HELPER}")
    outside = place.as_user("run", "--mode", "setuid", "--", "true")
    assert (outside.returncode, len(outside.stderr.splitlines())) == (125, 1)
    assert (
        f"only members of the group sandbox may use the setuid helper, and {place.user.name} is none" in outside.stderr
    )
    assert f"usermod -aG sandbox {place.user.name}" in outside.stderr
    place.shell(f"usermod -aG sandbox {place.user.name}")
    stale = place.as_user("run", "--mode", "setuid", "--", "true")
    assert "log in again" in stale.stderr


@ROOT_ONLY
@BUILT
def test_the_helper_gets_nothing_of_the_environment_and_plans_are_checked(place):
    """A helper that shows how it was started, as the user: what Python hands over does not depend on what it does."""
    place.finish(place.sandbox("setuid", "install"))
    show = place.scratch / "shown"
    script = f"""#!/bin/sh
[ "$1" = version ] && {{ echo "sandbox-helper 0.1.0 plans $PLANS"; exit; }}
env > {show}; echo "$@" >> {show}
"""
    for plans, code in (("1-1", 0), ("2-3", 0), ("3-4", 125)):
        (place.scratch / "fake").write_text(script.replace("$PLANS", plans))
        place.shell(f"cat {place.scratch}/fake > {setuid.HELPER}; chmod 4750 {setuid.HELPER}")
        done = place.as_user("run", "--mode", "setuid", "--", "printf", "a b", member=True)
        assert done.returncode == code, done.stderr
        if code:
            assert "too old for the setuid helper: 0.1.0 takes plans 3-4, this makes 1-2" in done.stderr
            assert len(done.stderr.splitlines()) == 1
    text = show.read_text()
    assert "SANDBOX_HOME" not in text
    assert "run " in text
    assert text.rstrip().endswith("-- printf a b")


def test_the_python_engine_is_refused_in_one_line(run_sandbox, who):
    done = run_sandbox(["run", "--mode", "setuid", "--engine", "python", "--", "true"], as_user=who.as_user)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
    assert "only a program can be setuid" in done.stderr


@ROOT_ONLY
def test_root_needs_no_helper(run_sandbox):
    done = run_sandbox(["run", "--mode", "setuid", "--", "true"], as_user=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
    assert "--mode root" in done.stderr


@pytest.mark.parametrize("command", ["install", "remove"])
def test_install_and_remove_are_roots(run_sandbox, command):
    done = run_sandbox(["setuid", command], as_user=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
    assert "root" in done.stderr


# -- with a helper that works ---------------------------------------------------------------------------------


def test_auto_prefers_the_helper_and_doctor_knows(run_sandbox, setuid_system, area):
    run_sandbox.system = setuid_system
    archives.make_squashfs(area.dir(True) / "t.sfs", [Entry("f", b"hello\n")])
    done = run_sandbox(
        ["run", "-v", "-s", "t.sfs", "--", "sh", "-c", 'cat "$SANDBOX_STATIC/t/f"'], as_user=True, check=True
    )
    assert "mode setuid, engine native" in done.stderr
    assert done.stdout == "hello\n"
    report = json.loads(run_sandbox(["doctor", "--self-test", "--json"], as_user=True).stdout)
    assert report["modes"]["setuid"] is True
    tried = {one["level"]: one["error"] for one in report["self_test"] if one["mode"] == "setuid"}
    assert tried == {"none": "", "job": "", "strict": ""}


def test_own_ids_no_user_namespace_no_capabilities(run_sandbox, setuid_system, user):
    run_sandbox.system = setuid_system
    script = "cat /proc/self/uid_map; id -u; id -G; grep -E '^(NoNewPrivs|Cap(Inh|Prm|Eff|Amb)):' /proc/self/status"
    done = run_sandbox(["run", "--mode", "setuid", "--", "sh", "-c", script], as_user=True, check=True)
    uid_map, uid, groups, *rest = done.stdout.splitlines()
    assert uid_map == Path("/proc/self/uid_map").read_text().strip("\n")
    assert int(uid) == user.uid
    assert {*user.groups, user.gid, setuid_system.gid} == set(map(int, groups.split()))
    fields = dict(line.split(":\t") for line in rest)
    assert fields.pop("NoNewPrivs") == "1"
    assert not any(int(value, 16) for value in fields.values())


def test_a_sandbox_inside_falls_back(run_sandbox, setuid_system):
    """no_new_privs makes the helper powerless inside: auto goes on without it, an explicit choice says why not."""
    run_sandbox.system = setuid_system
    inner = [run_sandbox.command, "run", "--mode", "setuid", "--", "true"]
    done = run_sandbox(["run", "--mode", "setuid", "--", *inner], as_user=True)
    assert done.returncode == 125
    assert "no_new_privs is set here" in done.stderr
