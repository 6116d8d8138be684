"""Many servers with many blocks: is every one of them always on the health map, and does none grow?"""
import json
import pathlib
import subprocess
import sys
import time

from swarm import ANY_PORT, BINARY, MAX_GROWTH, WARM_UP_MINUTES, Swarm


def watch(swarm: Swarm, model: pathlib.Path, options) -> bool:
    swarm.start("bootstrap", "bootstrap", *ANY_PORT)
    addr = swarm.wait_line("bootstrap", "listening ")
    for index in range(options.servers):
        swarm.start(
            f"server-{index}", "serve", str(model), "--dht-prefix", "soak", "--blocks", f"0:{options.blocks}", *ANY_PORT,
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
