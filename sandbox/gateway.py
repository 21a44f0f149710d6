"""The process behind a private network: attaches the namespace of one run, answers its name queries, takes all down.

It has the rights of who launches. It ends when the engine closes its end of the socket, however the engine ends.
"""

import contextlib
import fcntl
import os
import re
import select
import selectors
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any, NoReturn

import prctl

from sandbox import fsops
from sandbox.engine import syscalls as sys
from sandbox.errors import HostError, SandboxError, reason
from sandbox.network import NFT, RESOLV_CONF, SLIRP, Private
from sandbox.plan_types import Mode

DEVICE = "tap0"
# The largest that fits a packet and its Ethernet header: fewer frames carry more.
MTU = 65520
_SECONDS = 30.0
_ANSWER_SECONDS = 10.0
_MAX_QUERY = 65535
_MAX_FRAME = 65536


def main(control: socket.socket, private: Private, where: bytes) -> NoReturn:
    """Serve one run; never returns. A directory that is needed for a moment is made in `where`."""
    try:
        _stand_alone(control.fileno())
        _serve(control, private, where)
    finally:
        # All that was made is gone: the engine, which waits for it, sees the end of the socket.
        os._exit(0)


def _serve(control: socket.socket, private: Private, where: bytes) -> None:
    with contextlib.ExitStack() as stack:
        try:
            request, fds, _, _ = socket.recv_fds(control, 64, 3)
            if not request:
                return
            servers = _attach(int(request), fds, private, where, stack)
        except SandboxError as error:
            control.sendall(str(error).encode(errors="replace"))
            return
        except Exception as error:  # of pyroute2, which has many
            why = reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            control.sendall(f"cannot attach a private network: {why}".encode(errors="replace"))
            return
        control.sendall(b"ok\n")
        _Relay(control, servers).run()


def _stand_alone(control: int) -> None:
    """Holds nothing that somebody may wait for, and no terminal sends it signals."""
    os.setsid()
    prctl.set_name("sandbox-gateway")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, control)
    os.closerange(control + 1, 65536)
    os.chdir("/")


def _attach(
    pid: int, fds: "list[int]", private: Private, where: bytes, stack: contextlib.ExitStack
) -> "list[socket.socket]":
    """Connect the network namespace of a process; the sockets in it that are asked for names. Raises anything."""
    if private.mode is Mode.SETUID:
        if len(fds) != 3:
            raise HostError(
                "the helper handed over no network", hint="put this version's in place: sandbox setuid install"
            )
        tap, *servers = fds
        _carry(tap, stack.enter_context(_by_socket(private, where)))
        return [socket.socket(fileno=fd) for fd in servers]
    # Open for as long as it is needed: a number may be given to somebody else.
    namespaces = {kind: os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "net")}
    if private.mode is Mode.ROOT:
        os.close(namespaces.pop("user"))
    if os.path.basename(private.program) == NFT.encode():
        from pyroute2 import IPRoute

        from sandbox import veth

        with IPRoute() as host:
            veth.make(host, namespaces["net"], private, stack)
    else:
        argv = _enter(private, {kind: f"/proc/self/fd/{fd}" for kind, fd in namespaces.items()})
        stack.enter_context(_program(argv, [*namespaces.values()]))
    return _inside(namespaces, private)


def _enter(private: Private, names: dict[str, str]) -> "list[str]":
    """The words for slirp4netns or pasta that make a device in the namespaces of these names.

    Names of descriptors: pasta drops the right to look into /proc/PID before it looks.
    """
    program = os.fsdecode(private.program)
    if os.path.basename(program) == SLIRP:
        user = [] if private.mode is Mode.ROOT else [f"--userns-path={names['user']}"]
        return [*_slirp(private), "--netns-type=path", *user, names["net"], DEVICE]
    # It maps nothing in, neither a port nor the gateway's address to the host's loopback device.
    argv = [program, "--foreground", "--quiet", "--ipv4-only", "--no-map-gw", f"--ns-ifname={DEVICE}"]
    argv += [word for option in ("-t", "-u", "-T", "-U") for word in (option, "none")]
    address, _, length = private.address.partition("/")
    argv += [f"--address={address}", f"--netmask={length}", f"--gateway={private.gateway}", f"--netns={names['net']}"]
    return argv + (["--netns-only", "--runas=0"] if private.mode is Mode.ROOT else [f"--userns={names['user']}"])


def _slirp(private: Private) -> "list[str]":
    closed = ["--disable-host-loopback", "--disable-dns"]
    return [os.fsdecode(private.program), *closed, f"--cidr={private.network}", f"--mtu={MTU}"]


