"""People chat and use the API while the servers under them are killed, frozen, stopped and restarted: is every answer
there, and is it the right one, and does what they talk to neither grow nor leak?

Every question has been answered once by an undisturbed swarm; decoding is greedy, so every later answer has to be the same.
"""
import collections
import http.client
import json
import pathlib
import random
import signal
import subprocess
import threading
import time
import urllib.parse

from swarm import ANY_PORT, BINARY, MAX_GROWTH, WARM_UP_MINUTES, Swarm, resident_mib

# Two servers for each half of the built-in model: while one is away, another is there.
SPANS = {"first-a": "0:4", "first-b": "0:4", "last-a": "4:8", "last-b": "4:8"}
QUESTIONS = [f"What is {a} plus {b}?" for a, b in ((2, 2), (7, 5), (3, 4), (9, 1), (6, 8), (5, 5))]
MAX_TOKENS = 24
# Longer than any failover may take; who waits longer than this has lost an answer.
PATIENCE_SECONDS = 120
# Open files that may be more at the end, in a process with a few dozen: connections come and go.
MORE_FILES = 16
# Between two faults, and how long a server is away.
PAUSE_SECONDS, AWAY_SECONDS = (4.0, 12.0), (1.0, 10.0)


class Tally:
    """What came of everything that was asked, counted by all threads."""

    def __init__(self):
        self.counts, self.lock, self.first_faults = collections.Counter(), threading.Lock(), []

    def add(self, kind: str, fault: str = "") -> None:
        with self.lock:
            self.counts[kind] += 1
            if fault and len(self.first_faults) < 20:
                self.first_faults.append(f"{kind}: {fault}")


def ask(site: str, messages: list, stream: bool, leave_after: int = 0) -> str:
    """The answer; with `leave_after`, what had come after so many events, when the connection is dropped."""
    address = urllib.parse.urlsplit(site)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=PATIENCE_SECONDS)
    body = {"model": "demo", "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": stream}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {answer.read().decode()[:300]}")
        if not stream:
            return json.loads(answer.read())["choices"][0]["message"]["content"]
        return read_events(answer, leave_after)
    finally:
        connection.close()


def read_events(answer: http.client.HTTPResponse, leave_after: int) -> str:
    text, events = "", 0
    for line in answer:
        data = line.decode().strip().removeprefix("data: ")
        if not data:
            continue
        if data == "[DONE]":
            return text
        event = json.loads(data)
        if "error" in event:
            raise RuntimeError(json.dumps(event["error"]))
        for choice in event["choices"]:
            text += choice["delta"].get("content") or ""
        events += 1
        if leave_after and events >= leave_after:
            return text
    raise RuntimeError("the stream ended without [DONE]")


class User(threading.Thread):
    """Asks one question after another: streamed, at once, as a conversation of two turns, or leaves in the middle."""

    def __init__(self, site: str, right: dict, tally: Tally, stop: threading.Event, seed: int):
        super().__init__(daemon=True)
        self.site, self.right, self.tally, self.stop, self.random = site, right, tally, stop, random.Random(seed)

    def run(self) -> None:
        while not self.stop.is_set():
            kind = self.random.choice(["streamed", "at once", "two turns", "left"])
            try:
                self.once(kind)
            except Exception as fault:  # Whatever it is, it is an answer that somebody did not get.
                self.tally.add("lost", f"{kind}: {fault!r}")

    def once(self, kind: str) -> None:
        question = self.random.choice(QUESTIONS)
        messages = [{"role": "user", "content": question}]
        if kind == "left":
            ask(self.site, messages, True, leave_after=self.random.randint(1, 4))
            self.tally.add("left")
            return
        said = ask(self.site, messages, kind != "at once")
        if kind == "two turns" and said == self.right[(question,)]:
            follow = self.random.choice(QUESTIONS)
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": follow}]
            said, question = ask(self.site, messages, True), (question, follow)
        else:
            question = (question,)
        right = said == self.right[question]
        self.tally.add(kind if right else "wrong", "" if right else f"{question}: {said!r}")


class Chatter(threading.Thread):
    """Starts `sepal chat` again and again and pipes a few questions through it."""

    def __init__(self, addr: str, right: str, tally: Tally, stop: threading.Event):
        super().__init__(daemon=True)
        self.command, self.right, self.tally, self.stop = chat_command(addr), right, tally, stop

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                said = subprocess.run(
                    self.command, input="\n".join(QUESTIONS) + "\n", capture_output=True, text=True, timeout=4 * PATIENCE_SECONDS
                )
            except subprocess.TimeoutExpired:
                self.tally.add("lost", "chat: no end")
                continue
            right = said.returncode == 0 and said.stdout == self.right
            fault = "" if right else f"chat: exit {said.returncode}: {said.stdout[-200:]!r} {said.stderr[-300:]!r}"
            self.tally.add("chat" if right else "wrong", fault)


def chat_command(addr: str) -> list:
    return [BINARY, "chat", "demo", "--initial-peers", addr, "--temperature", "0", "--max-new-tokens", str(MAX_TOKENS)]


