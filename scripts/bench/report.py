"""What a run of the benchmark says: tables, goals met or not, the machine, and where it is written. Nothing is measured."""

import dataclasses
import datetime
import os
import pathlib
import platform
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILE = ROOT / "examples" / "BENCHMARKS.md"
VERSIONS = """
from importlib.metadata import version, PackageNotFoundError
def of(name):
    try: return f"{name} {version(name)}"
    except PackageNotFoundError: return None
print(", ".join(filter(None, map(of, %r))))
"""


@dataclasses.dataclass
class Table:
    headers: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        """Markdown that can be read as it is."""
        widths = [max(map(len, column)) for column in zip(self.headers, *self.rows)]
        line = lambda cells: "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        return "\n".join([line(self.headers), rule, *map(line, self.rows)])


@dataclasses.dataclass
class Goal:
    """A figure and what it should be; without `least` and `most` it is only told."""

    what: str
    value: float
    unit: str = ""
    least: float | None = None
    most: float | None = None
    digits: int = 2

    def met(self) -> bool:
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    def row(self) -> list[str]:
        wanted = f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}" if self.most is not None else ""
        verdict = "" if not wanted else "met" if self.met() else "**not met**"
        unit = f" {self.unit}" if self.unit else ""
        return [self.what, f"{self.value:.{self.digits}f}{unit}", f"{wanted}{unit}" if wanted else "", verdict]


@dataclasses.dataclass
class Section:
    name: str
    title: str = ""
    about: str = ""
    tables: list[Table] = dataclasses.field(default_factory=list)
    goals: list[Goal] = dataclasses.field(default_factory=list)
    output: str = ""
    failure: str = ""
    seconds: float = 0.0


def section_text(section: Section) -> str:
    parts = [f"### {section.title or section.name}"]
    if section.failure:
        parts.append(f"**Failed:** {section.failure.splitlines()[0]}")
    parts += [section.about] * bool(section.about)
    parts += [table.text() for table in section.tables]
    if section.output:
        parts.append(f"```text\n{section.output.rstrip()}\n```")
    parts.append(f"`scripts/bench.sh {section.name}`, {section.seconds:.0f} s, {now()}, {revision()}, on {processor()}.")
    return "\n\n".join(parts)


def summary_rows(sections: list[Section]) -> list[list[str]]:
    rows = []
    for section in sections:
        if section.failure:
            rows.append([section.name, "all of it", "failed", "", "**not met**"])
        rows += [[section.name, *goal.row()] for goal in section.goals]
    return rows


def summary(sections: list[Section], machine: str) -> str:
    table = Table(SUMMARY, summary_rows(sections))
    return f"=== all figures\n\n{machine}\n\n{table.text()}\n"


SUMMARY = ["section", "figure", "measured", "goal", ""]


def write(sections: list[Section], machine: str | None, order: list[str]) -> None:
    """Replaces what the file says of these sections and of the machine; what was not run, or is not given, stays."""
    text = FILE.read_text()
    old = [[cell.strip() for cell in line.strip("|").split("|")] for line in marked(text, "summary").splitlines() if line.startswith("|")]
    ran = {section.name for section in sections}
    rows = [row for row in old[2:] if row[0] not in ran] + summary_rows(sections)
    rows.sort(key=lambda row: order.index(row[0]))
    if machine:
        text = replaced(text, "machine", machine)
    text = replaced(text, "summary", Table(SUMMARY, rows).text())
    for section in sections:
        text = replaced(text, section.name, section_text(section))
    FILE.write_text(text)


def pattern(name: str) -> re.Pattern:
    return re.compile(rf"(<!-- bench:{name} -->\n)(.*?)(<!-- /bench:{name} -->)", re.S)


def marked(text: str, name: str) -> str:
    found = pattern(name).search(text)
    if not found:
        raise SystemExit(f"{FILE} has no place marked bench:{name}")
    return found[2]


def replaced(text: str, name: str, content: str) -> str:
    marked(text, name)
    return pattern(name).sub(lambda found: f"{found[1]}{content}\n{found[3]}", text)


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def revision() -> str:
    commit = said("git", "rev-parse", "--short", "HEAD") or "unknown commit"
    changed = said("git", "status", "--porcelain", "--untracked-files=no", "--", ".", f":!{FILE.relative_to(ROOT)}")
    return f"at {commit}{' with changes' if changed else ''}"


def said(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def processor() -> str:
    """By name and, where the name says little, by family and model."""
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    found = [re.search(rf"^{key}\s*: (.*)$", cpu, re.M) for key in ("model name", "cpu family", "model")]
    if not all(found):
        return platform.machine()
    name, family, model = (match[1] for match in found)
    return f"{name} (family {family}, model {model})"


def kernel() -> str:
    """Its version, without what the builder called it."""
    return re.match(r"[\d.]*\d|", platform.release())[0]


def machine(threads: int, pythons: dict[str, str]) -> str:
    """What it was measured on and with, as a list."""
    memory = int(re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) / 2**20
    cache = pathlib.Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    third = f", L3 {int(cache.read_text().strip().rstrip('K')) / 1024:.0f} MiB" if cache.exists() else ""
    names = ["petals", "hivemind", "torch", "transformers", "llama_cpp_python"]
    peers = [said(python, "-c", VERSIONS % names) for python in pythons.values() if python]
    lines = [
        f"{processor()}, {os.cpu_count()} CPUs{third}, {memory:.0f} GiB of memory, "
        f"{platform.system()} {kernel()}; {threads} threads for every engine",
        f"sepal {revision()}, {said('rustc', '--version')}; " + ", ".join(filter(None, peers)),
    ]
    return "\n".join(f"- {line}" for line in lines)
