"""The process behind a private network: attaches the namespace of one run, answers its name queries, takes all down.

It has the rights of who launches. It ends when the engine closes its end of the socket, however the engine ends.
"""

import contextlib
import os
import re
import selectors
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import IO, Any, NoReturn

import prctl

from sandbox.engine import syscalls as sys
from sandbox.errors import HostError, SandboxError, reason
from sandbox.network import NFT, RESOLV_CONF, SLIRP, Private
from sandbox.plan_types import Mode

DEVICE = "tap0"
LINK_LOCAL = "169.254.0.0/16"
_SECONDS = 10.0
_ANSWER_SECONDS = 10.0
_MAX_QUERY = 65535


def main(control: socket.socket, private: Private) -> NoReturn:
    """Serve one run; never returns."""
    try:
        _stand_alone(control.fileno())
        _serve(control, private)
    finally:
        # All that was made is gone: the engine, which waits for it, sees the end of the socket.
        os._exit(0)


def _serve(control: socket.socket, private: Private) -> None:
    with contextlib.ExitStack() as stack:
        try:
            servers = _attach(int(control.recv(64) or b"0"), private, stack)
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


def _attach(pid: int, private: Private, stack: contextlib.ExitStack) -> "list[socket.socket]":
    """Connect the network namespace of a process; the sockets in it that are asked for names. Raises anything."""
    if pid <= 0:
        raise HostError("the engine asked for no network")
    from pyroute2 import IPRoute

    # Open for as long as it is needed: a number may be given to somebody else.
    namespaces = {kind: os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "net")}
    if private.mode is Mode.ROOT:
        os.close(namespaces.pop("user"))
    with IPRoute() as host:
        own = [address for address in map(_address, host.get_addr(family=socket.AF_INET)) if address[:4] != "127."]
        if os.path.basename(private.program) == NFT.encode():
            from sandbox import veth

            local, gateway = veth.make(host, namespaces["net"], stack)
        else:
            local, gateway = f"{private.run}/24", private.gateway
            stack.enter_context(_program(private, namespaces))
    return _inside(namespaces, local, gateway, [LINK_LOCAL, *(f"{address}/32" for address in own)], private.resolver)


def _address(message: Any) -> str:
    """The host's own end, where there are two."""
    return str(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))


@contextlib.contextmanager
def _program(private: Private, namespaces: dict[str, int]) -> Iterator[None]:
    """slirp4netns or pasta, which makes the device and carries what goes through it."""
    # By descriptor: pasta drops the right to look into /proc/PID before it looks.
    names = {kind: f"/proc/self/fd/{fd}" for kind, fd in namespaces.items()}
    program = os.fsdecode(private.program)
    ready, tell = os.pipe()
    wait, end = os.pipe()
    if os.path.basename(program) == SLIRP:
        argv = [program, "--disable-host-loopback", "--disable-dns", f"--cidr={private.network}", "--mtu=65520"]
        argv += [f"--ready-fd={tell}", f"--exit-fd={wait}", "--netns-type=path"]
        argv += [] if private.mode is Mode.ROOT else [f"--userns-path={names['user']}"]
        argv += [names["net"], DEVICE]
    else:
        # It maps nothing in, neither a port nor the gateway's address to the host's loopback device.
        argv = [program, "--foreground", "--quiet", "--ipv4-only", "--no-map-gw", f"--ns-ifname={DEVICE}"]
        argv += [word for option in ("-t", "-u", "-T", "-U") for word in (option, "none")]
        argv += [f"--address={private.run}", "--netmask=24", f"--gateway={private.gateway}", f"--netns={names['net']}"]
        argv += ["--netns-only", "--runas=0"] if private.mode is Mode.ROOT else [f"--userns={names['user']}"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    fds = (tell, wait, *namespaces.values())
    # It must not outlive this process, however that ends.
    with subprocess.Popen(
        argv, pass_fds=fds, preexec_fn=lambda: prctl.set_pdeathsig(signal.SIGKILL), **pipes
    ) as process:  # type: ignore[call-overload]
        for fd in (tell, wait):
            os.close(fd)
        try:
            if os.path.basename(program) == SLIRP and not os.read(ready, 1):
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


def _drain(pipe: IO[bytes]) -> None:
    with contextlib.suppress(OSError, ValueError):
        while os.read(pipe.fileno(), 65536):
            pass


# -- in the namespace of the run -------------------------------------------------------------------------------


def _inside(
    namespaces: dict[str, int], local: str, gateway: str, closed: list[str], resolver: str
) -> "list[socket.socket]":
    """Set up what is in the namespace, in a process that enters it; the sockets come back as descriptors."""
    ours, theirs = socket.socketpair()
    if (pid := os.fork()) == 0:
        try:
            for fd in namespaces.values():
                sys.setns(fd)
            _configure(local, gateway, closed, resolver)
            servers = [_server(resolver, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
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


def _configure(local: str, gateway: str, closed: list[str], resolver: str) -> None:
    import time

    from pyroute2 import IPRoute

    with IPRoute() as ip:
        loopback = ip.link_lookup(ifname="lo")[0]
        ip.link("set", index=loopback, state="up")
        ip.addr("add", index=loopback, address=resolver, prefixlen=32)
        end = time.monotonic() + _SECONDS
        while not (found := ip.link_lookup(ifname=DEVICE)):
            if time.monotonic() > end:
                raise HostError("its device did not appear", hint="does the program work by itself?")
            time.sleep(0.01)
        address, _, length = local.partition("/")
        ip.link("set", index=found[0], state="up")
        ip.addr("replace", index=found[0], address=address, prefixlen=int(length))
        ip.route("replace", dst="0.0.0.0/0", gateway=gateway, oif=found[0])
        # The host by whatever address, and the cloud's metadata; nobody in here has the right to change it.
        for place in closed:
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
