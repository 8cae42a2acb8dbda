"""A process that does units of a decoding: `python -m fgnet.engine.decode_worker JOB STAGE`, started by a cluster."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Do units until there are none."""
    from fgnet.engine.decoding_crew import serve

    job, stage = sys.argv[1:]
    serve(Path(job), stage)


if __name__ == "__main__":
    main()
