"""A real Dask cluster of processes, started as a user starts one: a scheduler, and workers with what they carry."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from distributed import Client, Security

STAND_IN = Path(__file__).parent.parent / "device" / "stand_in_trtexec.py"
PATIENCE_S = 300.0


@dataclass
class Cluster:
    """A scheduler and its workers; `address` is that of the scheduler, `environment` and `security` are Dask's TLS."""

    folder: Path
    address: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    security: Security | None = None
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self, *command: str, **environment: str) -> "subprocess.Popen[bytes]":
        log = (self.folder / f"{len(self.processes)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self.folder,
                env={**os.environ, **self.environment, **environment},
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def start_scheduler(self, protocol: str = "tcp") -> None:
        file = self.folder / "scheduler.json"
        self.start(
            "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
            "--protocol", protocol, "--scheduler-file", str(file),
        )  # fmt: skip
        self.wait_for(lambda: _is_whole(file), "a scheduler")
        self.address = json.loads(file.read_text())["address"]

    def start_worker(self, name: str, *, resources: str = "", **environment: str) -> "subprocess.Popen[bytes]":
        """Start a worker of one thread and without a nanny, so that killing it leaves none; wait until it is there."""
        carried = ["--resources", resources] if resources else []
        process = self.start(
            "distributed.cli.dask_worker", self.address, "--name", name, "--nthreads", "1", "--no-nanny",
            "--no-dashboard", "--memory-limit", "0", *carried, **environment,
        )  # fmt: skip
        self.wait_for(lambda: name in self.names(), f"the worker {name}")
        return process

    def start_device_worker(self, name: str, resources: str, trtexec: Path, **more: str) -> "subprocess.Popen[bytes]":
        """Start a worker on a 'device': there is a program that pretends to be its trtexec."""
        return self.start_worker(name, resources=resources, **{**device_environment(trtexec), **more})

    def names(self) -> list[str]:
        with Client(self.address, security=self.security, set_as_default=False) as client:
            return [one["name"] for one in client.scheduler_info(n_workers=-1)["workers"].values()]

    def wait_for(self, condition, what: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not condition():
            logs = "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))
            assert time.monotonic() < until, f"waited in vain for {what}:\n{logs}"
            time.sleep(0.05)

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()


def _is_whole(file: Path) -> bool:
    """Return whether the scheduler has written its file to the end; it writes into the file that is seen."""
    try:
        json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


def device_environment(trtexec: Path, device: str = "Tesla T4", capability: str = "7.5") -> dict[str, str]:
    """Return what makes a program pretend to be the trtexec of a device."""
    return {
        "STAND_IN_VERSION": "10.3.0",
        "STAND_IN_DEVICE": device,
        "STAND_IN_CAPABILITY": capability,
        "STAND_IN_MS": "2.5",
        "KIT_MODEL_FILE": "/nonexistent",
        "TRTEXEC": str(trtexec),
    }


def write_trtexec(folder: Path, before: str = "") -> Path:
    """Write the stand-in for trtexec as a program; `before` is shell code that runs first."""
    path = folder / "trtexec"
    path.write_text(f'#!/bin/bash\n{before}\nexec "{sys.executable}" -IS "{STAND_IN}" "$@"\n')
    path.chmod(0o755)
    return path
