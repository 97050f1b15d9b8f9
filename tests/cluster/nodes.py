"""Nodes of a Ray cluster on this machine, each as much a machine of its own as the kernel allows.

Owns the namespaces that make a node (network, processes, mounts, host name), the wire between
nodes, and how a node ends: all at once, or by its link alone. What Ray and the application do on
them is asked and told from outside, over the nodes' addresses. A node has its own ``/dev/shm`` and
its own of the folders in which Ray and HAProxy keep sockets and logs; the other files are shared,
as by machines that mount the same disk. Nothing of a node outlives the test that has started it:
its first process ends when our end of its standard input does, and the kernel then ends the rest.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import which

import psutil

from tests.cluster.program import title_of, wait_until

RAY = Path(sys.executable).with_name("ray")
RAY_PORT = 6379
DASHBOARD_PORT = 8265
OBJECT_STORE_BYTES = 100 * 2**20
COMMAND_WITHIN_S = 120.0
END_WITHIN_S = 20.0
# Where Ray and Serve's HAProxy keep what belongs to one machine, whatever that is called.
OWN_FOLDERS = ("/tmp/ray", "/tmp/haproxy-serve")  # noqa: S108  (theirs, not ours)
APART = ("unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc")
# The first process of a node: it takes up orphans, as bash does, until its input closes.
INIT = """
set -e
mount -t tmpfs -o size={shm_mib}m tmpfs /dev/shm
{binds}
hostname {name}
ip link set lo up
read -r _
ip link set eth0 up
echo ready
set +e
read -r _
"""


def why_none() -> str:
    """Why this machine cannot have nodes in namespaces; empty if it can."""
    missing = [name for name in ("ip", "unshare", "nsenter") if which(name) is None]
    if missing:
        return f"{', '.join(missing)} missing"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"fsp{os.getpid()}"
    complaint = _complaint([*APART, "true"]) or _complaint(["ip", *_bridge(probe)])
    if not complaint:
        _ip("link", "delete", probe)
    return complaint


class Wire:
    """What connects the nodes with each other and with this process, whose address is ``host``."""

    def __init__(self) -> None:
        self._name = f"fs{os.getpid()}"
        self._network = f"10.231.{os.getpid() % 256}"
        self.host = self.address(1)
        _ip(*_bridge(self._name))
        _ip("address", "add", f"{self.host}/24", "dev", self._name)
        _ip("link", "set", self._name, "up")

    def address(self, number: int) -> str:
        return f"{self._network}.{number}"

    def plug(self, number: int, pid: int) -> str:
        """Give the network of this process an end of the wire; returns the name of ours."""
        link = f"{self._name}-{number}"
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        _ip("link", "set", link, "master", self._name, "up")
        inside = ["nsenter", "--net", "--target", str(pid), "ip"]
        _run([*inside, "address", "add", f"{self.address(number)}/24", "dev", "eth0"])
        return link

    def remove(self) -> None:
        _ip("link", "delete", self._name)


class Node:
    """One machine of the cluster, from its start to its end; the next in its place is another."""

    def __init__(
        self, wire: Wire, number: int, folder: Path, environment: Mapping[str, str]
    ) -> None:
        """``folder`` is where the node's own folders are; ``environment`` is added to ours."""
        self.address = wire.address(number)
        self._environment = {**os.environ, **environment}
        binds = [self._own_folder(folder, path) for path in OWN_FOLDERS]
        script = INIT.format(name=f"node-{number}", shm_mib=1024, binds="\n".join(binds))
        self._process = subprocess.Popen(
            [*APART, "--kill-child", "bash", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it complains when its child is killed
            text=True,
        )
        wait_until(lambda: bool(self._children()), "the node's first process", within_s=10)
        [self._init] = self._children()
        wait_until(self._is_apart, "the node has a network of its own", within_s=10)
        self._link = wire.plug(number, self._init.pid)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "ready\n"

    @staticmethod
    def _own_folder(folder: Path, path: str) -> str:
        own = folder / Path(path).name
        own.mkdir(parents=True, exist_ok=True)
        Path(path).mkdir(exist_ok=True)
        return f"mount --bind {own} {path}"

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children()

    def _is_apart(self) -> bool:
        return _network_of(self._init.pid) != _network_of(os.getpid())

    def run(self, *command: str | Path, within_s: float = COMMAND_WITHIN_S) -> str:
        """What a command says that runs on the node; fails with it where it fails."""
        inside = ["nsenter", "--target", str(self._init.pid), "--all", f"--wdns={Path.cwd()}"]
        return _run([*inside, *command], environment=self._environment, within_s=within_s)

    def start_ray(self, head: "Node | None" = None) -> None:
        """Ray's processes on this node, as an operator starts them: the head's, or one that joins.

        Returns when they are up.
        """
        role = (
            [f"--address={head.address}:{RAY_PORT}"] if head else ["--head", f"--port={RAY_PORT}"]
        )
        own = [f"--node-ip-address={self.address}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        self.run(RAY, "start", *role, *own, "--num-cpus=4", f"--dashboard-host={self.address}")

    @property
    def dashboard(self) -> str:
        return f"http://{self.address}:{DASHBOARD_PORT}"

    def processes(self) -> list[psutil.Process]:
        """All that run on the node, but for its first one."""
        with suppress(psutil.NoSuchProcess):
            return self._init.children(recursive=True)
        return []

    def parts(self, name: str) -> list[psutil.Process]:
        """Its processes of one kind: ``ROUTER``, ``ENGINE_CORE`` ..."""
        return [process for process in self.processes() if name in title_of(process)]

    def kill(self) -> None:
        """End all of its processes at once, without a word to them."""
        left = self.processes()
        with suppress(psutil.NoSuchProcess):
            self._init.kill()
        self._process.wait(END_WITHIN_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        _, alive = psutil.wait_procs(left, timeout=END_WITHIN_S)
        assert not alive, f"still running on a node that is gone: {alive}"

    def cut(self) -> None:
        """Let nothing through any more: as for the others, the machine has vanished in silence."""
        _ip("link", "set", self._link, "down")


@contextmanager
def wire() -> Iterator[Wire]:
    """A wire for as long as the nodes on it live."""
    made = Wire()
    try:
        yield made
    finally:
        made.remove()


def _network_of(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def _bridge(name: str) -> tuple[str, ...]:
    # An address of its own, else it takes the lowest of those plugged in: with a node that ends it
    # would change, and all others would send to one that is gone until they ask again, in a minute.
    address = "02:00:" + os.getpid().to_bytes(4, "big").hex(":")
    return "link", "add", name, "address", address, "type", "bridge"


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    within_s: float = COMMAND_WITHIN_S,
) -> str:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, timeout=within_s
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def _complaint(command: Sequence[str]) -> str:
    """What is wrong with a command; empty where nothing is."""
    try:
        _run(command)
    except AssertionError as error:
        return str(error)
    return ""
