"""Times a server of Petals beside ours with the same clients, on a checkpoint of bench_shapes.py or any Llama folder.

Usage: python bench_petals.py ORDER
ORDER is a JSON object: programs (the folder of our release build), folder, blocks, dtype (float32 or bfloat16), threads,
sessions (how many at a time, such as [1, 16]), steps (of each session with our client), python_steps (with Petals' client;
0 for none), turns. Each server is a process on loopback that serves all blocks; both run, and one is asked at a time. Prints
a JSON object a server and turn: what `sessions_bench` says, seconds of a step with Petals' client (median), and, of ours,
seconds on the compute thread.
"""

import contextlib
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
import urllib.request

STARTUP = 180
RUN = 420
WARM_UP = 4  # steps with Petals' client that do not count
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
COLUMNS = ("sessions", "tokens_s", "p50_ms", "p99_ms", "slowest_fastest")


class Process:
    """A program whose output goes to a file, which is ready once that has `ready`, and is interrupted as a person would."""

    def __init__(self, command: list[str], ready: str, **environment: str) -> None:
        self.ready = ready
        self.log = pathlib.Path(tempfile.mkstemp(prefix="sepal-bench-")[1])
        with self.log.open("w") as log:
            self.child = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment, start_new_session=True
            )

    def __enter__(self) -> "Process":
        try:
            self.find(self.ready)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

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


def petals(order: dict, initial: str) -> Process:
    command = [sys.executable, str(pathlib.Path(__file__).with_name("petals_server.py")), order["folder"], "--dht_prefix", "petals-hf"]
    command += ["--block_indices", f"0:{order['blocks']}", "--initial_peers", initial, "--host_maddrs", LOOPBACK]
    command += ["--device", "cpu", "--torch_dtype", order["dtype"], "--throughput", "100", "--num_handlers", "1"]
    return Process(command, r"(Started)", SERVER_THREADS=str(order["threads"]))


def sepal(order: dict, initial: str) -> Process:
    command = [f"{order['programs']}/sepal", "serve", order["folder"], "--dht-prefix", "sepal-hf", "--blocks", f"0:{order['blocks']}"]
    command += ["--initial-peers", initial, "--listen", LOOPBACK, "--dtype", order["dtype"], "--threads", str(order["threads"])]
    command += ["--throughput", "100", "--skip-reachability-check", "--http", "127.0.0.1:0"]
    return Process(command, r"(online )")


def our_client(order: dict, initial: str, prefix: str) -> list[dict]:
    """A row for each number of sessions."""
    sessions = ",".join(map(str, order["sessions"]))
    command = [f"{order['programs']}/examples/sessions_bench", order["folder"], str(order["steps"]), sessions, initial, prefix]
    lines = finished(command).splitlines()[1:]
    return [dict(zip(COLUMNS, map(float, line.split()))) for line in lines]


def python_client(order: dict, initial: str, prefix: str) -> float:
    """Seconds of a step. A process of its own: hivemind keeps one daemon a process, and torch's threads do not survive a
    fork."""
    command = [sys.executable, __file__, "client", order["folder"], initial, prefix, str(order["python_steps"])]
    return float(finished(command).split()[-1])


def finished(command: list[str]) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=RUN)
    if answer.returncode:
        raise SystemExit(f"{command[0]}: {answer.stdout[-500:]}{answer.stderr[-3000:]}")
    return answer.stdout


def seconds_of_compute(server: Process) -> float:
    """What a step took on the compute thread of our server once it was begun; half of the last steps took less."""
    site = server.find(r"health map (\S+)")
    with urllib.request.urlopen(site + "metrics", timeout=30) as answer:
        text = answer.read().decode()
    step, wait = (float(re.search(rf"^sepal_server_{name}_p50_seconds (\S+)", text, re.M)[1]) for name in ("step", "wait"))
    return step - wait


def client(folder: str, initial: str, prefix: str, n_steps: int) -> float:
    """Seconds of a step of one token by Petals' client."""
    import torch
    from petals import AutoDistributedModelForCausalLM

    model = AutoDistributedModelForCausalLM.from_pretrained(
        folder, dht_prefix=prefix, initial_peers=[initial], max_retries=3, torch_dtype=torch.float32
    ).eval()
    hidden = torch.randn(1, 1, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    times = []
    with torch.inference_mode(), model.transformer.h.inference_session(max_length=n_steps + WARM_UP) as session:
        for _ in range(n_steps + WARM_UP):
            start = time.perf_counter()
            session.step(hidden)
            times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])


def turn(order: dict, initial: str, name: str, server: Process) -> dict:
    prefix = f"{name}-hf"
    result = {"server": name, "dtype": order["dtype"], "ours": our_client(order, initial, prefix)}
    if name == "sepal":
        result["compute_s"] = seconds_of_compute(server)
    if order["python_steps"]:
        result["python_step_s"] = python_client(order, initial, prefix)
    return result


def main() -> None:
    order = json.loads(sys.argv[1])
    bootstrap = [f"{order['programs']}/sepal", "bootstrap", "--listen", LOOPBACK, "--no-port-mapping"]
    address = r"listening (/ip4/127\.0\.0\.1/tcp/\S+)"
    with contextlib.ExitStack() as stack:
        initial = stack.enter_context(Process(bootstrap, address)).find(address)
        servers = [(start.__name__, stack.enter_context(start(order, initial))) for start in (petals, sepal)]
        for number in range(order["turns"]):
            for name, server in servers if number % 2 else servers[::-1]:
                print(json.dumps(turn(order, initial, name, server)), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "client":
        import peer

        print(client(*sys.argv[2:5], int(sys.argv[5])), flush=True)
        peer.finish(0)
    main()
