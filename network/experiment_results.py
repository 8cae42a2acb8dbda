"""What a run of a grid leaves, and whether it is a run of this grid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgnet.engine.atomic_file import write_atomically
from fgnet.network.training_options import TrainingOptions
from fgnet.network.training_state import CHANGEABLE
from fgnet.volumes.errors import CheckpointError, OutputError, TrainingError

RESULT = "result.json"

# A grid may be made longer; what else a single run may change would make its cells differ in more than one value.
LENGTH = ("iterations", "patience", "save_every")


def finished(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a run that was finished before; None if there is none, or if it shall go on from there.

    Raises:
        TrainingError: it has other options, data or first weights, or another decoder.
        CheckpointError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        before = result["config"] | result["options"]
        origin = dict(result.get("origin", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot be read ({error!r})", where=path, remedy="delete the run's folder") from error
    _require_same(path, origin, wanted["origin"])
    now = wanted["config"] | wanted["options"]
    differing = sorted(key for key in now if json.dumps(before.get(key)) != json.dumps(now[key]))
    if set(differing) <= set(LENGTH) and now["iterations"] > before["iterations"]:
        return None
    if differing:
        text = ", ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in differing)
        raise TrainingError(
            f"this run was finished otherwise: {text}", where=path, remedy="give the same options or another folder"
        )
    return result


def require_unchanged(
    path: Path, provenance: Mapping[str, Any], origin: Mapping[str, Any], options: TrainingOptions
) -> None:
    """Refuse to go on with an unfinished run that is not of this grid.

    Args:
        path: of its `last.pt`.
        provenance: of that.
        origin: what the runs of this grid are made of.
        options: of this run.

    Raises:
        TrainingError: it has other data, first weights, another decoder or other options, which are named.
    """
    fixed = {key: value for key, value in options.to_dict().items() if key in CHANGEABLE and key not in LENGTH}
    _require_same(path, dict(provenance.get("options", {})) | dict(provenance), dict(origin) | fixed)


def _require_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    # What an earlier version did not write down cannot be compared.
    if differing := [key for key in now if key in before and before[key] != now[key]]:
        text = ", ".join(f"{key} was {before[key]!r}, is {now[key]!r}" for key in differing)
        raise TrainingError(
            f"this run was made of something else: {text}",
            where=path,
            remedy="give the same data, first weights, options and decoder, or another folder",
        )


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the result of a run.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror})", where=path, remedy="free space") from error
