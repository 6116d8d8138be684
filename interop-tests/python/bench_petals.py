"""Times servers of Petals beside ours with the same Petals client, on a checkpoint of bench_shapes.py or any Llama folder.

Usage: python bench_petals.py SEPAL FOLDER BLOCKS DTYPE TOKENS THREADS
SEPAL is our program; each server is a process on loopback, one at a time, and serves all BLOCKS in DTYPE (float32 or
bfloat16) on THREADS threads. Prints one JSON object a server: seconds of a token in a session of TOKENS tokens (median).
"""

import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

PREFIX = "bench-hf"
STARTUP = 180


class Process:
    """A program whose output goes to a file, and which is interrupted as a person would."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.log = pathlib.Path(tempfile.mkstemp(prefix="sepal-bench-")[1])
        with self.log.open("w") as log:
            self.child = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment, start_new_session=True
            )

    def find(self, pattern: str) -> str:
        deadline = time.monotonic() + STARTUP
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.log.read_text(errors="replace")):
                return found[1]
            if self.child.poll() is not None:
                break
            time.sleep(0.1)
        raise SystemExit(f"no {pattern!r} in:\n{self.log.read_text(errors='replace')[-3000:]}")

    def stop(self) -> None:
        self.child.send_signal(signal.SIGINT)
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.child.pid, signal.SIGKILL)  # hivemind's helpers outlive their parent
        except ProcessLookupError:
            pass
        self.log.unlink()


def servers(sepal: str, folder: str, n_blocks: int, dtype: str, threads: int, initial: str) -> dict[str, tuple[Process, str]]:
    """How to start each server, and what it says when it serves."""
    span = f"0:{n_blocks}"
    petals = [sys.executable, str(pathlib.Path(__file__).with_name("petals_server.py")), folder, "--dht_prefix", PREFIX]
    petals += ["--block_indices", span, "--initial_peers", initial, "--host_maddrs", "/ip4/127.0.0.1/tcp/0"]
    petals += ["--device", "cpu", "--torch_dtype", dtype, "--throughput", "100", "--num_handlers", "1"]
    ours = [sepal, "serve", folder, "--dht-prefix", PREFIX, "--blocks", span, "--initial-peers", initial, "--threads", str(threads)]
    ours += ["--listen", "/ip4/127.0.0.1/tcp/0", "--dtype", dtype, "--throughput", "100", "--skip-reachability-check"]
    return {
        "petals": (lambda: Process(petals, SERVER_THREADS=str(threads)), r"(Started)"),
        "sepal": (lambda: Process(ours), r"(online )"),
    }


def client(folder: str, initial: str, n_tokens: int) -> float:
    """Seconds of a token, by Petals' client: each one a step through the server."""
    import torch
    from petals import AutoDistributedModelForCausalLM

    model = AutoDistributedModelForCausalLM.from_pretrained(
        folder, dht_prefix=PREFIX, initial_peers=[initial], max_retries=3, torch_dtype=torch.float32
    ).eval()
    hidden = torch.randn(1, 1, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    times = []
    with torch.inference_mode(), model.transformer.h.inference_session(max_length=n_tokens + 8) as session:
        for step in range(n_tokens + 4):
            start = time.perf_counter()
            session.step(hidden)
            times.append(time.perf_counter() - start)
    return statistics.median(times[4:])


def main() -> None:
    sepal, folder, n_blocks, dtype, n_tokens, threads = sys.argv[1:7]
    bootstrap = Process([sepal, "bootstrap", "--listen", "/ip4/127.0.0.1/tcp/0", "--no-port-mapping"])
    try:
        initial = bootstrap.find(r"listening (/ip4/127\.0\.0\.1/tcp/\S+)")
        for name, (start, ready) in servers(sepal, folder, int(n_blocks), dtype, int(threads), initial).items():
            server = start()
            try:
                server.find(ready)
                # A process of its own: hivemind keeps one daemon a process, and torch's threads do not survive a fork.
                order = [sys.executable, __file__, "client", folder, initial, n_tokens]
                answer = subprocess.run(order, capture_output=True, text=True, timeout=STARTUP)
                if answer.returncode:
                    raise SystemExit(f"{name}: {answer.stderr[-3000:]}")
                seconds = float(answer.stdout.split()[-1])
                print(json.dumps({"server": name, "dtype": dtype, "blocks": int(n_blocks), "token_s": seconds}), flush=True)
            finally:
                server.stop()
    finally:
        bootstrap.stop()


if __name__ == "__main__":
    if sys.argv[1] == "client":
        import peer

        print(client(sys.argv[2], sys.argv[3], int(sys.argv[4])), flush=True)
        peer.finish(0)
    main()
