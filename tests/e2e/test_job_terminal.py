"""A job on a terminal: the caller's without -t, one of its own with it."""

import fcntl
import os
import signal
import termios
import time

import pytest

from tests.support.jobs import Terminal

_TIOCGEXCL = 0x80045440
# With O_NONBLOCK, raw, with TIOCEXCL, and with TIOCSETD for the discipline N_NULL.
SPOIL = """
import fcntl, os, tty
for fd in range(3): os.set_blocking(fd, False)
tty.setraw(1)
fcntl.ioctl(2, 0x540C)
try: fcntl.ioctl(1, 0x5423, bytes((27, 0, 0, 0)))
except PermissionError: os.write(1, b"refused")
"""


@pytest.fixture
def terminal():
    with Terminal() as made:
        yield made


def test_an_interrupt_reaches_the_command(launch, terminal):
    """Without -t the job has no terminal; what is typed at the launcher's is passed on as a signal."""
    script = "trap 'echo inter''rupted; exit 7' INT; echo rea''dy; while :; do read -r line; done"
    process = launch("--", "sh", "-c", script, popen=True, **terminal.popen_options())
    terminal.expect("ready")
    terminal.write("\x03")
    terminal.expect("interrupted")
    assert process.wait(30) == 7


def test_a_terminal_of_its_own(launch, terminal):
    """It is what programs find, of the caller's size, and changes with it; the caller's is as it was in the end."""
    before = terminal.mode()
    terminal.resize(33, 101)
    script = "trap 'exit 9' INT; tty; while :; do stty size; sleep 0.1; done"
    process = launch("-t", "--", "bash", "-c", script, popen=True, **terminal.popen_options())
    terminal.expect("/dev/pts/0\r\n33 101\r\n")
    terminal.resize(44, 99)
    terminal.expect("44 99")
    terminal.write("\x03")
    assert process.wait(30) == 9
    assert terminal.mode() == before


def test_one_signal_tells_of_a_new_size(launch, terminal):
    """When it comes, the size is the new one: what the caller's terminal says to the launcher is not passed on."""
    terminal.resize(33, 101)
    script = "trap 'echo told $(stty size); exit 9' WINCH; echo rea''dy; while :; do sleep 0.1; done"
    process = launch("-t", "--", "bash", "-c", script, popen=True, **terminal.popen_options())
    terminal.expect("ready")
    terminal.resize(44, 99)
    terminal.expect("told 44 99")
    assert process.wait(30) == 9


def test_an_interpreter_and_an_editor(launch, terminal, area):
    """python -i with its prompt; vi draws its screen, and what it writes is kept."""
    env = {"TERM": "xterm", "PYTHON_HISTORY": "/dev/null"}
    process = launch("-t", "--", "/usr/bin/python3", "-i", popen=True, env=env, **terminal.popen_options())
    terminal.expect(">>> ")
    terminal.write("6 * 7\r")
    terminal.expect("42")
    terminal.expect(">>> ")
    terminal.write("while True: pass\r\r")
    time.sleep(0.5)
    terminal.write("\x03")
    terminal.expect("KeyboardInterrupt")
    terminal.write("exit(5)\r")
    assert process.wait(30) == 5
    editor = ["-t", "--keep", "note", "--", "vi", "-u", "NONE", "note"]
    process = launch(*editor, popen=True, env=env, **terminal.popen_options())
    terminal.expect("note")
    terminal.write("iwritten in vi\x1b")
    terminal.write(":wq\r")
    assert process.wait(30) == 0
    assert (area.dir(launch.as_user) / "note").read_text() == "written in vi\n"


