"""Measures DHT nodes of ours beside hivemind's: one swarm of each on loopback, one after the other, the same operations.

Usage: python dht_bench.py OUR_NODE [NUMBER_OF_NODES] [ROUNDS]     (scripts/bench-dht.sh builds OUR_NODE and runs this)
OUR_NODE is the program `examples/dht_bench.rs`; the other one is `dht_peer.py`. Each node is a process, and times itself:
nothing of what passes between it and this script is counted. Memory is the proportional set size of a node's processes
(Linux), which counts shared pages once.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

BLOCKS, SERVERS, BYTES = 80, 8, 400  # a model, the servers of each of its blocks, the size of a record
INITIAL_PEERS = 3


class Node:
    """A process that answers orders."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.hello = self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[:2]} ended")
        return json.loads(line)

    def time(self, what: str, keys: list[str], subkeys: list[str], together: bool = False) -> list[float]:
        order = {"op": "time", "what": what, "keys": keys, "subkeys": subkeys, "bytes": BYTES, "together": together}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        if not answer.get("complete"):
            print(f"  incomplete: {what} of {len(keys)} keys: {answer.get('error', '')}", file=sys.stderr)
        return answer["seconds"]

    def memory(self) -> float:
        """MiB of the process and its descendants."""
        return sum(proportional_set(pid) for pid in family(self.process.pid)) / 1024

    def stop(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def family(pid: int) -> list[int]:
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [each for child in children for each in family(int(child))]


def proportional_set(pid: int) -> int:
    rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))


def measure(command: list[str], n_nodes: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every operation and MiB of every node, in a swarm of nodes that this command starts."""
    nodes: list[Node] = []
    try:
        for _ in range(n_nodes):
            initial = [node.hello["addrs"][0] for node in nodes[:INITIAL_PEERS]]
            nodes.append(Node(command + initial))
        time.sleep(3)  # what follows from the last join
        idle = [node.memory() for node in nodes]
        writer, reader, servers = nodes[1], nodes[-1], [f"server {n}" for n in range(SERVERS)]
        names = [f"key {n}" for n in range(rounds)]
        model = [f"model.{block}" for block in range(BLOCKS)]
        result = {"bootstrap": [node.hello["joined_s"] for node in nodes[INITIAL_PEERS:]]}
        result["store"] = writer.time("store", names, servers[:1])
        result["get"] = reader.time("get", names, servers[:1])
        result["get, latest"] = reader.time("latest", names, servers[:1])
        result[f"store_many({BLOCKS})"] = [t for _ in range(rounds // 4) for t in writer.time("store", model, servers, True)]
        result[f"get_many({BLOCKS}), latest"] = [t for _ in range(rounds // 4) for t in reader.time("latest", model, servers, True)]
        result["memory, idle"] = idle
        result["memory, after"] = [node.memory() for node in nodes]
        return result
    finally:
        for node in nodes:
            node.stop()


def main() -> None:
    ours, n_nodes, rounds = sys.argv[1], int((sys.argv[2:] + ["16"])[0]), int((sys.argv[3:] + ["40"])[0])
    python = [sys.executable, str(pathlib.Path(__file__).with_name("dht_peer.py"))]
    print(f"{n_nodes} nodes of each kind, a process each, on loopback; medians (90th percentile) of {rounds} rounds\n")
    results = {name: measure(command, n_nodes, rounds) for name, command in (("hivemind", python), ("sepal", [ours]))}
    print("| operation | hivemind | sepal | hivemind / sepal |\n|---|---|---|---|")
    for name in results["sepal"]:
        cells, medians = [], []
        for kind in ("hivemind", "sepal"):
            values = sorted(results[kind][name])
            medians.append(statistics.median(values))
            worst = values[min(len(values) - 1, len(values) * 9 // 10)]
            unit, scale = ("MiB", 1) if name.startswith("memory") else ("ms", 1000)
            cells.append(f"{medians[-1] * scale:.1f} {unit} ({worst * scale:.1f})")
        print(f"| {name} | {cells[0]} | {cells[1]} | {medians[0] / medians[1]:.1f} |")


if __name__ == "__main__":
    main()
