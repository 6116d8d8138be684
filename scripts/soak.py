#!/usr/bin/env python3
"""Runs a swarm of many servers with many blocks on this machine and watches that it stays healthy and does not grow.

Usage: scripts/soak.py [--servers 24] [--blocks 80] [--minutes 10] [--period 120]
       scripts/soak.py --sessions [--at-a-time 200] [--blocks 8] [--minutes 10]
Needs: `cargo build --release`, with `--sessions` also `--example sessions_bench`; nothing but Python's standard library.
Prints one line a minute and a verdict; exits with 1 if a server was missed by the health map, died, or the memory of the
processes grew by more than a tenth after warming up. With --sessions there is one server, and sessions that come and go on
it at random: closed, dropped, or dropped within a step; then it also fails if a session got no answer, or if pages of the
cache are not given back.
"""
import argparse
import json
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "sepal"
HIDDEN, HEADS, KV_HEADS, MLP, VOCAB = 64, 4, 2, 176, 256
# Memory still grows while tables fill and every server has met every other one.
WARM_UP_MINUTES = 3
MAX_GROWTH = 1.10
# Enough for 200 sessions of up to 192 tokens each; those that find no room wait, as they should.
CACHE_TOKENS = 32768
# How long a server may take to notice that a session is gone.
NOTICE_SECONDS = 30


