"""The process that schedules a decoding: `python -m fgnet.engine.decode_scheduler`, order on stdin, progress on stdout.

It is one of its own so that fgnet-run can end it, with all its workers, at any moment; the end of stdin does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

from fgnet.volumes.kept_memory import keep_memory


def main() -> None:
    """Take the order, do it, and tell how it goes."""
    # Libraries print what they like on stdout: from here on it is stderr, and lines go where stdout was.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as lines:
        os.dup2(2, 1)
        keep_memory()
        order = json.loads(sys.stdin.readline())
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        def tell(**told: Any) -> None:
            lines.write(json.dumps(told) + "\n")
            lines.flush()

        raise SystemExit(_serve(order, tell))


def _end_with_stdin() -> None:
    """Workers are of this process's group, and so are the commands by which a cluster was asked for them."""
    sys.stdin.read()
    os.killpg(os.getpgrp(), signal.SIGTERM)


def _serve(order: dict[str, Any], tell: Any) -> int:
    from fgnet.engine.decoding_crew import Crew, run_job
    from fgnet.engine.decoding_job import DecodingJob
    from fgnet.volumes.errors import FGNetError

    try:
        crew = Crew(**order["crew"] | {"options": tuple(order["crew"]["options"])})
        job = DecodingJob.from_json(order["job"])
        run_job(job, crew, lambda stage, done, units: tell(stage=stage, done=done, units=units))
    except FGNetError as error:
        tell(error=str(error))
        return 1
    except Exception as error:  # whatever it is, the process that was started says it in one line
        tell(error=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    main()
