"""The section `lines`: tokens per second through servers at the end of slow and of narrow lines, beside Petals' client and
what the lines take by themselves. How a line is made is in lines.py."""

import dataclasses
import pathlib
import statistics

import lines as slow
from report import ROOT, Goal, Section, Table

SPANS = {"tiny": ("0:1", "1:2", "2:4"), "wide": ("0:1", "1:2", "2:4"), "demo": ("0:3", "3:6", "6:8")}
SERVERS = 3
# The built-in model writes what it learnt, which a model of random weights cannot.
DEMO = ROOT / "src" / "model" / "demo"
PROMPT, TOKENS = 64, 64
# With guesses a text has to be longer, to be as long in time.
REPEATED = 256
NOISE = ["--prompt-ids", ",".join(str(3 + i * 7 % 500) for i in range(PROMPT))]
QUESTION = ["--prompt", "What is 7 plus 5?"]
HIDDEN = {"tiny": 64, "wide": 4096, "demo": 128}
# Bytes of a number, and of what comes with each message.
ENCODINGS = {"exact": (4, 0), "bfloat16": (2, 0), "int8": (1, 1040)}
# Never the end, which would be somewhere else in every mode.
GREEDY = ["--temperature", 0, "--logit-bias", "2=-100"]
FORCED = ["--temperature", 0, "--logit-bias", "7=100"]
DRAWN = ["--temperature", 1, "--seed", 1, "--logit-bias", "2=-100"]
ALONE = ["--speculate", "off"]
PETALS = "Petals client"
ALL_RIGHT, SOME_RIGHT, NONE_RIGHT = (f"guesses, {which} right" for which in ("all", "few", "none"))
DISTANT = {
    "no push": (TOKENS, [*GREEDY, *ALONE, "--no-push"]),
    "push": (TOKENS, [*GREEDY, *ALONE]),
    ALL_RIGHT: (REPEATED, FORCED),
    SOME_RIGHT: (TOKENS, GREEDY),
    NONE_RIGHT: (TOKENS, DRAWN),
}
DRAFT = ["--draft", DEMO, "--draft-quant", "q4_0"]
LIKELIEST, DRAWING = "likeliest tokens", "drawn tokens"
DRAFTED = {mode: f"{mode}, drafted" for mode in (LIKELIEST, DRAWING)}
TALK = {
    LIKELIEST: (TOKENS, [*GREEDY, *ALONE]),
    DRAFTED[LIKELIEST]: (TOKENS, [*GREEDY, *DRAFT]),
    DRAWING: (TOKENS, [*DRAWN, *ALONE]),
    DRAFTED[DRAWING]: (TOKENS, [*DRAWN, *DRAFT]),
}
NARROW = {how: (TOKENS, [*GREEDY, *ALONE, "--activations", how]) for how in (*ENCODINGS, "auto")}
NARROW_ROUNDS = 3
BEST = "the best of these three"


@dataclasses.dataclass
class Line:
    """A line and what was found on it, tokens per second and milliseconds to the first, by mode."""

    name: str
    shape: str
    measured: dict
    found: dict[str, dict]

    def least_ms(self, mode: str) -> float | None:
        """What the line alone takes for a token: nothing can be quicker that does not guess."""
        if mode in (ALL_RIGHT, SOME_RIGHT, BEST, "auto", *DRAFTED.values()):
            return None
        size, more = ENCODINGS.get(mode, ENCODINGS["exact"])
        way = self.measured["round_trip_ms"] / 2
        if "bytes_s" in self.measured:
            way += 1e3 * (HIDDEN[self.shape] * size + more) / self.measured["bytes_s"]
        return way * (2 * SERVERS if mode == "no push" else SERVERS + 1)

    def rows(self) -> list[list[str]]:
        rows = []
        for mode, one in self.found.items():
            ms, least = 1e3 / one["tokens_s"], self.least_ms(mode)
            beside = [f"{least:.1f}", f"{ms / least:.2f}"] if least else ["", ""]
            rows.append([self.name, mode, f"{one['first_ms']:.0f}", f"{one['tokens_s']:.2f}", f"{ms:.1f}", *beside])
        return rows

    def ratio(self, mode: str, other: str, least: float | None = None) -> tuple[list[str], Goal]:
        """How many times as many tokens a second one mode brings as another, and how many times it would if lines were all."""
        value = self.found[mode]["tokens_s"] / self.found[other]["tokens_s"]
        ideal = [self.least_ms(name) for name in (other, mode)]
        told = f"{ideal[0] / ideal[1]:.2f}" if all(ideal) else ""
        what = f"{self.name}: {mode} / {other}, tokens/s"
        return [self.name, f"{mode} / {other}", f"{value:.2f}", told], Goal(what, value, least=least)


