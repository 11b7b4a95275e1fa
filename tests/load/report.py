"""The figures of a run as a page of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

MIB = 1 << 20


def markdown(found: Mapping[str, Any]) -> str:
    """`found` is what `report.json` holds."""
    machine, phases = found["machine"], found["phases"]
    lines = [
        "# The gateway under load",
        "",
        f"{machine['cores']} cores, {machine['memory_bytes'] >> 30} GiB, Python {machine['python']}; scans of "
        f"{found['scan_bytes'] // MIB} MiB; clients, gateway and Valkey share the machine.",
        "",
        *_growth(found["large_upload"]),
        *_table(phases, found["scan_bytes"]),
        "",
        "¹ GETs within the threshold by the gateway's own clock. ² By how much a thread that only sleeps was woken too "
        "late, p50, p95, p99: what the machine adds by itself.",
        "",
        *_cpu(phases),
        "",
    ]
    return "\n".join(lines)


def _growth(found: Mapping[str, int] | None) -> list[str]:
    if found is None:
        return []
    return [
        f"An upload of {found['size_bytes'] // MIB} MiB: the gateway grew by {found['growth_bytes'] / MIB:.1f} MiB "
        f"from {found['start_bytes'] / MIB:.0f} MiB.",
        "",
    ]


def _table(phases: Sequence[Mapping[str, Any]], scan_bytes: int) -> list[str]:
    head = (
        "| phase | GET/s | GET p50, p95, p99, max ms | in time¹ | POST/s | MiB/s | POST p50, p95, p99 s "
        "| grew by MiB | late² ms | holds |"
    )
    return [head, "|---" * 10 + "|", *(_row(outcome, scan_bytes) for outcome in phases)]


def _row(outcome: Mapping[str, Any], scan_bytes: int) -> str:
    phase, metrics = outcome["phase"], outcome["metrics"]
    polls, posts = _values(metrics, "http_req_duration{kind:poll}"), _values(metrics, "http_req_duration{kind:post}")
    accepted = _values(metrics, "checks{kind:post}").get("passes", 0)
    # posts go on while the last of them end, polls do not
    get_rate = polls.get("count", 0) / phase["seconds"]
    post_rate = accepted / outcome["seconds"].get("posts", 1)
    growth = (outcome["watched"]["peak_bytes"] - outcome["watched"]["start_bytes"]) / MIB
    verdict = "" if phase["is_probe"] else "yes" if outcome["is_passed"] else "NO"
    cells = [
        phase["name"],
        f"{get_rate:.0f}" if polls else "",
        _spread(polls, 1, ("med", "p(95)", "p(99)", "max"), 1),
        f"{100 * outcome['served']:.2f} %" if outcome["served"] is not None else "",
        f"{post_rate:.1f}" if posts else "",
        f"{post_rate * scan_bytes / MIB:.0f}" if posts else "",
        _spread(posts, 1000, ("med", "p(95)", "p(99)"), 2),
        f"{growth:.0f}",
        ", ".join(f"{value:.1f}" for value in _quantiles(outcome["watched"]["late_ms"])),
        verdict,
    ]
    return "| " + " | ".join(cells) + " |"


def _spread(values: Mapping[str, float], divisor: int, names: Sequence[str], digits: int) -> str:
    return ", ".join(f"{values[name] / divisor:.{digits}f}" for name in names) if values else ""


def _cpu(phases: Sequence[Mapping[str, Any]]) -> list[str]:
    names = ("gateway", "valkey", "k6 polls", "k6 posts", "niced", "machine")
    head = "| phase | " + " | ".join(names) + " | gateway, ms per request |"
    lines = ["CPU seconds per second, and of the gateway per request:", "", head, "|---" * (len(names) + 2) + "|"]
    for outcome in phases:
        used = outcome["watched"]["cpu_seconds"]
        seconds = max(outcome["seconds"].values())
        shares = [f"{used.get(name, 0) / seconds:.2f}" for name in names]
        counts = [_values(outcome["metrics"], f"http_req_duration{{kind:{kind}}}") for kind in ("poll", "post")]
        shares.append(f"{used['gateway'] / sum(count.get('count', 0) for count in counts) * 1000:.2f}")
        lines.append(f"| {outcome['phase']['name']} | " + " | ".join(shares) + " |")
    return lines


def _values(metrics: Mapping[str, Any], name: str) -> dict[str, float]:
    found = dict(metrics.get(name, {}).get("values", {}))
    return found if found.get("count", 1) else {}


def _quantiles(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered[int(len(ordered) * share)] for share in (0.5, 0.95, 0.99)] if ordered else []