class Trouble(threading.Thread):
    """Kills, freezes or stops one server after the other, and starts it again under the same identity."""

    def __init__(self, swarm: Swarm, addr: str, tally: Tally, stop: threading.Event, seed: int):
        super().__init__(daemon=True)
        self.swarm, self.addr, self.tally, self.stop, self.random = swarm, addr, tally, stop, random.Random(seed)

    def run(self) -> None:
        while not self.stop.wait(self.random.uniform(*PAUSE_SECONDS)):
            name = self.random.choice(list(SPANS))
            process = self.swarm.processes[name]
            how = self.random.choice(["killed", "frozen", "stopped"])
            if how == "frozen":
                process.send_signal(signal.SIGSTOP)
                self.stop.wait(self.random.uniform(*AWAY_SECONDS))
                process.send_signal(signal.SIGCONT)
            else:
                process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGINT)
                process.wait(timeout=PATIENCE_SECONDS)
                self.stop.wait(self.random.uniform(*AWAY_SECONDS))
                start_server(self.swarm, name, self.addr)
                self.swarm.wait_line(name, "online ")
            self.tally.add(f"server {how}")


def start_server(swarm: Swarm, name: str, addr: str) -> None:
    swarm.start(
        name, "serve", "demo", "--blocks", SPANS[name], *ANY_PORT, "--initial-peers", addr, "--throughput", "100",
        "--identity", str(swarm.folder / f"{name}.key"), "--update-period", "10",
    )


def references(site: str) -> dict:
    """The right answers to every question, and to every question after every other one."""
    right = {}
    for first in QUESTIONS:
        message = {"role": "user", "content": first}
        right[(first,)] = ask(site, [message], False)
        for second in QUESTIONS:
            turns = [message, {"role": "assistant", "content": right[(first,)]}, {"role": "user", "content": second}]
            right[(first, second)] = ask(site, turns, False)
    return right


def watch(swarm: Swarm, options) -> bool:
    swarm.start("bootstrap", "bootstrap", *ANY_PORT)
    addr = swarm.wait_line("bootstrap", "listening ")
    for name in SPANS:
        start_server(swarm, name, addr)
    for name in SPANS:
        swarm.wait_line(name, "online ")
    swarm.start("api", "api", "demo", "--http", "127.0.0.1:0", "--initial-peers", addr)
    site = swarm.wait_line("api", "api: ").removesuffix("/v1")
    right = references(site)
    chat = subprocess.run(chat_command(addr), input="\n".join(QUESTIONS) + "\n", capture_output=True, text=True, timeout=600)
    tally, stop = Tally(), threading.Event()
    trouble = Trouble(swarm, addr, tally, stop, options.seed)
    people = [User(site, right, tally, stop, options.seed * 1000 + i) for i in range(options.at_a_time)]
    people.append(Chatter(addr, chat.stdout, tally, stop))
    for thread in (*people, trouble):
        thread.start()
    sizes, files = follow(swarm, tally, options.minutes)
    stop.set()
    for thread in (trouble, *people):
        thread.join(timeout=5 * PATIENCE_SECONDS)
    return verdict(swarm, tally, sizes, files)


def open_files(process: subprocess.Popen) -> int:
    return len(list(pathlib.Path(f"/proc/{process.pid}/fd").iterdir()))


def follow(swarm: Swarm, tally: Tally, minutes: int) -> tuple:
    """A line a minute; the sizes in MiB and open files of those that were never killed."""
    print("minute  MiB of the API  open files  MiB of the bootstrap  open files  answers  chats  left  wrong  lost  faults")
    sizes, files, started = [], [], time.monotonic()
    for minute in range(1, minutes + 1):
        time.sleep(max(0.0, started + 60 * minute - time.monotonic()))
        kept = [swarm.processes[name] for name in ("api", "bootstrap")]
        sizes.append([resident_mib(process) for process in kept])
        files.append([open_files(process) for process in kept])
        counts = tally.counts.copy()
        faults = sum(count for kind, count in counts.items() if kind.startswith("server "))
        answers = counts["streamed"] + counts["at once"] + counts["two turns"]
        print(
            f"{minute:6}  {sizes[-1][0]:14.1f}  {files[-1][0]:10}  {sizes[-1][1]:20.1f}  {files[-1][1]:10}  {answers:7}  "
            f"{counts['chat']:5}  {counts['left']:4}  {counts['wrong']:5}  {counts['lost']:4}  {faults:6}",
            flush=True,
        )
    return sizes, files


def verdict(swarm: Swarm, tally: Tally, sizes: list, files: list) -> bool:
    warm = min(WARM_UP_MINUTES, len(sizes)) - 1
    growth = max(end / begin for begin, end in zip(sizes[warm], sizes[-1]))
    # Connections to servers that come and go, and to those who ask at the moment.
    more_files = max(end - begin for begin, end in zip(files[warm], files[-1]))
    ended_well, counts = swarm.stop(), tally.counts
    for fault in tally.first_faults:
        print(f"  {fault}")
    print(", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items())))
    print(f"memory at the end / after {WARM_UP_MINUTES} minutes: {growth:.3f}; more open files: {more_files}; wrong answers: "
          f"{counts['wrong']}; lost answers: {counts['lost']}; all ended with success: {ended_well}")
    return ended_well and not counts["wrong"] and not counts["lost"] and growth <= MAX_GROWTH and more_files <= MORE_FILES
