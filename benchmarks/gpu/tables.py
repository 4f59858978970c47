"""The parts of docs/gpu.md: each command's lines as Markdown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.gpu.lines import STATUSES
from benchmarks.gpu.machine import DIRTY, UNCHECKED, UNKNOWN
from benchmarks.gpu.results import Line, Run

OURS = "elva"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int = 1) -> list[str]:
    """A table whose columns from the number `right` on are numbers."""
    marks = ["---" if place < right else "---:" for place in range(len(head))]
    return [_row(head), _row(marks), *map(_row, rows), ""]


def machine(run: Run) -> list[str]:
    """What the figures of a section depend on."""
    line = run.machine
    versions = ", ".join(f"{name} {value}" for name, value in line.get("versions", {}).items())
    facts = [f"Python {line.get('python', '?')}, {versions}"]
    if line.get("capability"):
        facts.append(f"compute capability {line['capability']}, driver {line.get('driver') or 'unknown'}")
    facts.append(_revision(str(line.get("commit", UNKNOWN))))
    facts.append(str(line.get("date", "undated")))
    text = [f"{'; '.join(facts)}. `{line.get('arguments', '')}`", ""]
    if not run.whole:
        text += ["**Cut off**: the command did not reach its end, so cases are missing here.", ""]
    return text


def _revision(recorded: str) -> str:
    for mark, meaning in (
        (DIRTY, "with changes that it does not hold"),
        (UNCHECKED, "and perhaps changes that it does not hold"),
    ):
        if recorded.endswith(mark):
            return f"commit {recorded.removesuffix(mark)[:12]} {meaning}"
    return f"commit {recorded[:12]}"


def check(run: Run) -> list[str]:
    """Counts by operator and dtype, then what failed and what was not reached."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for line in run.lines:
        counts[str(line.get("operator")), str(line.get("dtype", ""))][line["status"]] += 1
    total = Counter(line["status"] for line in run.lines)
    summary = ", ".join(f"{total[status]} {status}" for status in STATUSES)
    rows = [[*key, *(str(count[status]) for status in STATUSES)] for key, count in sorted(counts.items())]
    nearest = [line for line in run.lines if line["status"] == "ok" and line.get("bound")]
    nearest.sort(key=lambda line: float(line["error"]) / float(line["bound"]), reverse=True)
    text = ["### Check", "", *machine(run), f"{summary}.", ""]
    text += table(["operator", "dtype", *STATUSES], rows, right=2)
    if nearest:
        text += ["Nearest to their bound among those that passed:", ""]
        text += table(
            ["operator", "case", "dtype", "error", "bound", "of"],
            [
                [*_names(line), _small(line["error"]), _small(line["bound"]), line.get("of", "")]
                for line in nearest[:5]
            ],
            right=3,
        )
    return text + unfinished(run.lines)


def bench(run: Run, picture: str | None) -> list[str]:
    """The ceilings, the roofline, and a table for every operator and size."""
    rates = {line["contender"]: line["rate"] for line in run.lines if "rate" in line}
    text = ["### Bench", "", *machine(run)]
    if rates:
        shown = [f"copy {rates['copy'] / 1e12:.2f} TB/s"] if "copy" in rates else []
        shown += [
            f"{name} products {rate / 1e12:.1f} TFLOP/s" for name, rate in rates.items() if name != "copy"
        ]
        text += [f"Measured in the same run: {', '.join(shown)}.", ""]
    if picture:
        text += [f"![Roofline]({picture})", ""]
    groups: dict[tuple[str, str, str], list[Line]] = defaultdict(list)
    for line in run.lines:
        if line["status"] == "ok" and "median_ms" in line:
            names = ("operator", "size", "shape")
            groups[tuple(str(line.get(name, "")) for name in names)].append(line)  # type: ignore[index]
    head = [
        "contender",
        "ms",
        "quartiles",
        "vs elva",
        "extra memory (MB)",
        "share of ceiling",
        "error",
        "bound",
    ]
    for (operator, size, shape), lines in groups.items():
        ours = next((line["median_ms"] for line in lines if line["contender"] == OURS), None)
        rows = [_timing(line, ours) for line in sorted(lines, key=lambda line: line["median_ms"])]
        about = lines[0]
        floor = (
            f", bound by {about['bound_by']}, floor {_number(about['floor_ms'])} ms"
            if "floor_ms" in about
            else ""
        )
        text += [f"#### {operator}, {size}", "", f"{shape}; {about['dtype']}, {about['pass']}{floor}.", ""]
        text += table(head, rows)
    return text + unfinished(run.lines)


