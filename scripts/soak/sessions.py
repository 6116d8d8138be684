"""One server, and sessions that come and go on it at random: does it stay as large as it is, and get back every page?"""
import pathlib
import subprocess
import sys
import time
import urllib.request

from swarm import ANY_PORT, MAX_GROWTH, RELEASE, WARM_UP_MINUTES, Swarm, resident_mib

# Enough for 200 sessions of up to 192 tokens each; those that find no room wait, as they should.
CACHE_TOKENS = 32768
# How long a server may take to notice that a session is gone.
NOTICE_SECONDS = 30


def watch(swarm: Swarm, model: pathlib.Path, options) -> bool:
    swarm.start("bootstrap", "bootstrap", *ANY_PORT)
    addr = swarm.wait_line("bootstrap", "listening ")
    swarm.start(
        "server", "serve", str(model), "--dht-prefix", "soak", "--blocks", f"0:{options.blocks}", *ANY_PORT,
        "--initial-peers", addr, "--throughput", "100", "--http", "127.0.0.1:0", "--attn-cache-tokens", str(CACHE_TOKENS),
    )
    swarm.wait_line("server", "online ")
    site = swarm.wait_line("server", "health map ")
    out = open(swarm.folder / "sessions.out", "wb")
    command = [RELEASE / "examples" / "sessions_bench", model, f"{60 * options.minutes}s", str(options.at_a_time), addr, "soak"]
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
            f"{1e3 * now['step_p50_seconds']:8.2f} {1e3 * now['step_p99_seconds']:9.2f}  "
            f"{1e3 * now['wait_p99_seconds']:13.2f}  {pages_in_use(now):12.0f}",
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


def own_numbers(site: str) -> dict:
    """What a server says of itself at /metrics, without the common prefix."""
    with urllib.request.urlopen(site + "metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.removeprefix("sepal_server_").split() for line in lines if line.startswith("sepal_server_"))
    return {pair[0]: float(pair[1]) for pair in pairs}


def pages_in_use(numbers: dict) -> float:
    """Those of sessions: not free, and not kept only for the next who begins alike."""
    return numbers["cache_pages"] - numbers["cache_pages_free"] - numbers["cache_pages_kept"] + numbers["cache_pages_overflow"]


def settled(site: str) -> dict:
    """What the server says once it knows that everybody has left."""
    deadline = time.monotonic() + NOTICE_SECONDS
    while (numbers := own_numbers(site)) and pages_in_use(numbers) and time.monotonic() < deadline:
        time.sleep(0.5)
    return numbers