def write_model(folder: pathlib.Path, n_blocks: int) -> None:
    """A llama of random weights: as many blocks as a large model, hardly any bytes in each."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": MLP, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": n_blocks, "vocab_size": VOCAB, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }
    keys = HIDDEN // HEADS * KV_HEADS
    shapes = {"model.embed_tokens.weight": [VOCAB, HIDDEN], "model.norm.weight": [HIDDEN], "lm_head.weight": [VOCAB, HIDDEN]}
    for block in range(n_blocks):
        name = f"model.layers.{block}."
        shapes |= {
            name + "self_attn.q_proj.weight": [HIDDEN, HIDDEN], name + "self_attn.k_proj.weight": [keys, HIDDEN],
            name + "self_attn.v_proj.weight": [keys, HIDDEN], name + "self_attn.o_proj.weight": [HIDDEN, HIDDEN],
            name + "mlp.gate_proj.weight": [MLP, HIDDEN], name + "mlp.up_proj.weight": [MLP, HIDDEN],
            name + "mlp.down_proj.weight": [HIDDEN, MLP], name + "input_layernorm.weight": [HIDDEN],
            name + "post_attention_layernorm.weight": [HIDDEN],
        }
    header, body, rng = {}, bytearray(), random.Random(7)
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        # bfloat16 is the upper half of float32.
        values = (struct.pack("<f", 1.0 if len(shape) == 1 else rng.gauss(0, 0.05))[2:] for _ in range(count))
        data = b"".join(values)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)


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


def health(addr: str, prefix: str) -> tuple:
    """Servers online, blocks that nobody serves, and problems with records, as the health map sees them."""
    said = subprocess.run([BINARY, "health", "--json", "--initial-peers", addr], capture_output=True, text=True, timeout=120)
    if said.returncode != 0:
        sys.exit(f"sepal health failed: {said.stderr}")
    for model in json.loads(said.stdout)["models"]:
        if model["prefix"] == prefix:
            online = [server for server in model["servers"] if server["state"] == "online"]
            return len(online), model["coverage"].count(0), sum(len(server["problems"]) for server in model["servers"])
    return 0, -1, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", type=int, default=24)
    parser.add_argument("--blocks", type=int, help="80, or 8 with --sessions")
    parser.add_argument("--sessions", action="store_true", help="let sessions come and go on one server")
    parser.add_argument("--at-a-time", type=int, default=200, help="sessions at a time")
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--period", type=int, default=120, help="seconds between announcements; 120 is what servers do")
    options = parser.parse_args()
    options.blocks = options.blocks or (8 if options.sessions else 80)
    if not BINARY.exists():
        sys.exit(f"{BINARY} is missing: cargo build --release")
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        model = work / "soak-model"
        model.mkdir()
        write_model(model, options.blocks)
        swarm = Swarm(work)
        try:
            healthy = (watch_sessions if options.sessions else watch)(swarm, model, options)
        finally:
            for process in swarm.processes.values():
                process.kill()
    sys.exit(0 if healthy else 1)


def own_numbers(site: str) -> dict:
    """What a server says of itself at /metrics, without the common prefix."""
    with urllib.request.urlopen(site + "metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.removeprefix("sepal_server_").split() for line in lines if line.startswith("sepal_server_"))
    return {pair[0]: float(pair[1]) for pair in pairs}


def watch_sessions(swarm: Swarm, model: pathlib.Path, options) -> bool:
    """One server, and a program that opens and leaves sessions on it at random; both must stay as large as they are."""
    any_port = ("--listen", "/ip4/127.0.0.1/tcp/0")
    swarm.start("bootstrap", "bootstrap", *any_port)
    addr = swarm.wait_line("bootstrap", "listening ")
    swarm.start(
        "server", "serve", str(model), "--dht-prefix", "soak", "--blocks", f"0:{options.blocks}", *any_port,
        "--initial-peers", addr, "--throughput", "100", "--http", "127.0.0.1:0", "--attn-cache-tokens", str(CACHE_TOKENS),
    )
    swarm.wait_line("server", "online ")
    site = swarm.wait_line("server", "health map ")
    out = open(swarm.folder / "sessions.out", "wb")
    command = [BINARY.parent / "examples" / "sessions_bench", model, f"{60 * options.minutes}s", str(options.at_a_time), addr, "soak"]
    sessions = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    print("minute  MiB of the server  steps/s  tokens/block run  step ms (p50, p99)  wait ms (p99)  pages in use")
    sizes, before, started = [], own_numbers(site), time.monotonic()
    for minute in range(1, options.minutes + 1):
        time.sleep(max(0.0, started + 60 * minute - time.monotonic()))
        if swarm.dead():
            sys.exit(f"died: {swarm.dead()}")
        sizes.append(resident_mib(swarm.processes["server"]))
        now = own_numbers(site)
        new = {name: value - before.get(name, 0.0) for name, value in now.items()}
        batch = new["block_tokens_total"] / max(1.0, new["block_runs_total"])
        print(
            f"{minute:6}  {sizes[-1]:17.1f}  {new['steps_total'] / 60:7.0f}  {batch:16.2f}  "
            f"{1e3 * now['step_seconds_p50']:8.2f} {1e3 * now['step_seconds_p99']:9.2f}  "
            f"{1e3 * now['wait_seconds_p99']:13.2f}  {pages_in_use(now):12.0f}",
            flush=True,
        )
        before = now
    churned_well = sessions.wait(timeout=120) == 0
    said = (swarm.folder / "sessions.out").read_text()
    print(said, end="")
    left = settled(site)
    warm = sizes[min(WARM_UP_MINUTES, len(sizes)) - 1]
    growth, ended_well = sizes[-1] / warm, swarm.stop()
    evenness = [float(line.split()[2]) for line in said.splitlines()[1:] if len(line.split()) == 3]
    print(f"memory at the end / after {WARM_UP_MINUTES} minutes: {growth:.3f}; pages not given back: {pages_in_use(left):.0f}; "
          f"slowest/fastest session: {max(evenness, default=float('nan')):.2f}; steps left over: {left['queue_length']:.0f}; "
          f"all sessions got their answers: {churned_well}; all ended with success: {ended_well}")
    return churned_well and ended_well and left["queue_length"] == 0 and pages_in_use(left) == 0 and growth <= MAX_GROWTH


def resident_mib(process: subprocess.Popen) -> float:
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def pages_in_use(numbers: dict) -> float:
    """Those of sessions: not free, and not kept only for the next who begins alike."""
    return numbers["cache_pages"] - numbers["cache_pages_free"] - numbers["cache_pages_kept"] + numbers["cache_pages_overflow"]


def settled(site: str) -> dict:
    """What the server says once it knows that everybody has left."""
    deadline = time.monotonic() + NOTICE_SECONDS
    while (numbers := own_numbers(site)) and pages_in_use(numbers) and time.monotonic() < deadline:
        time.sleep(0.5)
    return numbers


def watch(swarm: Swarm, model: pathlib.Path, options) -> bool:
    any_port = ("--listen", "/ip4/127.0.0.1/tcp/0")
    swarm.start("bootstrap", "bootstrap", *any_port)
    addr = swarm.wait_line("bootstrap", "listening ")
    for index in range(options.servers):
        swarm.start(
            f"server-{index}", "serve", str(model), "--dht-prefix", "soak", "--blocks", f"0:{options.blocks}", *any_port,
            "--initial-peers", addr, "--throughput", "100", "--update-period", str(options.period), "--attn-cache-tokens", "256",
            "--inference-max-length", "256",
        )
    for index in range(options.servers):
        swarm.wait_line(f"server-{index}", "online ")
    print(f"{options.servers} servers of {options.blocks} blocks, announced every {options.period} s, and a bootstrap node")
    print("minute  online  holes  problems  MiB/process (mean, max)   MiB in all  CPU cores  open files")
    always, totals = True, []
    _, cpu_before, _ = swarm.usage()
    started = measured = time.monotonic()
    for minute in range(options.minutes + 1):
        time.sleep(max(0.0, started + 60 * minute - time.monotonic()))
        online, holes, problems = health(addr, "soak")
        if swarm.dead():
            sys.exit(f"died: {swarm.dead()}")
        resident, cpu, files = swarm.usage()
        now = time.monotonic()
        cores, cpu_before, measured = (cpu - cpu_before) / (now - measured), cpu, now
        totals.append(sum(resident))
        always &= online == options.servers and holes == 0 and problems == 0
        print(
            f"{minute:6}  {online:6}  {holes:5}  {problems:8}  {sum(resident) / len(resident) / 1024:10.1f} "
            f"{max(resident) / 1024:10.1f}     {sum(resident) / 1024:10.1f}  {cores:9.2f}  {files:10}",
            flush=True,
        )
    warm = totals[min(WARM_UP_MINUTES, len(totals) - 1)]
    growth, ended_well = totals[-1] / warm, swarm.stop()
    print(f"memory at the end / after {WARM_UP_MINUTES} minutes: {growth:.3f}; every server always online: {always}; "
          f"all ended with success: {ended_well}")
    return always and ended_well and growth <= MAX_GROWTH


main()