def step(run: Run) -> list[str]:
    """Each kind of step with its phases."""
    phases = list(dict.fromkeys(phase for line in run.lines for phase in line.get("phases") or {}))
    head = [
        "preset",
        "step",
        "seconds",
        *phases,
        "peak (GB)",
        "tokens/s",
        "MFU",
        "gradients differ by",
        "status",
    ]
    rows = []
    for line in run.lines:
        seconds = line.get("phases") or {}
        rows.append(
            [
                str(line.get("preset", "")),
                str(line.get("step", "")),
                _number(line.get("whole_seconds")),
                *(_number(seconds.get(phase)) for phase in phases),
                _number(line["peak_bytes"] / 1e9) if line.get("peak_bytes") else "–",
                _number(line.get("tokens_per_second")),
                f"{100 * line['mfu']:.1f} %" if line.get("mfu") is not None else "–",
                _difference(line),
                str(line.get("status", "")),
            ]
        )
    return [
        "### Step",
        "",
        *machine(run),
        *table(head, rows, right=2),
        *ratios(run.lines),
        *unfinished(run.lines),
    ]


def ratios(lines: Sequence[Line]) -> list[str]:
    """How much longer the plain step takes than the fast one, for every preset that has both."""
    whole: dict[str, dict[str, float]] = defaultdict(dict)
    for line in lines:
        if line.get("whole_seconds"):
            whole[str(line.get("preset", ""))][str(line.get("step", ""))] = line["whole_seconds"]
    found = [
        f"{preset}: the plain step takes {times['plain'] / times['fast']:.2f} times as long as the fast one."
        for preset, times in whole.items()
        if {"plain", "fast"} <= times.keys()
    ]
    return [*found, ""] if found else []


def unfinished(lines: Sequence[Line]) -> list[str]:
    """Failures with their messages, what was not reached, and why others were skipped."""
    by_status: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_status[str(line.get("status"))].append(line)
    text: list[str] = []
    for line in by_status["failed"]:
        text += [f"**Failed: {', '.join(filter(None, _names(line)))}**: {line.get('reason', '')}", ""]
        if line.get("traceback"):
            text += ["```", *str(line["traceback"]).strip().splitlines()[-12:], "```", ""]
    if by_status["not reached"]:
        text += [f"Not reached: {'; '.join(_joined(by_status['not reached']))}.", ""]
    reasons: dict[str, list[Line]] = defaultdict(list)
    for line in by_status["skipped"]:
        reasons[str(line.get("reason", ""))].append(line)
    for reason, some in reasons.items():
        text += [f"Skipped, {reason}: {'; '.join(_joined(some))}.", ""]
    return text


def _joined(lines: Sequence[Line]) -> list[str]:
    """Names of cases, their dtypes together."""
    dtypes: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        *names, dtype = _names(line)
        dtypes[", ".join(filter(None, names))].append(dtype)
    return [
        f"{name} ({', '.join(filter(None, some))})" if any(some) else name for name, some in dtypes.items()
    ]


def _names(line: Line) -> list[str]:
    """What a line is about; its dtype last."""
    if "case" in line:
        return [str(line.get(name, "")) for name in ("operator", "case", "dtype")]
    names = ("operator", "size", "contender", "preset", "step")
    return [", ".join(str(line[name]) for name in names if line.get(name)), "", str(line.get("dtype", ""))]


def _timing(line: Line, ours: float | None) -> list[str]:
    extra, share = line.get("peak_extra_bytes"), line.get("share_of_ceiling")
    return [
        str(line["contender"]),
        _number(line["median_ms"]),
        f"{_number(line['low_ms'])} to {_number(line['high_ms'])}",
        f"{line['median_ms'] / ours:.2f}" if ours else "–",
        _number(extra / 1e6) if extra is not None else "–",
        f"{100 * share:.0f} %" if share is not None else "–",
        _small(line.get("error")),
        _small(line.get("bound")),
    ]


def _difference(line: Line) -> str:
    """Of the whole gradient, and of the worst tensor."""
    if line.get("error") is None:
        return "–"
    worst = (
        f"; {_small(line['max_rel_grad_diff'])} in the worst tensor" if "max_rel_grad_diff" in line else ""
    )
    return f"{_small(line['error'])} (allowed {_small(line['bound'])}){worst}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: Any) -> str:
    """Three digits, without an exponent."""
    if not isinstance(value, (int, float)):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _small(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, (int, float)) else str("–" if value is None else value)
