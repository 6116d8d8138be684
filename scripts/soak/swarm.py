"""Processes of one swarm on this machine, their logs in a folder, and what the system says of them."""
import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RELEASE = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
BINARY = RELEASE / "sepal"
ANY_PORT = ("--listen", "/ip4/127.0.0.1/tcp/0")
# Memory still grows while tables fill and every server has met every other one.
WARM_UP_MINUTES = 3
MAX_GROWTH = 1.10


class Swarm:
    """The processes, their logs in a folder."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.processes = {}

    def start(self, name: str, *arguments: str) -> None:
        out = open(self.folder / f"{name}.out", "wb")
        err = open(self.folder / f"{name}.err", "wb")
        self.processes[name] = subprocess.Popen([BINARY, *arguments], stdout=out, stderr=err)

    def wait_line(self, name: str, start: str) -> str:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            for line in (self.folder / f"{name}.out").read_text().splitlines():
                if line.startswith(start):
                    return line.removeprefix(start)
            if self.processes[name].poll() is not None:
                break
            time.sleep(0.2)
        sys.exit(f"{name} never printed {start!r}: {(self.folder / f'{name}.err').read_text()[-2000:]}")

    def dead(self) -> list:
        return [name for name, process in self.processes.items() if process.poll() is not None]

    def usage(self) -> tuple:
        """Resident KiB of each process, CPU seconds of all, open files of all."""
        resident, ticks, files = [], 0, 0
        for process in self.processes.values():
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            resident.append(int(status.split("VmRSS:")[1].split()[0]))
            fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
            files += len(os.listdir(f"/proc/{process.pid}/fd"))
        return resident, ticks / os.sysconf("SC_CLK_TCK"), files

    def stop(self) -> bool:
        """Ctrl-C for everyone; whether all of them ended with success."""
        for process in self.processes.values():
            process.send_signal(signal.SIGINT)
        return all([process.wait(timeout=120) == 0 for process in self.processes.values()])


def resident_mib(process: subprocess.Popen) -> float:
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