def section(bench: object) -> Section:
    distant = [measured(bench, "tiny", round_trip, 0.0, DISTANT) for round_trip in ((50,) if bench.quick else (5, 50, 150))]
    talk = [measured(bench, "demo", round_trip, 0.0, TALK) for round_trip in ((50,) if bench.quick else (5, 50, 150))]
    narrow = [measured(bench, "wide", 50, rate, NARROW) for rate in ((1.25e6,) if bench.quick else (1.25e6, 6.25e6))]
    ratios = []
    for line in distant:
        far = line.measured["round_trip_ms"] > 20
        ratios += [
            line.ratio("push", "no push", 1.4 if far else None),
            line.ratio(ALL_RIGHT, "push", 3 if far else None),
            line.ratio(SOME_RIGHT, "push", 0.95),
            line.ratio(NONE_RIGHT, "push", 0.95),
            line.ratio("push", PETALS, 0.95),
        ]
    for line in talk:
        far = line.measured["round_trip_ms"] > 20
        ratios += [line.ratio(drafted, mode, 1.5 if far else 0.95) for mode, drafted in DRAFTED.items()]
    for line in narrow:
        best = max(line.found[how]["tokens_s"] for how in ENCODINGS)
        ratios += [line.ratio(how, "exact") for how in ("bfloat16", "int8", "auto")]
        line.found[BEST] = {"tokens_s": best}
        ratios += [line.ratio("auto", BEST, 0.9), line.ratio("exact", PETALS, 0.95)]
        del line.found[BEST]
    told = Section("lines", "Slow lines", about([*distant, *talk, *narrow]))
    headers = ["round trip", "mode", "first token, ms", "tokens/s", "ms a token", "the line alone, ms", "×"]
    told.tables = [
        Table(["round trip", "tokens/s", "ratio", "by the lines alone"], [row for row, _ in ratios]),
        Table(headers, [row for line in (*distant, *talk, *narrow) for row in line.rows()]),
    ]
    told.goals = [goal for _, goal in ratios]
    return told


def measured(bench: object, shape: str, round_trip: float, rate: float, modes: dict) -> Line:
    """Every mode in one swarm, one after the other; on a narrow line, where they differ less, all of them again and again."""
    with slow.Network(round_trip, rate) as network:
        folder, prompt = (DEMO, QUESTION) if shape == "demo" else (bench.model(shape), NOISE)
        swarm = slow.Swarm(network, bench.programs, folder, list(SPANS[shape]))
        rounds = [
            {mode: swarm.generate(prompt, tokens, *flags) for mode, (tokens, flags) in modes.items()}
            for _ in range(NARROW_ROUNDS if rate and not bench.quick else 1)
        ]
        found = {mode: {key: statistics.median(one[mode][key] for one in rounds) for key in rounds[0][mode]} for mode in modes}
        found[PETALS] = swarm.petals(bench.python("Petals"), PROMPT, TOKENS)
        name = f"{round_trip:.0f} ms" + (f", {8e-6 * rate:.0f} Mbit/s" if rate else "") + (", demo" if shape == "demo" else "")
        return Line(name, shape, {"how": network.how, **swarm.line()}, found)


def congestion_control() -> str:
    return pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()


def about(lines: list[Line]) -> str:
    seen = []
    for line in lines:
        rate = f" and {8e-6 * line.measured['bytes_s']:.1f} Mbit/s" if "bytes_s" in line.measured else ""
        seen.append(f"{line.name}: {line.measured['round_trip_ms']:.1f} ms{rate}")
    return (
        f"Three of our servers with {', '.join(SPANS['tiny'])} of 4 blocks of hardly any arithmetic in float32, each host at the end of a line of "
        f"its own (`{lines[0].measured['how']}`), one session, a prompt of {PROMPT} tokens and {TOKENS} more ({REPEATED} where all "
        "guesses are right). "
        f"Activations are {HIDDEN['tiny']} numbers a token, on narrow lines {HIDDEN['wide']}, where figures are medians of {NARROW_ROUNDS} rounds through all modes. What a plain TCP connection "
        f"({congestion_control()}) between two hosts finds: {'; '.join(seen)}. *The line alone*: {SERVERS + 1} ways from host to host for a token, {2 * SERVERS} "
        "without push, with the bytes of the activations. *First token*: from the beginning of the session, which is opened in that "
        "time. Guesses are all right where one token is forced again and again, sometimes where a model of random weights takes the "
        f"likeliest token, and never where it draws one. *demo*: the built-in model instead, {', '.join(SPANS['demo'])} of 8 blocks, asked a "
        "question and kept from ending; where tokens are *drafted*, the client guesses with the same model in 4 bits (`--draft`)."
    )
