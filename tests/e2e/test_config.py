"""config.toml: the defaults of a site and of a user, beneath jobs and the command line."""

import grp
import json
import os
import pwd
import subprocess
import sys

import pytest

from sandbox import config
from sandbox.cli import run
from sandbox.errors import UsageError
from tests.support.front import PYTHON, Front


@pytest.fixture
def files(tmp_path, monkeypatch):
    """`files(site=TEXT, user=TEXT)` writes them, and this process finds them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "of-user"))
    monkeypatch.setattr(config, "SITE", bytes(tmp_path / "of-site" / "config.toml"))
    for name in ("of-site", "of-user/sandbox"):
        (tmp_path / name).mkdir(parents=True)

    def write(site=None, user=None):
        for where, text in ((tmp_path / "of-site", site), (tmp_path / "of-user" / "sandbox", user)):
            if text is not None:
                (where / "config.toml").write_text(text)
        return tmp_path

    return write


def parsed(*words):
    return run.parse([os.fsencode(word) for word in words])[0]


def test_who_wins(files):
    """The command line, then the job, then the user, then the site. Lists add up, in that order from below."""
    where = files(
        '[run]\nhostname = "site"\nchdir = "/site"\nlevel = "job"\nnet = "host"\nallow-read = ["/a"]\ncache = true',
        '[run]\nhostname = "user"\nchdir = "/user"\nisolation = "strict"\nallow-read = ["/b"]\nmkdir = true',
    )
    (where / "sandbox.toml").write_text(
        '[job.a]\ncommand = ["x"]\nhostname = "job"\nchdir = "/job"\nallow-read = ["/c"]\ncache = false'
    )
    spec = parsed("--job", "a", "--hostname", "typed", "--allow-read", "/d", "--no-mkdir")
    assert (spec.hostname, spec.chdir, spec.isolation, spec.net) == (b"typed", b"/job", "strict", "host")
    assert spec.allow_read == (b"/a", b"/b", b"/c", b"/d")
    assert (spec.cache, spec.mkdir, spec.command) == (False, False, (b"x",))
    spec = parsed("true")
    assert (spec.hostname, spec.chdir, spec.cache, spec.mkdir) == (b"user", b"/user", True, True)
    assert parsed("--no-config", "true") == parsed("--no-config", "true").replace(cache=False, isolation="none")


def test_paths_are_relative_to_the_file(files):
    where = files('[run]\nstatic = ["t:a.zip"]\nlog = "log"', '[run]\ndynamic = ["b.zip"]\n')
    spec = parsed("-s", "c.zip", "true")
    assert [tree.text for tree in spec.trees] == [
        b"t:" + bytes(where / "of-site" / "a.zip"),
        bytes(where / "of-user" / "sandbox" / "b.zip"),
        b"c.zip",
    ]
    assert spec.log == bytes(where / "of-site" / "log")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[run]\nmemry = 1", ":2: unknown key memry (did you mean memory?)"),
        ('[run]\ncommand = ["x"]', ":2: unknown key command"),
        ('[run]\njob = "x"', ":2: job is for the command line only"),
        ('[run]\n\nmemory = "x"', ":3: --memory: 'x' is not a size"),
        ('[run.limits]\ntimeout = "x"', ":2: --timeout: 'x' is not a duration"),
        ('[run]\nmode = "x"', ":2: sandbox run: argument --mode: invalid choice: 'x'"),
        ("[run]\ncache = 1", ":2: cache must be true or false, not a number"),
        ("[jobs]", ":1: unknown key jobs (defaults stand in a table [run])"),
        ("run = 1", ":1: run must be a table"),
        ("[run", "(the file must be TOML)"),
        ("[run]\ntimeout = 99999999999999999999", ":2: timeout: the number is too large (at most 9223372036854775807)"),
        ("#" * (257 << 10), "more than 256 KiB (is it the right file?)"),
    ],
)
def test_mistakes(files, text, why):
    files(user=text)
    with pytest.raises(UsageError) as caught:
        parsed("true")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert parsed("--no-config", "true").command == (b"true",)


def test_what_others_may_write_is_not_used(files):
    path = files(user="[run]\ncache = true") / "of-user" / "sandbox"
    for changed, mode in ((path / "config.toml", 0o666), (path, 0o777)):
        before = changed.stat().st_mode
        changed.chmod(mode)
        with pytest.raises(UsageError, match="everybody may change it"):
            parsed("true")
        changed.chmod(before)
    if os.geteuid() == 0:
        os.chown(path / "config.toml", 12345, -1)
        with pytest.raises(UsageError, match="belongs to uid 12345"):
            parsed("true")


def test_what_a_group_may_write_is_not_used(files, monkeypatch):
    """But the user's own private group may, to which nobody else belongs: with a umask of 002 it always can."""
    path = files(user="[run]\ncache = true") / "of-user" / "sandbox"
    file, own = path / "config.toml", path.stat().st_gid

    def account(name, *, gid=own, members=()):
        monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("u", "x", uid, gid, "", "/", "/bin/sh")))
        monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((name, "x", gid, list(members))))

    if os.geteuid() == 0:
        # As a user whose group is 4321; what is root's is trusted by everybody.
        monkeypatch.setattr(os, "getuid", lambda: 1234)
        own = 4321
    for changed, mode, what in ((file, 0o664, "it"), (path, 0o775, "its directory")):
        before = changed.stat().st_mode
        if os.geteuid() == 0:
            os.chown(changed, -1, own)
        changed.chmod(mode)
        account("u", gid=own)
        assert parsed("true").cache
        account("u", gid=own, members=["u"])
        assert parsed("true").cache
        for not_private in ({"name": "users"}, {"name": "u", "members": ["v"]}, {"name": "u", "gid": own + 1}):
            account(**{"gid": own, **not_private})
            with pytest.raises(UsageError, match=f"group {own} may change {what} "):
                parsed("true")
        changed.chmod(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file to any group")
@pytest.mark.parametrize("of", ["config.toml", "."])
def test_root_trusts_its_own_group_only(files, of):
    path = files(site="[run]\ncache = true") / "of-site" / of
    path.chmod(0o775)
    assert parsed("true").cache
    os.chown(path, 0, 12345)
    path.chmod(0o775)
    with pytest.raises(UsageError, match="group 12345 may change it"):
        parsed("true")


def test_where_it_is(monkeypatch):
    """A relative XDG_CONFIG_HOME counts for nothing (basedir-spec), nor does a home of somebody else's for root."""
    own = os.path.expanduser("~").encode()
    for environ, path in (
        ({b"XDG_CONFIG_HOME": b"/x"}, b"/x/sandbox/config.toml"),
        ({b"XDG_CONFIG_HOME": b"x", b"HOME": own}, own + b"/.config/sandbox/config.toml"),
    ):
        assert [place.path for place in config.places(environ)] == [config.SITE, path]


def test_shown_and_used(run_sandbox, who, area):
    """As a user finds it: `sandbox config`, and a run."""
    directory = area.dir(who.as_user) / "xdg" / "sandbox"
    directory.mkdir(parents=True)
    (directory / "config.toml").write_text('[run]\nenv = { A = "1" }\nlimits = { timeout = "1m" }\n')
    for path in (directory.parent, directory, directory / "config.toml"):
        os.chown(path, who.uid, who.gid)
    env = {"XDG_CONFIG_HOME": str(directory.parent)}
    shown = run_sandbox(["config"], as_user=who.as_user, env=env, check=True).stdout.splitlines()
    assert shown[1:] == [f"user\t{directory}/config.toml", "--env=A=1\tuser, line 2", "--timeout=1m\tuser, line 3"]
    told = json.loads(run_sandbox(["config", "--json"], as_user=who.as_user, env=env, check=True).stdout)
    assert told["files"][1] == {"origin": "user", "path": f"{directory}/config.toml", "exists": True}
    assert [(option["word"], option["line"], option["used"]) for option in told["options"]] == [
        ("--env=A=1", 2, True),
        ("--timeout=1m", 3, True),
    ]
    words = ["--", "sh", "-c", 'echo "$A"']
    assert run_sandbox(["run", *words], as_user=who.as_user, env=env, check=True).stdout == "1\n"
    assert run_sandbox(["run", "--no-config", *words], as_user=who.as_user, env=env, check=True).stdout == "\n"


def test_overridden_by_the_user(files, capsys):
    files("[run]\nhostname = 'a'\nallow-read = ['/a']", "[run]\nhostname = 'b'\nallow-read = ['/b']")
    from sandbox.cli import config as command
    from sandbox.cli.parser import Parser

    parser = Parser(prog="sandbox")
    command.register(parser.add_subparsers(parser_class=Parser, required=True))
    assert command.main(parser.parse_args(["config"])) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "--hostname=a\tsite, line 2, overridden",
        "--allow-read=/a\tsite, line 3",
        "--hostname=b\tuser, line 2",
        "--allow-read=/b\tuser, line 3",
    ]


