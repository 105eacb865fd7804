"""The report of a run, as Markdown."""

from collections import Counter
from collections.abc import Sequence

from tests.bad_input.schema_requests import Tally


def report(tallies: Sequence[Tally], *, count: int, seconds: float) -> str:
    """The figures, what was found, and which undocumented answers were allowed for which reason."""
    sent = sum(tally.sent for tally in tallies)
    findings = [finding for tally in tallies for finding in tally.findings]
    of_api = Counter(tally.operation.api for tally in tallies)
    statuses: Counter[int] = sum((tally.statuses for tally in tallies), Counter())
    lines = [
        "| | |",
        "|---|---|",
        f"| operations | {len(tallies)} ({', '.join(f'{number} {api}' for api, number in sorted(of_api.items()))}) |",
        f"| requests | {sent:,} |",
        f"| at most, for each operation, caller and kind of data | {count} |",
        f"| without a form in HTTP, so not sent | {sum(tally.unsent for tally in tallies):,} |",
        f"| operations that did what was asked at least once | {sum(map(_succeeded, tallies))} |",
        f"| slowest answer | {max(tally.slowest_seconds for tally in tallies):.2f} s |",
        f"| answers | {', '.join(f'{number:,} × {status}' for status, number in sorted(statuses.items()))} |",
        f"| took | {seconds / 60:.0f} min |",
        f"| findings | {len(findings)} |",
        "",
        *_allowed(tallies),
    ]
    for finding in findings[:200]:
        lines += [
            f"- **{finding.kind}**: {finding.operation} ({finding.caller}, {finding.mode})",
            f"  - `{finding.request}`",
            f"  - `{finding.answer}`",
        ]
    return "\n".join(lines) + "\n"


def _succeeded(tally: Tally) -> bool:
    return any(status < 400 for status in tally.statuses)


def _allowed(tallies: Sequence[Tally]) -> list[str]:
    """Undocumented answers that something allows: the rare ones by operation, the common ones together."""
    operations: dict[tuple[int, str, str], list[str]] = {}
    for tally in tallies:
        for key in tally.reasons:
            operations.setdefault(key, []).append(tally.operation.name)
    lines = ["| status | errcode | operations | allowed by |", "|---|---|---|---|"]
    for (status, errcode, why), names in sorted(operations.items()):
        shown = ", ".join(f"`{name}`" for name in names) if len(names) <= 4 else f"{len(names)} operations"
        lines.append(f"| {status} | {errcode} | {shown} | {why} |")
    return [*lines, ""]
