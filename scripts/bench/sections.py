"""The sections of the engine's benchmark: each runs programs and returns what they found. How it is shown is not here."""

import argparse
import contextlib
import functools
import json
import operator
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading

import card as cards
import distance
import report
from report import Goal, Section, Table

ROOT = report.ROOT
PEERS = ROOT / "interop-tests" / "python"
LIMIT = 600  # seconds a program may take
TOKENS = 512

# checkpoint, blocks in it, blocks of them that are timed alone: together they exceed the caches by far
SHAPES = {"tinyllama-1.1b": (22, 8), "llama-8b": (2, 2)}
QUICK_SHAPES = {"tinyllama-1.1b": (3, 3), "llama-8b": (1, 1)}
ROWS_COLUMNS = {"tinyllama-1.1b": (5632, 2048), "llama-8b": (14336, 4096)}
WEIGHTS = {"tinyllama-1.1b": 44_040_192, "llama-8b": 218_103_808}
LARGE, TINY, TINY_BLOCKS = "tinyllama-1.1b", "tiny", 4  # "wide" has as many

# What decode should reach of the bandwidth, in per cent.
FORMATS = {"float32": 85, "bfloat16": 85, "float16": None, "q8_0": 85, "q4_0": 75, "q4_k": 75, "nf4": 75}
PREFILL_GOAL = {"float32": 70, "bfloat16": 70}
# What numbers are multiplied as, of which the gemms are timed; 8 and 4 bits are multiplied as integers, of which none is.
MULTIPLIED_AS = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float32"}
GGML = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_k": "Q4_K"}
LEVEL = 0.97  # closer than this two figures are the same
TURNS = 9


class Bench:
    """What the sections share: programs, checkpoints, and what was measured already."""

    def __init__(self, options: argparse.Namespace, folder: pathlib.Path) -> None:
        self.programs = options.programs.resolve()
        self.pythons = {"Petals": options.petals, "llama.cpp": options.llama_cpp}
        self.threads, self.quick, self.folder = options.threads, options.quick, folder
        self.shapes = QUICK_SHAPES if self.quick else SHAPES

    def python(self, peer: str) -> str:
        if not self.pythons[peer]:
            raise RuntimeError(f"{peer} could not be installed")
        return self.pythons[peer]

    def peer(self, peer: str, script: str, *arguments: object) -> list[dict]:
        """The JSON objects that a script prints in the environment of a peer."""
        return objects(run(self.python(peer), PEERS / script, *arguments))

    @functools.cache
    def model(self, shape: str, dtype: str = "bfloat16") -> pathlib.Path:
        """A checkpoint of random weights."""
        path = self.folder / f"{shape}-{dtype}"
        n_blocks = self.shapes[shape][0] if shape in self.shapes else TINY_BLOCKS
        run(self.python("Petals"), PEERS / "bench_shapes.py", path, shape, n_blocks, dtype)
        return path

    @functools.cache
    def limits(self, shape: str) -> dict:
        """What the machine can do, with the matrices of a shape."""
        limits = self.machine(shape)
        rows, columns = ROWS_COLUMNS[shape]
        torch = self.peer("Petals", "bench_gemm.py", self.threads, rows, columns)[0]
        gemms = {f"torch {dtype}": speed / 1e9 for dtype, speed in torch.items()}
        gemms |= {f"sepal {dtype}": speed for dtype, speed in limits["gemm_gflop_s"].items()}
        return limits | {"gemms": gemms}

    @functools.cache
    def machine(self, shape: str) -> dict:
        return objects(run(*self.engine(shape)[:-1]))[0]

    def format(self, shape: str, name: str) -> dict:
        """Blocks in a format, measured now."""
        return objects(run(*self.engine(shape, name)))[0]

    def engine(self, shape: str, name: str = "bfloat16") -> list[object]:
        """The program that times blocks in a format."""
        # Of a checkpoint in 16 bits, float32 is kept in those.
        checkpoint = self.model(shape, "float32" if name == "float32" else "bfloat16")
        return [self.programs / "examples" / "engine_bench", checkpoint, self.shapes[shape][1], self.threads, name]

    def card(self, name: str) -> dict:
        """Blocks in a format on the first card, measured now."""
        options = ["--shape", "tiny", "--quick"] if self.quick else []
        return objects(run(self.programs / "examples" / "card_bench", *options, name))[0]

    def servers(self, shape: str, dtype: str, **order: object) -> dict[str, list[dict]]:
        """Petals and ours, by name: what was found in each turn."""
        n_blocks = TINY_BLOCKS if shape == TINY else self.shapes[shape][0]
        order |= {
            "programs": str(self.programs), "folder": str(self.model(shape)), "blocks": n_blocks, "dtype": dtype, "threads": self.threads,
        }  # fmt: skip
        rows = self.peer("Petals", "bench_petals.py", json.dumps(order))
        return {name: [row for row in rows if row["server"] == name] for name in ("petals", "sepal")}