@contextlib.contextmanager
def _program(argv: "list[str]", fds: "list[int]", begin: "Callable[[], bool]" = lambda: True) -> Iterator[None]:
    """slirp4netns or pasta, which carries what goes through the device; `begin` is asked until that was done."""
    is_slirp = os.path.basename(argv[0]) == SLIRP
    ready, tell = os.pipe()
    wait, end = os.pipe()
    if is_slirp:
        argv = [argv[0], f"--ready-fd={tell}", f"--exit-fd={wait}", *argv[1:]]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(argv, pass_fds=(tell, wait, *fds), preexec_fn=lambda: _end_with_us(wait), **pipes) as process:  # type: ignore[call-overload]
        for fd in (tell, wait):
            os.close(fd)
        try:
            _until(lambda: begin() or process.poll() is not None)
            if is_slirp:
                _until(lambda: select.select([ready], [], [], 0)[0])
                if not os.read(ready, 1):
                    said = process.stdout.read().decode(errors="replace").strip().splitlines()
                    raise HostError(f"{SLIRP} cannot attach a private network: {said[-1] if said else 'it died'}")
            # Nobody reads what it says from here on, and it must not wait for that.
            threading.Thread(target=_drain, args=(process.stdout,), daemon=True).start()
            yield
        finally:
            os.close(end)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            process.kill()
            os.close(ready)


def _end_with_us(pipe: int) -> None:
    """This process must not outlive the one that started it, however that ends; nor must a child of its own.

    slirp4netns has one that waits for the connection. When the other end of the pipe is closed, SIGIO ends all of them.
    """
    prctl.set_pdeathsig(signal.SIGKILL)
    os.setpgid(0, 0)
    fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)


def _until(done: "Callable[[], object]") -> None:
    """Wait. Raises HostError when that takes too long."""
    import time

    end = time.monotonic() + _SECONDS
    while not done():
        if time.monotonic() > end:
            raise HostError("the program that carries it did not get ready", hint="does it work by itself?")
        time.sleep(0.01)


def _drain(pipe: IO[bytes]) -> None:
    with contextlib.suppress(OSError, ValueError):
        while os.read(pipe.fileno(), 65536):
            pass


# -- where nobody but root may enter the namespace ---------------------------------------------------------------


