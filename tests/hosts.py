"""Several hosts made of one machine, out of namespaces and control groups, to start ranks on.

A host has a network, a name, processes, a /dev/shm, a home, a folder for temporary files and, if wanted, a limit of
memory of its own; with the others it shares CPUs and files. They hang on a switch with a link each. The switch is at
the same time the *login node*, from which jobs are started: by an agent in place of ssh.

Nothing here has a name that another test run could take. A host is what its first process holds: when that ends, and
it ends with this Python, however this ends, Linux kills the rest of the host's processes and takes away its network
and its mounts. Only a control group stays behind a Python that was killed; it is removed by the next.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from processes import run_to_end

TOOLS = ("ip", "tc", "nsenter", "unshare", "mount", "ps")
NAMESPACES = ("--net", "--uts", "--mount")
PROCESSES = ("--pid", "--fork", "--kill-child", "--mount-proc")
# Where control groups of memory are; what limits memory, what swap, and what counts the killed: of version 1, of 2.
GROUPS = {
    Path("/sys/fs/cgroup/memory"): ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control"),
    Path("/sys/fs/cgroup"): ("memory.max", "memory.swap.max", "memory.events"),
}
PREFIX = "mfpar-host"
BRIDGE = "02:00:00:00:00:fe"
BIN = Path(sys.executable).parent
OPEN_MPI = (BIN / "prterun").exists()  # else MPICH, if any


def why_not(memory: Mapping[int, int] | None = None) -> str:
    """A sentence that says why hosts (with limits of memory) can't be made here; "" where they can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"hosts out of namespaces need {', '.join(missing)}, which this machine does not have"
    if not (BIN / "mpirun").exists():
        return f"there is no mpirun in {BIN} to start ranks on hosts with"
    trial = "mount -t tmpfs shm /dev/shm && ip link add one type veth peer name two && ip link add three type bridge"
    trial += " && tc qdisc add dev one root tbf rate 1mbit burst 32k latency 1s"
    done = subprocess.run(
        ["unshare", *NAMESPACES, *PROCESSES, "sh", "-c", trial], capture_output=True, text=True, timeout=20
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"hosts out of namespaces may not be made here, which takes root's capabilities: {reason}"
    if memory and _memory_groups() is None:
        return "a host's memory can't be limited here: no control groups of memory that may be written"
    return ""


def _memory_groups() -> Path | None:
    """The folder of control groups of memory, of whichever version is mounted."""
    for folder, (limit, *_) in GROUPS.items():
        given = folder / "cgroup.subtree_control"
        able = "memory" in given.read_text().split() if given.exists() else (folder / limit).exists()
        if able and os.access(folder, os.W_OK):
            return folder
    return None


class Hosts:
    """Hosts and their switch; a context manager that makes and removes them.

    Parameters
    ----------
    folder : Path
        Of the test; hosts keep their own folders in it.
    count : int
    memory : bytes that the processes of host n may take together, by n
    rate : what a link carries, as tc has it: "100mbit"; None: what the machine manages

    Attributes
    ----------
    names : list[str]
    groups : dict[str, Path]
        Control groups of those with a limit of memory.
    """

    def __init__(self, folder: Path, count: int, memory: Mapping[int, int] | None = None, rate: str | None = None):
        self.names = [f"mfpar{n}" for n in range(count)]
        self._folder, self._memory, self._rate = folder / "hosts", dict(memory or {}), rate
        self.groups: dict[str, Path] = {}
        self._holders: dict[str, int] = {}
        self._agent = self._folder / "agent"
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir()
        addresses = [f"10.77.0.{1 + n} {name}\n" for n, name in enumerate(self.names)]
        (self._folder / "addresses").write_text("".join(["127.0.0.1 localhost\n", "10.77.0.254 login\n", *addresses]))
        with contextlib.ExitStack() as closing:
            remove_groups_of_the_dead()
            self._switch = closing.enter_context(_holder("login", self._folder / "addresses", ()))
            # An address of its own: it would take another port's, and with the end of that host a new one.
            self._on_switch(f"ip link add br0 address {BRIDGE} type bridge")
            self._on_switch("ip addr add 10.77.0.254/24 dev br0 && ip link set br0 up")
            for n, name in enumerate(self.names):
                # The group is removed behind its host.
                if n in self._memory:
                    self.groups[name] = closing.enter_context(_group(n, self._memory[n]))
                holder = closing.enter_context(_holder(name, self._folder / "addresses", PROCESSES))
                self._holders[name] = holder
                self._connect(n, holder)
                self._write_door(name, holder, self.groups.get(name))
            _script(self._agent, _AGENT.format(folder=shlex.quote(str(self._folder))))
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def own_folder(self, name: str) -> Path:
        """Where the home, temporary files and caches of a host are."""
        return self._folder / f"own-{name}"

    def sent(self, name: str) -> int:
        """Bytes that have left a host."""
        # /sys would speak of the machine's own network.
        line = next(line for line in self.run_on(name, "cat", "/proc/net/dev").splitlines() if "eth0:" in line)
        return int(line.split(":")[1].split()[8])

    def killed(self, name: str) -> int:
        """How many processes of a host with a limit of memory were killed for it."""
        group = self.groups[name]
        counts = dict(line.split() for line in (group / GROUPS[group.parent][2]).read_text().splitlines())
        return int(counts["oom_kill"])

    def run_on(self, name: str, *command: str) -> str:
        """What a command prints on a host."""
        done = subprocess.run(
            [str(self._folder / name), *command], capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout

    def cut_off(self, name: str) -> None:
        """Take a host off the network; its processes go on, but the agent does not reach it any more."""
        _script(self._folder / name, "#!/bin/sh\nsleep 3\nexit 255\n")
        self._on_switch(f"ip link set p{self.names.index(name)} down")

    def destroy(self, name: str) -> None:
        """End a host with all its processes, at once."""
        os.kill(self._holders[name], signal.SIGKILL)

    def run(
        self, ranks_each: int, *arguments: object, timeout: float, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `mfpar ARGUMENTS` on so many ranks of each host, started from the login node in the test's folder.

        Ranks have what `environment` says, but nothing else of this process's environment.
        """
        command = [*self._launcher(ranks_each, list(environment or {})), sys.executable, "-m", "mfpar"]
        return self.run_on_login([*command, *map(str, arguments)], timeout, environment)

    def run_on_login(
        self, command: list[str], timeout: float, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node, where Open MPI's mpirun finds the agent."""
        script = f"cd {shlex.quote(str(self._folder.parent))} && exec {shlex.join(command)}"
        enter = ["nsenter", "--target", str(self._switch), *NAMESPACES, "sh", "-c", script]
        agent = {"PRTE_MCA_plm_ssh_agent": str(self._agent)}
        return run_to_end(enter, self._folder.parent, timeout, {**(environment or {}), **agent})

    def _launcher(self, ranks_each: int, passed: list[str]) -> list[str]:
        """The command line of mpirun, up to the program."""
        total = str(ranks_each * len(self.names))
        if OPEN_MPI:
            slots = ",".join(f"{name}:{ranks_each}" for name in self.names)
            return [
                *(str(BIN / "mpirun"), "--host", slots, "--map-by", "slot:oversubscribe", "--bind-to", "none"),
                *("-n", total, "--mca", "pml", "ob1", "--mca", "btl", "self,sm,tcp"),
                *("--mca", "btl_tcp_if_include", "eth0", *(word for name in passed for word in ("-x", name))),
            ]
        return [
            *(str(BIN / "mpiexec"), "-launcher", "ssh", "-launcher-exec", str(self._agent)),
            *("-hosts", ",".join(self.names), "-ppn", str(ranks_each), "-n", total),
            *("-genvlist", ",".join(passed) or "LANG", "-genv", "UCX_TLS", "tcp,self"),
        ]

    def _connect(self, n: int, holder: int) -> None:
        self._on_switch(
            f"ip link add p{n} type veth peer name eth0 netns {holder} && ip link set p{n} master br0 && "
            f"ip link set p{n} up"
        )
        script = f"ip addr add 10.77.0.{1 + n}/24 dev eth0 && ip link set eth0 up"
        if self._rate:
            script += f" && tc qdisc add dev eth0 root tbf rate {self._rate} burst 256k latency 50ms"
        subprocess.run(["nsenter", "--target", str(holder), "--net", "sh", "-c", script], check=True, timeout=20)

    def _on_switch(self, script: str) -> None:
        subprocess.run(["nsenter", "--target", str(self._switch), "--net", "sh", "-c", script], check=True, timeout=20)

    def _write_door(self, name: str, holder: int, group: Path | None) -> None:
        """A script that runs a command on a host, with an environment like that of somebody who logs in."""
        own = self.own_folder(name)
        environment = {
            "PATH": os.defpath,
            "HOME": own / "home",
            "TMPDIR": own / "tmp",
            "NUMBA_CACHE_DIR": own / "numba",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        }
        for folder in ("home", "tmp", "numba"):
            (own / folder).mkdir(parents=True)
        settings = shlex.join(f"{variable}={value}" for variable, value in environment.items())
        enter = f"nsenter --target {holder} {' '.join(NAMESPACES)} --pid=/proc/{holder}/ns/pid_for_children"
        into = "" if group is None else f"echo $$ > {group}/cgroup.procs\n"
        _script(self._folder / name, f'#!/bin/sh\n{into}exec {enter} env -i {settings} "$@"\n')


# What launchers call like ssh: agent [OPTIONS] HOST COMMAND…, the command being text for a shell.
_AGENT = """#!/bin/sh
while case $1 in -*) true ;; *) false ;; esac; do
    case $1 in -[lop]) shift ;; esac
    shift
done
host=$1
shift
exec {folder}/"$host" sh -c "cd; $*"
"""

# The first process of a host: ends when the other end of its standard input is closed.
_FIRST = """echo "$1" > /proc/sys/kernel/hostname && mount -t tmpfs shm /dev/shm && mount --bind "$2" /etc/hosts &&
ip link set lo up && echo ready && exec cat > /dev/null"""


@contextlib.contextmanager
def _holder(name: str, addresses: Path, more: tuple[str, ...]) -> Iterator[int]:
    """The number of a process that holds the namespaces of a host."""
    command = ["unshare", *NAMESPACES, *more, "sh", "-c", _FIRST, "sh", name, str(addresses)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout.readline() != "ready\n":
                raise OSError(f"the host {name} can't be made: {process.args}")
            yield process.pid
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def _group(n: int, limit: int) -> Iterator[Path]:
    """A control group whose processes may take so many bytes, and no swap."""
    folder = _memory_groups()
    group = folder / f"{PREFIX}-{os.getpid()}-{n}"
    group.mkdir()
    try:
        memory, swap, _ = GROUPS[folder]
        (group / memory).write_text(str(limit))
        if (group / swap).exists():
            (group / swap).write_text(str(limit) if "memsw" in swap else "0")
        yield group
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    for _ in range(100):  # its processes have ended, but may not all be gone
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.05)
        else:
            return


def remove_groups_of_the_dead() -> None:
    """Remove what Pythons that were killed have left."""
    folder = _memory_groups()
    for group in folder.glob(f"{PREFIX}-*-*") if folder else ():
        if not Path("/proc", group.name.split("-")[2]).exists():
            with contextlib.suppress(OSError):
                group.rmdir()


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