def test_job_control(launch, terminal):
    """^Z stops what a shell of the job has in the foreground, and not the launcher."""
    env = {"PS1": "$ ", "TERM": "dumb"}
    shell = ["bash", "--norc", "--noprofile", "-i"]
    process = launch("-t", "--", *shell, popen=True, env=env, **terminal.popen_options())
    terminal.expect("$ ")
    # Nothing is forked in it: a shell that is stopped between vfork and exec of a child cannot stop itself.
    terminal.write("sh -c 'echo st''arted; while :; do read -r line; done'\r")
    terminal.expect("started")
    terminal.write("\x1a")
    terminal.expect("Stopped")
    terminal.write("jobs; kill %1; fg\r")
    terminal.expect("$ ")
    terminal.write("echo status $((40 + 2))\r")
    terminal.expect("status 42")
    terminal.write("exit 3\r")
    assert process.wait(30) == 3


def test_no_byte_gets_into_the_callers_terminal(launch, terminal):
    """Nothing of the job has it open: not as /dev/tty, not as a descriptor, and TIOCSTI is refused at its own."""
    script = "import fcntl, os\ntry: fcntl.ioctl(0, 0x5412, b'x')\nexcept OSError as error: print('no', error.errno)\n"
    script += (
        "print({os.readlink(f'/proc/self/fd/{n}') for n in range(3)}, os.ttyname(0), os.open('/dev/tty', os.O_RDWR))"
    )
    process = launch("-t", "--", "/usr/bin/python3", "-c", script, popen=True, **terminal.popen_options())
    terminal.expect("no 1\r\n{'/dev/pts/0'} /dev/pts/0 ")
    assert process.wait(30) == 0


def test_what_a_shell_made_of_it_meanwhile(launch, terminal):
    """A shell takes the terminal when the launcher is stopped, and leaves it as it is there behind `fg`."""
    before = terminal.mode()
    process = launch("-t", "--", "sh", "-c", "echo rea''dy; cat", popen=True, **terminal.popen_options())
    terminal.expect("ready")
    raw = terminal.mode()
    assert raw != before
    os.killpg(process.pid, signal.SIGSTOP)
    termios.tcsetattr(terminal.own, termios.TCSANOW, before)
    os.killpg(process.pid, signal.SIGCONT)
    until = time.monotonic() + 30
    while terminal.mode() != raw and time.monotonic() < until:
        time.sleep(0.05)
    terminal.write("typed\r")
    terminal.expect("typed")
    terminal.write("\x04")
    assert process.wait(30) == 0
    assert terminal.mode() == before


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_settings_of_the_callers_terminal(launch, terminal, end):
    """Without -t it is the job's to use, not to keep: raw, closed to others, never waited for."""
    before = terminal.mode()
    script = SPOIL + end
    process = launch("--", "/usr/bin/python3", "-c", script, popen=True, **terminal.popen_options())
    terminal.expect("refused")
    assert process.wait(30) in (3, -signal.SIGKILL)
    assert terminal.mode() == before
    assert fcntl.ioctl(terminal.own, _TIOCGEXCL, bytes(4)) == bytes(4)
    assert os.get_blocking(terminal.own), "who reads there next waits"


def test_the_terminal_survives_a_launch_that_fails(launch, terminal):
    before = terminal.mode()
    process = launch("-t", "--", "no-such-command", popen=True, **terminal.popen_options())
    terminal.expect("cannot run no-such-command")
    assert process.wait(30) == 127
    assert terminal.mode() == before


@pytest.mark.parametrize("words", [(), ("-t",), ("--isolation", "none")], ids=" ".join)
def test_a_terminal_that_goes(launch, terminal, words):
    """Its window is closed, or a connection lost: who leads the session is told, and that is nobody but sandbox."""
    script = "trap 'exit 9' HUP; echo rea''dy; while :; do sleep 0.1; done 2>/dev/null"
    process = launch(*words, "--", "sh", "-c", script, popen=True, **terminal.popen_options())
    terminal.expect("ready")
    terminal.hang_up()
    assert process.wait(30) == 9


def test_a_flood_does_not_hold_up_the_interrupt(launch, terminal):
    process = launch("-t", "--", "yes", popen=True, **terminal.popen_options())
    terminal.expect("y\r\ny\r\n")
    terminal.write("\x03")
    assert terminal.drain(process, 60)
    assert process.returncode == -signal.SIGINT
