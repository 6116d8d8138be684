"""Jobs are submitted while the workers under them are killed, frozen and restarted, and submitters leave: does every job that
was accepted end exactly once, with the right text?

Every prompt has been answered once by an undisturbed worker; decoding is greedy, so every later answer has to be the same.
"""
import collections
import json
import random
import re
import signal
import subprocess
import threading
import time

from swarm import ANY_PORT, BINARY, Swarm

WORKERS = ["worker-a", "worker-b", "worker-c"]
PROMPTS = [f"What is {a} plus {b}?" for a, b in ((2, 2), (7, 5), (3, 4), (9, 1), (6, 8), (5, 5))]
MAX_TOKENS = 24
# Jobs of one submitter at once.
AT_ONCE = 3
# A job may be taken over several times; who has no result after this has lost it.
PATIENCE_SECONDS = 120
# Between two faults, and how long a worker is away.
PAUSE_SECONDS, AWAY_SECONDS = (3.0, 9.0), (1.0, 8.0)
# One submitter in so many leaves before its jobs are done.
LEAVES = 8


class Tally:
    """What came of all jobs, counted by all threads."""

    def __init__(self):
        self.counts, self.lock, self.faults = collections.Counter(), threading.Lock(), []
        self.ended = collections.Counter()

    def add(self, kind: str, fault: str = "") -> None:
        with self.lock:
            self.counts[kind] += 1
            if fault and len(self.faults) < 20:
                self.faults.append(f"{kind}: {fault}")


def submit(peer: str, prompts: list) -> subprocess.Popen:
    arguments = ["job", "submit", "--model", "demo", "--json", "--initial-peers", peer]
    arguments += ["--max-new-tokens", str(MAX_TOKENS), "--patience", str(PATIENCE_SECONDS)]
    for prompt in prompts:
        arguments += ["--prompt", prompt]
    return subprocess.Popen([BINARY, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Submitter(threading.Thread):
    """Submits jobs until it is told to stop."""

    def __init__(self, peer: str, seed: int, right: dict, tally: Tally, stop: threading.Event):
        super().__init__()
        self.peer, self.right, self.tally, self.stop = peer, right, tally, stop
        self.random = random.Random(seed)

    def run(self) -> None:
        while not self.stop.is_set():
            prompts = self.random.sample(PROMPTS, AT_ONCE)
            process = submit(self.peer, prompts)
            if self.random.randrange(LEAVES) == 0:
                time.sleep(self.random.uniform(0.5, 3))
                process.kill()
                process.communicate()
                self.tally.add("submitters that left")
                continue
            try:
                out, err = process.communicate(timeout=2 * PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                self.tally.add("hung", process.communicate()[1][-500:])
                continue
            self.count(prompts, out, err)

    def count(self, prompts: list, out: str, err: str) -> None:
        lines = [json.loads(line) for line in out.splitlines()]
        if len(lines) != len(prompts):
            self.tally.add("without an end", f"{len(lines)} of {len(prompts)}: {err[-500:]}")
        wanted = sorted(self.right[prompt] for prompt in prompts)
        for line in lines:
            with self.tally.lock:
                self.tally.ended[line["job"]] += 1
            if "error" in line:
                self.tally.add("not done", line["error"])
            elif line["text"] not in wanted:
                self.tally.add("wrong text", line["text"])
            else:
                wanted.remove(line["text"])
                self.tally.add("done")
                if line["attempts"] > 1:
                    self.tally.add("of these taken over")


def start_worker(swarm: Swarm, name: str, peer: str, run: int) -> None:
    arguments = ("serve", "demo", "--jobs", "--throughput", "1000", "--initial-peers", peer, *ANY_PORT)
    swarm.start(f"{name}.{run}", *arguments)


def disturb(swarm: Swarm, peer: str, seed: int, tally: Tally, stop: threading.Event) -> None:
    """Kills, freezes and restarts one worker after another."""
    chance, runs = random.Random(seed), collections.Counter()
    while not stop.wait(chance.uniform(*PAUSE_SECONDS)):
        name = chance.choice(WORKERS)
        process = swarm.processes[f"{name}.{runs[name]}"]
        what = chance.choice(["killed", "stopped", "frozen"])
        tally.add(f"workers {what}")
        if what == "frozen":
            process.send_signal(signal.SIGSTOP)
            stop.wait(chance.uniform(*AWAY_SECONDS))
            process.send_signal(signal.SIGCONT)
            continue
        process.send_signal(signal.SIGKILL if what == "killed" else signal.SIGINT)
        process.wait(timeout=60)
        del swarm.processes[f"{name}.{runs[name]}"]
        stop.wait(chance.uniform(*AWAY_SECONDS))
        runs[name] += 1
        start_worker(swarm, name, peer, runs[name])


def watch(swarm: Swarm, options) -> bool:
    swarm.start("bootstrap", "bootstrap", *ANY_PORT)
    peer = swarm.wait_line("bootstrap", "listening ")
    for name in WORKERS:
        start_worker(swarm, name, peer, 0)
    for name in WORKERS:
        swarm.wait_line(f"{name}.0", "online ")
    right = {}
    for prompt in PROMPTS:
        out, err = submit(peer, [prompt]).communicate(timeout=PATIENCE_SECONDS)
        right[prompt] = json.loads(out)["text"]
    tally, stop = Tally(), threading.Event()
    threads = [Submitter(peer, options.seed + n, right, tally, stop) for n in range(options.at_a_time)]
    threads.append(threading.Thread(target=disturb, args=(swarm, peer, options.seed, tally, stop)))
    for thread in threads:
        thread.start()
    for minute in range(1, options.minutes + 1):
        time.sleep(60)
        print(f"minute {minute}: {dict(tally.counts)}", flush=True)
    stop.set()
    for thread in threads:
        thread.join()
    return verdict(swarm, tally)


def verdict(swarm: Swarm, tally: Tally) -> bool:
    computed = collections.Counter()
    for log in swarm.folder.glob("worker-*.err"):
        for line in log.read_text(errors="replace").splitlines():
            done = re.search(r"job done.*job=\"?([0-9a-f-]{36})", line)
            if done:
                computed[done[1]] += 1
    twice = sum(1 for times in tally.ended.values() if times != 1)
    again = sum(1 for job, times in computed.items() if times > 1 and job in tally.ended)
    print(f"{dict(tally.counts)}")
    print(f"{len(tally.ended)} jobs ended, {twice} of them not exactly once; {again} were computed by two workers")
    for fault in tally.faults:
        print(f"  {fault}")
    bad = sum(tally.counts[kind] for kind in ("hung", "without an end", "not done", "wrong text"))
    healthy = bad == 0 and twice == 0 and tally.counts["done"] > 0
    print("healthy" if healthy else "NOT healthy")
    return healthy
