"""Nodes as child processes: `sepal` as it was built, and the Python peers of ../python. All on loopback.

Each process has a group of its own, which is killed when the test ends and also when the tests themselves are killed.
Waits are for conditions; their limits only keep a broken run from hanging.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = REPOSITORY / "interop-tests" / "python"
STARTUP = 180.0  # seconds; Petals takes half a minute on a busy machine
LOOPBACK = "/ip4/127.0.0.1/tcp/0"

MODEL = "sepal/tiny-llama"
PREFIX = "tiny-llama-hf"
N_BLOCKS = 4


def wait_for(what, condition, limit=STARTUP):
    """The first true value of `condition`, asked again and again."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for {what}")


class LastWill:
    """A shell that kills the groups it was told of as soon as this process is gone, whatever the reason."""

    def __init__(self):
        watch = 'while read -r group; do groups="$groups $group"; done; for g in $groups; do kill -s KILL -- "-$g" 2>/dev/null; done'
        self.shell = subprocess.Popen(["sh", "-c", watch], stdin=subprocess.PIPE, text=True, start_new_session=True)

    def add(self, group):
        self.shell.stdin.write(f"{group}\n")
        self.shell.stdin.flush()


class Process:
    """A running program; what it says is collected."""

    will = None

    def __init__(self, name, command, env, cwd):
        if Process.will is None:
            Process.will = LastWill()
        self.name, self.out, self.err = name, "", ""
        self.child = subprocess.Popen(
            command, env=env, cwd=cwd, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        Process.will.add(self.child.pid)
        for pipe in ("out", "err"):
            threading.Thread(target=self._collect, args=(pipe,), daemon=True).start()

    def _collect(self, pipe):
        for line in getattr(self.child, f"std{pipe}"):
            setattr(self, pipe, getattr(self, pipe) + line)

    def wait_match(self, pattern, pipe="out", limit=STARTUP):
        """The match of `pattern` in complete lines of what it says."""

        def look():
            text = getattr(self, pipe)
            found = re.search(pattern, text[: text.rfind("\n") + 1], re.MULTILINE)
            if not found and self.child.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.child.returncode} without saying {pattern}\n{self.tail()}")
            return found

        try:
            return wait_for(f"{pattern} from {self.name}", look, limit)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None

    def ask(self, order):
        """One JSON line in, one out."""
        before = self.out.count("\n")
        self.child.stdin.write(json.dumps(order) + "\n")
        self.child.stdin.flush()
        wait_for(f"an answer of {self.name}", lambda: self.out.count("\n") > before)
        return json.loads(self.out.splitlines()[before])

    def tail(self):
        return f"--- {self.name}, stdout\n{self.out[-2000:]}\n--- {self.name}, stderr\n{self.err[-4000:]}"

    def kill(self):
        """At once, with all of its children: nobody is told."""
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait()


class Hub:
    """A Hugging Face cache with the test model under its repository name, as both programs find it offline."""

    def __init__(self, folder):
        self.folder = folder
        entry, commit = folder / "models--sepal--tiny-llama", "0" * 39 + "1"
        fixture = REPOSITORY / "protocol/vectors/petals/tiny-llama"
        (entry / "refs").mkdir(parents=True)
        (entry / "refs/main").write_text(commit)
        shutil.copytree(fixture, entry / "snapshots" / commit)
        (folder / "version.txt").write_text("1")  # else transformers takes it for a cache of an old version

    def env(self):
        caches = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "PETALS_CACHE", "XDG_CACHE_HOME"]
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HIVEMIND_COLORS": "False"}
        return {**os.environ, **dict.fromkeys(caches, str(self.folder)), **offline, "RUST_LOG": "info"}


class Node:
    """A process that listens."""

    def __init__(self, process, addr):
        self.process, self.addr = process, addr
        self.peer_id = addr.rsplit("/p2p/", 1)[-1] if addr else None
        self.kill = process.kill

    @property
    def url(self):
        """Where its health map is."""
        return self.process.wait_match(r"^health map (http://127\.0\.0\.1:\d+/)$")[1]


class Swarm:
    """Starts nodes and ends them all."""

    def __init__(self, folder, sepal, python):
        self.hub, self.sepal, self.python, self.processes = Hub(folder), sepal, python, []

    def start(self, name, command):
        process = Process(name, command, self.hub.env(), self.hub.folder)
        self.processes.append(process)
        return process

    def ours(self, *arguments):
        """`sepal` with these arguments, listening on a free port of loopback unless they say where."""
        listen = [] if "--listen" in arguments else ["--listen", LOOPBACK]
        process = self.start(f"sepal {arguments[0]}", [self.sepal, *arguments, *listen])
        return Node(process, process.wait_match(r"^listening (\S+)$")[1])

    def bootstrap(self):
        return self.ours("bootstrap")

    def serve(self, model, blocks, *more, initial=None):
        """`sepal serve`; returns once others can find the blocks."""
        where = ["--initial-peers", initial.addr] if initial else ["--new-swarm"]
        quick = ["--throughput", "100", "--update-period", "5"]
        node = self.ours("serve", model, "--blocks", blocks, *where, *quick, *more)
        node.process.wait_match(rf"^online .* {blocks}$")
        return node

    def health(self, initial, http="127.0.0.1:0"):
        """`sepal health` with its page."""
        process = self.start("sepal health", [self.sepal, "health", "--initial-peers", initial.addr, "--http", http])
        return Node(process, None)

    def petals(self, blocks, initial, *more):
        """A Petals 2.2.0 server; returns once it serves."""
        options = ["--host_maddrs", LOOPBACK, "--device", "cpu", "--torch_dtype", "float32", "--throughput", "100"]
        options += ["--num_handlers", "1", "--update_period", "5", *more]
        command = [self.python, str(PEERS / "petals_server.py"), MODEL, "--block_indices", blocks, "--initial_peers", initial.addr]
        process = self.start(f"petals {blocks}", command + options)
        process.wait_match("Started", pipe="err")
        own = process.wait_match(r"Running a server on .*?(/ip4/127\.0\.0\.1/\S*?/p2p/\w+)", pipe="err")
        return Node(process, own[1])

    def dht_peer(self, initial):
        """A plain hivemind node that stores what it is told to."""
        process = self.start("dht_peer.py", [self.python, str(PEERS / "dht_peer.py"), initial.addr])
        process.wait_match("peer_id")
        return process

    def end(self):
        for process in self.processes:
            process.kill()
