"""A Slurm cluster of two nodes on this machine, with its own files and ports, from Debian's slurm-wlm and munge."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "srun")
SETTINGS = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A job that goes back into the queue waits for its old credential to end, two minutes if nothing is said.
AuthInfo=socket={home}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/%n.pid
SlurmdSpoolDir={home}/spool-%n
StateSaveLocation={home}/state
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=1000
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=1000
PartitionName=main Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """What is missing for a cluster here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} here (Debian: apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "daemons of Slurm start jobs as root only"


@contextmanager
def local_slurm(home: Path) -> Iterator[Path]:
    """Run a cluster; gives its slurm.conf, for the environment variable SLURM_CONF."""
    settings = home / "slurm.conf"
    try:
        _start(home, settings)
        yield settings
    finally:
        for path in (home / "n0.pid", home / "n1.pid", home / "slurmctld.pid", home / "munged.pid"):
            if path.is_file():
                _end(int(path.read_text()))


def _start(home: Path, settings: Path) -> None:
    home.mkdir(parents=True)
    (home / "state").mkdir()
    host = socket.gethostname()
    settings.write_text(SETTINGS.format(host=host, home=home, ports=_free_ports(3)))
    key = home / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    files = {name: home / f"munged.{name.split('-')[0]}" for name in ("pid-file", "log-file", "seed-file")}
    options = [f"--{name}={path}" for name, path in files.items()]
    # --force: it would refuse a folder below /tmp
    _run(home, "munged", "--force", f"--key-file={key}", f"--socket={home}/munge.socket", *options)
    _run(home, "slurmctld", "-f", str(settings))
    for node in ("n0", "n1"):
        _run(home, "slurmd", "-f", str(settings), "-N", node)
    environment = {**os.environ, "SLURM_CONF": str(settings)}
    for _ in range(100):
        states = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True).stdout
        if states.split() == ["idle"]:
            return
        time.sleep(0.2)
    raise RuntimeError(f"the nodes did not come up: {states}{(home / 'slurmctld.log').read_text()[-2000:]}")


def _run(home: Path, *command: str) -> None:
    """Start a daemon. Its words go to a file: through a pipe they would not end before the daemon does."""
    words = home / f"{command[0]}.out"
    with words.open("a") as f:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=f, stderr=f, timeout=30)
    assert done.returncode == 0, words.read_text()


def _end(process: int) -> None:
    try:
        os.kill(process, signal.SIGTERM)
        for _ in range(50):
            os.kill(process, 0)
            time.sleep(0.1)
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()