def run(*command: object) -> str:
    status, out, err = ended([str(part) for part in command], LIMIT)
    if status:
        print(err[-3000:], file=sys.stderr)
        lines = err.strip().splitlines()
        raise RuntimeError(f"{pathlib.Path(str(command[0])).name} ended with {status}: {lines[-1] if lines else ''}")
    return out


def ended(command: list[str], limit: float, **environment: str) -> tuple[int, str, str]:
    """Status, output and errors of a program. What takes too long is interrupted as a person would: it may have children."""
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | environment
    )
    try:
        out, err = child.communicate(timeout=limit)
        return child.returncode, out, err
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
        try:
            child.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            child.kill()
        raise RuntimeError(f"{pathlib.Path(command[0]).name} took more than {limit:.0f} s") from None
    except BaseException:
        child.send_signal(signal.SIGINT)
        raise


def objects(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def limits(bench: Bench) -> Section:
    tables, goals = [], []
    for shape in bench.shapes:
        found = bench.limits(shape)
        rows, columns = ROWS_COLUMNS[shape]
        of_shape = [[f"gemm of {TOKENS} × {columns} × {rows}, {name}", f"{speed:.0f} GFLOP/s"] for name, speed in found["gemms"].items()]
        if not tables:
            tables.append(Table(["machine", f"{found['threads']} threads, {found['kernels']}"], []))
            tables[0].rows.append(["read from memory", f"{found['read_gb_s']:.1f} GB/s"])
            tables[0].rows.append(["multiply-adds in registers, f32", f"{found['peak_gflop_s']:.0f} GFLOP/s"])
            goals.append(Goal("read from memory", found["read_gb_s"], "GB/s", digits=1))
            goals.append(Goal("multiply-adds in registers, f32", found["peak_gflop_s"], "GFLOP/s", digits=0))
        tables[0].rows += of_shape
        name, speed = max(found["gemms"].items(), key=lambda pair: pair[1])
        goals.append(Goal(f"best gemm of {TOKENS} × {columns} × {rows}: {name}", speed, "GFLOP/s", digits=0))
    return Section("limits", "What the machine can do", tables=tables, goals=goals)


def blocks(bench: Bench) -> Section:
    about = (
        "A block of random weights, all of a span that exceeds the caches, in turn. *Decode* is a token of one sequence, as a share "
        "of the bandwidth (memory is read once before each token; the median of these shares); *16* is a token of each of 16 sequences; "
        f"*prefill* is a prompt of {TOKENS} tokens, the best of 4, attention included, counting only the arithmetic of the matrices, as a "
        "share of the best gemm above of the numbers that are multiplied (float16 is widened to float32; with 8 and 4 bits: of any) and of "
        "the peak in float32. All other times are medians."
    )
    section = Section("blocks", "Blocks beside the limits of the machine", about)
    headers = ["", "MB", "decode ms", "GB/s", "of", "decode %", "16 ms", "16: tokens/s ×", "prefill ms", "GFLOP/s", "of gemm %", "of peak %"]
    for shape in bench.shapes:
        found, rows = bench.limits(shape), []
        for name, row in ((name, bench.format(shape, name)) for name in FORMATS):
            rate, speed = row["block_bytes"] / row["decode_s"] / 1e9, 2 * WEIGHTS[shape] * TOKENS / row["prefill_s"] / 1e9
            kind = MULTIPLIED_AS.get(name)
            gemms = [speed for gemm, speed in found["gemms"].items() if kind in (None, gemm.split()[-1])]
            share, of_gemm = 100 * row["decode_of_read"], 100 * speed / max(gemms)
            rows.append([
                name, f"{row['block_bytes'] / 1e6:.1f}", f"{1e3 * row['decode_s']:.2f}", f"{rate:.1f}", f"{row['read_gb_s']:.1f}",
                f"{share:.0f}", f"{1e3 * row['batch16_s']:.2f}", f"{16 * row['decode_s'] / row['batch16_s']:.1f}",
                f"{1e3 * row['prefill_s']:.0f}", f"{speed:.0f}", f"{of_gemm:.0f}", f"{100 * speed / found['peak_gflop_s']:.0f}",
            ])  # fmt: skip
            section.goals.append(Goal(f"{shape}, {name}: decode of bandwidth", share, "%", least=FORMATS[name], digits=0))
            if name in PREFILL_GOAL:
                section.goals.append(Goal(f"{shape}, {name}: prefill of best gemm", of_gemm, "%", least=PREFILL_GOAL[name], digits=0))
        section.tables.append(Table([shape, *headers[1:]], rows))
    return section


def llama(bench: Bench) -> Section:
    n_turns = 2 if bench.quick else TURNS
    about = (
        "The same checkpoints, in bfloat16, in llama.cpp, as many threads, equal quantisation, caches of its own choice, outputs of all "
        "tokens. For float32 it widens that checkpoint, and ours is saved in float32: of 16 bits we would keep those. Both have their "
        f"models in memory and take turns, {n_turns} of them: 30 tokens one after the other, the median of which counts, and a prompt of "
        f"{TOKENS}. Times are medians of the turns, ratios medians of what llama.cpp takes to what we take in the same turn: above 1 we take "
        f"less time. From {LEVEL} on we call it level."
    )
    section = Section("llama", "Blocks beside llama.cpp", about)
    for shape in bench.shapes:
        rows = []
        for name, kind in GGML.items():
            script = [PEERS / "bench_llama_cpp.py", bench.model(shape), bench.shapes[shape][1], bench.threads, kind]
            found = in_turns([bench.python("llama.cpp"), *script], [*bench.engine(shape, name), "--turns"], n_turns)
            rows.append([name])
            for key in ("decode", "prefill"):
                times = [(theirs[f"{key}_s"], ours[f"{key}_s"]) for theirs, ours in found]
                ratio = statistics.median(theirs / ours for theirs, ours in times)
                rows[-1] += [*(f"{1e3 * statistics.median(engine):.2f}" for engine in zip(*times)), f"{ratio:.2f}"]
                section.goals.append(Goal(f"{shape}, {name}: llama.cpp's {key} time / ours", ratio, least=LEVEL))
        headers = [shape, "decode ms, llama.cpp", "sepal", "ratio", "prefill ms, llama.cpp", "sepal", "ratio"]
        section.tables.append(Table(headers, rows))
    return section


def in_turns(theirs: list[object], ours: list[object], n: int) -> list[tuple[dict, dict]]:
    """What two programs measure in turn, each for a line that it is sent. The first turn, which warms up, does not count."""
    with Measuring(theirs) as theirs, Measuring(ours) as ours:
        found = [(theirs.turn(), ours.turn()) if i % 2 else (ours.turn(), theirs.turn())[::-1] for i in range(1 + n)]
    return found[1:]


class Measuring:
    """A program that measures when it is sent a line, and says what it found."""

    def __init__(self, command: list[object]) -> None:
        self.errors = tempfile.TemporaryFile()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.child = subprocess.Popen([str(part) for part in command], text=True, cwd=ROOT, **pipes)
        self.limit = threading.Timer(LIMIT, self.child.kill)
        self.limit.start()

    def __enter__(self) -> "Measuring":
        return self

    def turn(self) -> dict:
        with contextlib.suppress(BrokenPipeError):
            print(file=self.child.stdin, flush=True)
        if line := self.child.stdout.readline():
            return json.loads(line)
        status = self.child.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"{pathlib.Path(self.child.args[0]).name} ended with {status}: {lines[-1] if lines else ''}")

    def __exit__(self, *_: object) -> None:
        self.child.communicate()
        self.limit.cancel()
        self.errors.close()


