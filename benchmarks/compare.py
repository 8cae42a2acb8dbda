"""Did it become slower, or is that noise? `python benchmarks/compare.py OLD.json NEW.json`, of the same benchmark.

A row is slower when its own speed and its speed beside its file's reference both fell by more than noise. The first
alone may be the machine's doing, the second alone the reference's. Noise is what the repeats of both files spread, and
at least a floor: one run's repeats know nothing of what moves between runs.

Exit code: 0 without a slower row, 1 with one or where a row of OLD failed in NEW, 2 for files that cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fgnet.benchmarks.certainty import FLOOR, noise_of, turned_round
from fgnet.benchmarks.result_file import Result, label_of, ratios, read_result, reference_of, speeds
from fgnet.volumes.errors import FGNetError

Verdict = Literal["slower", "faster", "within noise", "reference", "failed", "only in old", "only in new"]

_WORSE: tuple[Verdict, ...] = ("slower", "failed")

_SAME = ("cpu", "cores", "quota", "simd")
_REFUSED = 2

_Place = tuple[Result, dict[str, Any] | None]
"""A file and a row of it, if it has that row."""


@dataclass(frozen=True)
class Change:
    """One row in both files.

    Attributes:
        label: of the row.
        old: its voxels per second; None where it is missing.
        new: likewise.
        speed: new over old.
        ratio: new over old of its speed beside the reference's; None where a file tells none.
        noise: share up to which a change says nothing.
        verdict: what to think of it.
    """

    label: str
    old: float | None
    new: float | None
    speed: float | None
    ratio: float | None
    noise: float | None
    verdict: Verdict


def compare(old: Result, new: Result, *, floor: float = FLOOR, across_machines: bool = False) -> list[Change]:
    """What changed from one file to another, row by row.

    Args:
        old: recorded before.
        new: recorded after.
        floor: least share that is no noise.
        across_machines: whether other machines, or other settings, may be compared.

    Raises:
        FGNetError: other benchmarks, machines or settings, or no row in both.
    """
    if old.kind != new.kind:
        raise FGNetError(
            f"one is of fgnet-bench {old.kind}, the other of {new.kind}", remedy="give two of the same kind"
        )
    if not across_machines and (differing := _differing(old, new)):
        raise FGNetError(
            f"they were measured with another {', another '.join(differing)}",
            remedy="--across-machines compares them nevertheless",
        )
    before = {label_of(old.kind, row): row for row in old.rows}
    after = {label_of(new.kind, row): row for row in new.rows}
    if not before.keys() & after.keys():
        raise FGNetError("no row is in both", remedy="give results of the same rows")
    labels = [*before, *(label for label in after if label not in before)]
    return [_change(label, (old, before.get(label)), (new, after.get(label)), floor) for label in labels]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two files, print a table, and tell by the exit code whether a row is slower."""
    parser = argparse.ArgumentParser(prog="compare.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("old", type=Path, metavar="OLD.json")
    parser.add_argument("new", type=Path, metavar="NEW.json")
    parser.add_argument("--floor", type=float, default=FLOOR, help="share that is noise at least (%(default)s)")
    parser.add_argument("--across-machines", action="store_true", help="compare other machines or settings too")
    options = parser.parse_args(arguments)
    try:
        old, new = read_result(options.old), read_result(options.new)
        changes = compare(old, new, floor=options.floor, across_machines=options.across_machines)
    except FGNetError as error:
        sys.stderr.write(f"error: {error}\n")
        return _REFUSED
    sys.stdout.write(_table(old, new, changes))
    return int(any(change.verdict in _WORSE for change in changes))


def _change(label: str, before: _Place, after: _Place, floor: float) -> Change:
    old = None if before[1] is None else speeds(before[0].kind, before[1])
    new = None if after[1] is None else speeds(after[0].kind, after[1])
    if before[1] is None or after[1] is None or old is None or new is None:
        middles = (None if old is None else old.middle, None if new is None else new.middle)
        lost: Verdict = "failed" if label in _failed(after[0]) else "only in old"
        return Change(label, *middles, None, None, None, "only in new" if old is None else lost)
    speed, noise = new.middle / old.middle, noise_of(old, new, floor)
    references = (reference_of(before[0], before[1]), reference_of(after[0], after[1]))
    if references[0] is before[1] and references[1] is after[1]:
        # That it moved is told by its speed, and is nobody's regression.
        return Change(label, old.middle, new.middle, speed, None, noise, "reference")
    if references[0] is None or references[1] is None:
        return Change(label, old.middle, new.middle, speed, None, noise, _verdict([speed], noise))
    ratio = ratios(after[1]).middle / ratios(before[1]).middle
    return Change(label, old.middle, new.middle, speed, ratio, noise, _verdict([speed, ratio], noise))


def _failed(result: Result) -> list[str]:
    """The rows that were run and gave no figures; a way of others that was left out need not be installed here."""
    left_out = [str(row["name"]) for row in result.data.get("left_out", ())]
    return [
        *(str(row["name"]) for row in result.data.get("failed", ())),
        *(name for name in left_out if name.startswith("fgnet-run")),
    ]


def _verdict(changes: Sequence[float], noise: float) -> Verdict:
    """Slower or faster where all say so beyond noise, in the same measure up and down."""
    if all(change < 1 / (1 + noise) for change in changes):
        return "slower"
    return "faster" if all(change > 1 + noise for change in changes) else "within noise"


def _differing(old: Result, new: Result) -> list[str]:
    """What decides speed and is not the same in both files."""
    differing = [name for name in _SAME if old.machine.get(name) != new.machine.get(name)]
    gpus = [[gpu["name"] for gpu in each.machine["gpus"]] for each in (old, new)]
    differing += ["GPU"] if gpus[0] != gpus[1] else []
    settings = (
        "model",
        "patch",
        "stride",
        "gray",
        "affinities",
        "threshold",
        "backend",
        "precision",
        "shape",
        "volume",
        "decoding",
    )
    differing += [name for name in settings if old.data.get(name) != new.data.get(name)]
    # What was asked of fgnet-run; the other kinds' commands say how often rows were run, too.
    if old.kind == "scale" and old.data.get("command") != new.data.get("command"):
        differing.append("command")
    return differing + [name for name in ("threads", "command") if _rows_differ(old, new, name)]


def _rows_differ(old: Result, new: Result, name: str) -> bool:
    """Whether a row of both was run with another value of something; files of before do not say all of it."""
    before = {label_of(old.kind, row): row.get(name) for row in old.rows}
    after = {label_of(new.kind, row): row.get(name) for row in new.rows}
    told = [label for label in before if None not in (before[label], after.get(label))]
    return any(before[label] != after[label] for label in told)


def _table(old: Result, new: Result, changes: Sequence[Change]) -> str:
    """Rows in columns, with what differs of software above."""
    width = max(len(change.label) for change in changes)
    lines = [f"{old.name} -> {new.name}"]
    versions = (old.machine["packages"], new.machine["packages"])
    lines += [
        f"{name}: {versions[0].get(name, 'none')} -> {versions[1].get(name, 'none')}"
        for name in dict.fromkeys((*versions[0], *versions[1]))
        if versions[0].get(name) != versions[1].get(name)
    ]
    lines.append(f"{'':{width}}  {'old voxels/s':>14}  {'new voxels/s':>14}  {'speed':>7}  {'ratio':>7}  {'noise':>6}")
    for change in changes:
        cells = (
            "" if change.old is None else f"{change.old:,.0f}",
            "" if change.new is None else f"{change.new:,.0f}",
            "" if change.speed is None else f"{change.speed - 1:+.1%}",
            "" if change.ratio is None else f"{change.ratio - 1:+.1%}",
            "" if change.noise is None else f"{change.noise:.0%}",
        )
        row = f"{change.label:{width}}  {cells[0]:>14}  {cells[1]:>14}  {cells[2]:>7}  {cells[3]:>7}  {cells[4]:>6}"
        lines.append(f"{row}  {change.verdict}")
    counts = Counter(change.verdict for change in changes)
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    lines.append(f"{counts['slower']} slower, {counts['faster']} faster, beyond noise{failed}")
    if old.kind != "scale":
        turned = [f"{one} was faster than {other}, and is slower" for one, other in turned_round(old, new)]
        lines.append(f"ranking: {'; '.join(turned) or 'the same, of rows that both files tell apart'}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