@contextlib.contextmanager
def _by_socket(private: Private, where: bytes) -> Iterator[socket.socket]:
    """slirp4netns, and a socket that takes and gives frames, one in each message. Its name is gone at once."""
    name = fsops.temporary_name()
    with contextlib.ExitStack() as stack:
        parent = stack.enter_context(fsops.closing(os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
        own = stack.enter_context(fsops.closing(fsops.make_new_dir(parent, name)))
        # Short, whatever the directory is called (unix(7)).
        path = f"/proc/self/fd/{own}/frames"
        frames = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        try:
            argv = [*_slirp(private), "--target-type=bess", path]
            stack.enter_context(_program(argv, [own], lambda: _connects(frames, path)))
        finally:
            fsops.remove_tree(parent, name)
        yield frames


def _connects(frames: socket.socket, path: str) -> bool:
    """Whether somebody listens there by now."""
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        frames.connect(path)
        return True
    return False


def _carry(tap: int, frames: socket.socket) -> None:
    """Every frame that comes out of the device or the socket goes into the other."""
    os.set_blocking(tap, True)
    for here, there in ((tap, frames.fileno()), (frames.fileno(), tap)):
        threading.Thread(target=_copy, args=(here, there), daemon=True).start()


def _copy(here: int, there: int) -> None:
    with contextlib.suppress(OSError):
        while frame := os.read(here, _MAX_FRAME):
            # What is not taken is lost, as on any wire.
            with contextlib.suppress(OSError):
                os.write(there, frame)


# -- in the namespace of the run -------------------------------------------------------------------------------


def _inside(namespaces: dict[str, int], private: Private) -> "list[socket.socket]":
    """Set up what is in the namespace, in a process that enters it; the sockets come back as descriptors."""
    ours, theirs = socket.socketpair()
    if (pid := os.fork()) == 0:
        try:
            for fd in namespaces.values():
                sys.setns(fd)
            _configure(private)
            servers = [_server(private.resolver, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
            socket.send_fds(theirs, [b"ok"], [server.fileno() for server in servers])
        except BaseException as error:
            theirs.sendall(f"{type(error).__name__}: {error}"[:1000].encode(errors="replace"))
        finally:
            os._exit(0)
    theirs.close()
    for fd in namespaces.values():
        os.close(fd)
    with ours:
        answer, fds, _, _ = socket.recv_fds(ours, 2000, 2)
        os.waitpid(pid, 0)
    if answer != b"ok":
        raise HostError(f"cannot set up the private network: {answer.decode(errors='replace') or 'its process died'}")
    return [socket.socket(fileno=fd) for fd in fds]


def _configure(private: Private) -> None:
    """The same as the helper does where it must (setuid-helper/src/child/network.rs)."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        loopback = ip.link_lookup(ifname="lo")[0]
        ip.link("set", index=loopback, state="up")
        ip.addr("add", index=loopback, address=private.resolver, prefixlen=32)
        _until(lambda: ip.link_lookup(ifname=DEVICE))
        device = ip.link_lookup(ifname=DEVICE)[0]
        address, _, length = private.address.partition("/")
        # A pair of devices has an MTU that the host's wires bear.
        mtu = {} if os.path.basename(private.program) == NFT.encode() else {"mtu": MTU}
        ip.link("set", index=device, state="up", **mtu)
        ip.addr("replace", index=device, address=address, prefixlen=int(length))
        ip.route("replace", dst="0.0.0.0/0", gateway=private.gateway, oif=device)
        for place in private.closed:
            ip.route("replace", dst=place, type="prohibit")


def _server(address: str, kind: int) -> socket.socket:
    server = socket.socket(socket.AF_INET, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, 53))
    if kind == socket.SOCK_STREAM:
        server.listen()
    return server


# -- names -----------------------------------------------------------------------------------------------------


def nameservers() -> "list[str]":
    """The host's, as its own resolver has them: 127.0.0.53 is one like any other (resolv.conf(5))."""
    try:
        with open(RESOLV_CONF, errors="replace") as file:
            found = re.findall(r"^\s*nameserver\s+(\S+)", file.read(), re.MULTILINE)
    except OSError:
        found = []
    return found or ["127.0.0.1"]


class _Relay:
    """Passes name queries from the run's namespace to the host's name servers, as they are, and the answers back."""

    def __init__(self, control: socket.socket, servers: "list[socket.socket]") -> None:
        self.selector = selectors.DefaultSelector()
        self.control = control
        self.selector.register(control, selectors.EVENT_READ, None)
        for server in servers:
            serve = self.query if server.type == socket.SOCK_DGRAM else self.connect
            server.setblocking(False)
            self.selector.register(server, selectors.EVENT_READ, serve)
        self.pending: list[tuple[float, socket.socket]] = []

    def run(self) -> None:
        """Until the other end of `control` is closed."""
        import time

        while True:
            for key, _ in self.selector.select(1.0):
                if key.data is None:
                    return
                with contextlib.suppress(OSError):
                    key.data(key.fileobj)
            while self.pending and self.pending[0][0] < time.monotonic():
                self.close(self.pending.pop(0)[1])

    def expect(self, one: socket.socket, serve: Any) -> None:
        """Wait for what comes from `one`, but not forever, and of so many at most."""
        import time

        self.selector.register(one, selectors.EVENT_READ, serve)
        self.pending.append((time.monotonic() + _ANSWER_SECONDS, one))
        if len(self.pending) > 256:
            self.close(self.pending.pop(0)[1])

    def close(self, one: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(one)
        one.close()

    def query(self, server: socket.socket) -> None:
        data, client = server.recvfrom(_MAX_QUERY)
        for address in nameservers():
            with contextlib.suppress(OSError):
                upstream = _upstream(address, socket.SOCK_DGRAM)
                upstream.send(data)
                self.expect(upstream, lambda one, client=client: self.answer(one, server, client))

    def answer(self, upstream: socket.socket, server: socket.socket, client: Any) -> None:
        try:
            data = upstream.recv(_MAX_QUERY)
        finally:
            self.close(upstream)
        server.sendto(data, client)

    def connect(self, server: socket.socket) -> None:
        client, _ = server.accept()
        try:
            upstream = _upstream(nameservers()[0], socket.SOCK_STREAM)
        except OSError:
            client.close()
            raise
        for one, other in ((client, upstream), (upstream, client)):
            self.expect(one, lambda here, there=other: self.copy(here, there))

    def copy(self, here: socket.socket, there: socket.socket) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = here.recv(_MAX_QUERY)
            there.sendall(data)
        if not data:
            self.close(here)
            self.close(there)


def _upstream(address: str, kind: int) -> socket.socket:
    """Connected: the answer of nobody else is taken."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    one = socket.socket(family, kind)
    try:
        one.settimeout(2.0)
        one.connect((address, 53))
    except OSError:
        one.close()
        raise
    return one