def petals(bench: Bench) -> Section:
    n_blocks, turns = bench.shapes[LARGE][0], 1 if bench.quick else 5
    about = (
        f"All {n_blocks} blocks of {LARGE} behind one server on loopback, one session, one token at a time (median); the client sends "
        f"and receives hidden states and does nothing else. Both servers run and take turns, {turns} of them; times are medians of the "
        "turns, ratios medians of those of each turn. Petals' server has one handler process. The checkpoint is in bfloat16, as most are "
        "published; our float32 server packs those 16 bits into 12 without loss."
    )
    section = Section("petals", "Servers beside Petals", about)
    steps, table = 10 if bench.quick else 20, Table(["dtype", "client", "Petals ms", "sepal ms", "ratio"], [])
    for dtype, least in (("float32", 1.5), ("bfloat16", 2.5)):
        found = bench.servers(LARGE, dtype, sessions=[1], steps=steps, python_steps=steps, turns=turns)
        for client, seconds in both_clients(found).items():
            theirs, ours, ratio = compared(seconds)
            table.rows.append([dtype, client, f"{1e3 * theirs:.1f}", f"{1e3 * ours:.1f}", f"{ratio:.2f}"])
            section.goals.append(Goal(f"{dtype}, {client} client: Petals' step time / ours", ratio, least=least))
    section.tables = [table]
    return section


