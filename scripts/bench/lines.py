"""A swarm on slow lines: hosts in network namespaces of this machine, each at the end of a line of its own. Needs root.

What is measured on it is in distance.py. Only Python's standard library.
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import report

PEERS = report.ROOT / "interop-tests" / "python"
PREFIX = "bench-hf"
STARTUP, RUN = 90, 300  # seconds
PORT, PROBED_PORT = 31337, 31338
PROBE = 5  # seconds of a plain transfer
LONGEST_QUEUE = 0.05  # seconds, as in slow_line.py
PACKET = 1500  # bytes


def command(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


class Process:
    """A program in a namespace, whose output goes to a file."""

    def __init__(self, namespace: str, words: list[object]) -> None:
        handle, name = tempfile.mkstemp(prefix="sepal-bench-")
        self.log = pathlib.Path(name)
        words = ["ip", "netns", "exec", namespace, *map(str, words)]
        with os.fdopen(handle, "w") as log:
            self.child = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, preexec_fn=os.setpgrp)

    def find(self, pattern: str) -> str:
        deadline = time.monotonic() + STARTUP
        while time.monotonic() < deadline:
            text = self.log.read_text(errors="replace")
            if found := re.search(pattern, text):
                return found[1]
            if self.child.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"no {pattern!r} in:\n{self.log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait(20)
        self.log.unlink(missing_ok=True)


class Network:
    """Hosts around one router. Between any two of them a round trip takes `round_trip` milliseconds."""

    def __init__(self, round_trip: float, rate: float = 0.0) -> None:
        if os.geteuid() != 0:
            raise RuntimeError("lines are emulated in network namespaces, which only root may make: run this as root")
        self.delay, self.rate = round_trip / 4, rate  # two lines there, two back
        self.names: list[str] = []
        self.processes: list[Process] = []
        self.how = ""
        self.router = self.namespace("router")
        command("ip", "netns", "exec", self.router, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.stop()
        for name in reversed(self.names):
            with contextlib.suppress(RuntimeError):
                command("ip", "netns", "del", name)

    def namespace(self, what: str) -> str:
        name = f"sepal-bench-{os.getpid()}-{what}"
        command("ip", "netns", "add", name)
        self.names.append(name)
        command("ip", "-n", name, "link", "set", "lo", "up")
        return name

    def host(self, what: str) -> tuple[str, str]:
        """Its namespace and its address."""
        name, net = self.namespace(what), f"25.{len(self.names)}.0"
        inner, outer = "wan", f"line{len(self.names)}"
        if not self.netem(name, inner, outer):
            line = [sys.executable, PEERS / "slow_line.py", inner, outer, self.delay, 0]
            self.run(self.router, line + [self.rate] * bool(self.rate)).find("(ready)")
            command("ip", "-n", self.router, "link", "set", inner, "netns", name)
        command("ip", "-n", self.router, "addr", "add", f"{net}.1/24", "dev", outer)
        command("ip", "-n", self.router, "link", "set", outer, "up")
        command("ip", "-n", name, "addr", "add", f"{net}.2/24", "dev", inner)
        command("ip", "-n", name, "link", "set", inner, "up")
        command("ip", "-n", name, "route", "add", "default", "via", f"{net}.1")
        return name, f"{net}.2"

    def netem(self, name: str, inner: str, outer: str) -> bool:
        """Makes a line with `tc netem`, if the kernel has it."""
        if self.how == "slow_line.py":
            return False
        command("ip", "-n", self.router, "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        rule = ["root", "netem", "delay", f"{self.delay}ms"]
        if self.rate:
            packets = self.rate * (LONGEST_QUEUE + self.delay / 1000) / PACKET
            rule += ["rate", f"{8 * self.rate:.0f}bit", "limit", f"{packets:.0f}"]
        try:
            command("tc", "-n", self.router, "qdisc", "add", "dev", outer, *rule)
            command("tc", "-n", name, "qdisc", "add", "dev", inner, *rule)
        except (RuntimeError, FileNotFoundError):
            command("ip", "-n", self.router, "link", "del", outer)
            self.how = "slow_line.py"
            return False
        self.how = "tc netem"
        return True

    def run(self, namespace: str, words: list[object]) -> Process:
        process = Process(namespace, words)
        self.processes.append(process)
        return process


class Swarm:
    """A bootstrap node, a server for each span, and a host for clients."""

    def __init__(self, network: Network, programs: pathlib.Path, folder: pathlib.Path, spans: list[str]) -> None:
        self.sepal, self.folder = programs / "sepal", folder
        self.network = network
        self.place, self.address = place, address = network.host("bootstrap")
        listen = lambda address: ["--listen", f"/ip4/{address}/tcp/{PORT}", "--no-port-mapping"]
        bootstrap = network.run(place, [self.sepal, "bootstrap", *listen(address)])
        self.initial = bootstrap.find(r"listening (/ip4/25\.\S+)")
        servers = []
        for i, span in enumerate(spans):
            place, address = network.host(f"server{i}")
            words = [self.sepal, "serve", folder, "--dht-prefix", PREFIX, "--blocks", span, "--initial-peers", self.initial]
            words += ["--dtype", "float32", "--threads", 1, "--throughput", 100, "--skip-reachability-check", *listen(address)]
            servers.append(network.run(place, words))
        for server in servers:
            server.find("(online )")
        self.client, _ = network.host("client")

    def line(self) -> dict:
        """What a plain TCP connection finds between two hosts: the round trip and, where there is a limit, bytes a second."""
        probe, words = PEERS / "tcp_probe.py", [self.address, PROBED_PORT]
        self.network.run(self.place, [sys.executable, probe, "serve", *words]).find("(ready)")
        return json.loads(self.finished([sys.executable, probe, "ask", *words, PROBE if self.network.rate else 0]))

    def generate(self, prompt: list[str], tokens: int, *flags: object) -> dict:
        """What our client says of a generation."""
        words = [self.sepal, "generate", self.folder, "--dht-prefix", PREFIX, "--initial-peers", self.initial, "--json"]
        words += [*prompt, "--max-new-tokens", tokens, *flags]
        found = json.loads(self.finished(words))
        return {"tokens_s": found["tokens_per_second"], "first_ms": found["time_to_first_token_ms"]}

    def petals(self, python: str, prompt: int, tokens: int) -> dict:
        """The same of Petals' client."""
        words = [python, PEERS / "bench_lines.py", self.folder, PREFIX, self.initial, prompt, tokens]
        return json.loads(self.finished(words).splitlines()[-1])

    def finished(self, words: list[object]) -> str:
        words = ["ip", "netns", "exec", self.client, *map(str, words)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=RUN, cwd=self.folder)
        if done.returncode:
            raise RuntimeError(f"{words[4]}: {done.stdout[-500:]}{done.stderr[-2000:]}")
        return done.stdout