def test_a_stored_launch_is_compiled_anew(run_sandbox, who, area):
    """When a file of defaults appears, changes or goes."""
    front = Front(run_sandbox, who, area)
    directory = area.dir(who.as_user) / "xdg" / "sandbox"
    directory.mkdir(parents=True)
    env = {"XDG_CONFIG_HOME": str(directory.parent)}
    words = ["--", "sh", "-c", "hostname"]
    for text in (None, "[run]\nunset-env = ['A']\n", "[run]\nunset-env = ['B']\n"):
        if text is not None:
            assert front.again(*words, env=env).returncode == 0
            (directory / "config.toml").write_text(text)
            os.utime(directory / "config.toml", (10**9, 10**9))
        assert front.again(*words, env=env).returncode == PYTHON
        assert front.compile(*words, env=env).returncode == 0
        assert front.again(*words, env=env).returncode == 0
    (directory / "config.toml").unlink()
    assert front.again(*words, env=env).returncode == PYTHON
    # Another place for it is another launch.
    assert front.compile(*words, env=env).returncode == 0
    assert front.again(*words, env=env | {"XDG_CONFIG_HOME": "/nowhere"}).returncode == PYTHON


def test_who_has_none_loads_nothing_for_it():
    script = "import sys; from sandbox.cli import run; run.parse([b'true']); print('tomllib' in sys.modules)"
    env = {**os.environ, "XDG_CONFIG_HOME": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert done.stdout == "False\n", done.stderr