def both_clients(found: dict[str, list[dict]]) -> dict[str, dict[str, list[float]]]:
    """Seconds of a step in each turn, by client and server."""
    return {
        "our": {name: [row["ours"][0]["p50_ms"] / 1e3 for row in rows] for name, rows in found.items()},
        "Python": {name: [row["python_step_s"] for row in rows] for name, rows in found.items()},
    }


def compared(seconds: dict[str, list[float]]) -> tuple[float, float, float]:
    """Petals, ours, and what Petals takes to what we take in the same turn: medians."""
    theirs, ours = seconds["petals"], seconds["sepal"]
    return statistics.median(theirs), statistics.median(ours), statistics.median(map(operator.truediv, theirs, ours))


def sessions(bench: Bench) -> Section:
    n_blocks = bench.shapes[LARGE][0]
    about = (
        f"{n_blocks} blocks of {LARGE} in bfloat16 behind one server, sessions of our client that all decode at once. Client and server "
        "share the machine."
    )
    section = Section("sessions", "Many sessions at once", about)
    steps = 5 if bench.quick else 20
    found = bench.servers(LARGE, "bfloat16", sessions=[1, 4, 16], steps=steps, python_steps=0, turns=1)
    table = Table(["server", "sessions", "tokens/s", "× one", "p50 ms", "p99 ms", "slowest/fastest"], [])
    for name, [row] in found.items():
        one = row["ours"][0]
        for many in row["ours"]:
            gain = many["tokens_s"] / one["tokens_s"]
            cells = [f"{many['tokens_s']:.1f}", f"{gain:.2f}", f"{many['p50_ms']:.1f}", f"{many['p99_ms']:.1f}"]
            table.rows.append([name, f"{many['sessions']:.0f}", *cells, f"{many['slowest_fastest']:.2f}"])
        section.goals.append(Goal(f"{name}: 16 sessions / one, tokens/s", gain, least=6 if name == "sepal" else None))
        section.goals.append(Goal(f"{name}: p99 of a step, 16 sessions", many["p99_ms"], "ms", digits=1))
    theirs, ours = (found[name][0]["ours"][-1]["tokens_s"] for name in ("petals", "sepal"))
    section.goals.append(Goal("16 sessions: our tokens/s / Petals'", ours / theirs))
    section.tables = [table]
    return section


def hops(bench: Bench) -> Section:
    turns = 1 if bench.quick else 3
    about = (
        f"{TINY_BLOCKS} blocks of hardly any arithmetic behind one server, a token at a time, in {turns} turns as above. The *share* is "
        "our client's step less what the server's compute thread took: network, both ends of the protocol, and the client's own work."
    )
    section = Section("hops", "What a hop costs", about)
    steps, python_steps = (300, 60) if bench.quick else (2000, 300)
    found = bench.servers(TINY, "float32", sessions=[1], steps=steps, python_steps=python_steps, turns=turns)
    table = Table(["client", "Petals ms", "sepal ms", "ratio"], [])
    for (client, seconds), least in zip(both_clients(found).items(), (10, 1.5)):
        theirs, ours, ratio = compared(seconds)
        table.rows.append([client, f"{1e3 * theirs:.3f}", f"{1e3 * ours:.3f}", f"{ratio:.1f}"])
        section.goals.append(Goal(f"{client} client: Petals' step time / ours", ratio, least=least))
    share = statistics.median(1e3 * row["ours"][0]["p50_ms"] - 1e6 * row["compute_s"] for row in found["sepal"])
    table.rows.append(["share of our server and client", "", f"{share / 1e3:.3f}", ""])
    section.goals.append(Goal("share of a step that is not computing", share, "µs", most=200, digits=0))
    section.tables = [table]
    return section


def accuracy(bench: Bench) -> Section:
    about = (
        "The built-in model against itself in float32: Kullback-Leibler divergence of the next token, how often the most likely token is "
        "the same, and the largest error of a block's output over the root mean square of all."
    )
    section = Section("accuracy", "Accuracy", about)
    rows = [line.replace(" %", "").split() for line in run(bench.programs / "examples" / "accuracy").splitlines()[1:]]
    section.tables = [Table(["format", "bits/weight", "KL, nats", "top-1 %", "largest error of a block / rms"], rows)]
    for name, _, divergence, agreement, error in rows[1:]:
        section.goals.append(Goal(f"{name}: KL of logits", float(divergence), "nats", digits=6))
        section.goals.append(Goal(f"{name}: top-1 agreement", float(agreement), "%", digits=1))
        section.goals.append(Goal(f"{name}: largest error of a block / rms", float(error), digits=4))
    return section


def soak(bench: Bench) -> Section:
    minutes = 1 if bench.quick else 10
    about = f"200 sessions at a time come and go at random for {minutes} min: `python3 scripts/soak sessions`."
    section = Section("soak", "Sessions that come and go", about)
    command = [sys.executable, str(ROOT / "scripts" / "soak"), "sessions", "--minutes", str(minutes)]
    status, section.output, errors = ended(command, 60 * minutes + 300, CARGO_TARGET_DIR=str(bench.programs.parent))
    number = lambda what: float(re.search(rf"{what}: ([\d.]+)", section.output)[1])
    try:
        section.goals = [
            Goal("memory at the end / when it was warm", number("memory at the end / after .* minutes"), most=1.1, digits=3),
            Goal("pages not given back", number("pages not given back"), most=0, digits=0),
            Goal("slowest / fastest session", number("slowest/fastest session"), digits=2),
        ]
    except TypeError:
        section.failure = (errors.strip() or "no figures").splitlines()[-1]
    if status and not section.failure:
        section.failure = "the soak says so"
    return section


def lines(bench: Bench) -> Section:
    return distance.section(bench)


def card(bench: Bench) -> Section:
    return cards.section(bench)


ALL = {section.__name__: section for section in (limits, blocks, llama, petals, sessions, hops, lines, accuracy, soak, card)}
