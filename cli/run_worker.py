"""A process that does some tiles of a run that fgnet-run shares: `python -m fgnet.cli.run_worker`, order on stdin."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from fgnet.volumes.kept_memory import keep_memory

_SECONDS_BETWEEN_LINES = 0.5


def main() -> None:
    """Take the order, do it, and tell how it goes."""
    # Libraries print what they like on stdout: from here on it is stderr, and lines go where stdout was.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as lines:
        os.dup2(2, 1)
        keep_memory()
        order = json.loads(sys.stdin.readline())
        over, caught = threading.Event(), list[int]()

        def stop(number: int, _: object) -> None:
            caught.append(number)
            over.set()

        for number in (signal.SIGINT, signal.SIGTERM):  # of a whole job: the process that was started tells the user
            signal.signal(number, stop)
        threading.Thread(target=_wait_for_end, args=(over,), daemon=True).start()
        raise SystemExit(_serve(order, over, caught, lines))


def _wait_for_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


def _serve(order: dict[str, Any], over: threading.Event, caught: list[int], lines: IO[str]) -> int:
    """Do the order; the exit code is 0 only where it is done, or where whoever gave it has ended it."""
    from fgnet.engine.streaming import RunStoppedError
    from fgnet.volumes.errors import FGNetError

    def tell(line: str) -> None:
        lines.write(line + "\n")
        lines.flush()

    try:
        _work(order, over, tell)
    except RunStoppedError:
        # A signal that was sent to this process alone leaves tiles undone, of which no one else knows.
        return 128 + caught[0] if caught else 0
    except FGNetError as error:
        tell(json.dumps({"error": str(error)}))
        return 1
    except Exception as error:  # whatever it is, the process that was started says it in one line
        tell(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 1
    return 0


def _work(order: dict[str, Any], over: threading.Event, tell: Any) -> None:
    from fgnet.cli.run_streamer import build_network
    from fgnet.engine.backends import Choice, open_runner
    from fgnet.engine.bundle import MANIFEST, Bundle, BundleManifest
    from fgnet.engine.columns import warm_up
    from fgnet.engine.network_grid import NetworkGrid, stated
    from fgnet.engine.pipeline import GrayVolume
    from fgnet.engine.run_journal import JournalWriter, finished_chunks
    from fgnet.engine.run_mask import RunMask
    from fgnet.engine.run_outputs import JournaledSink, open_affinities
    from fgnet.engine.run_plan import RunPlan
    from fgnet.engine.shared_streaming import state_line
    from fgnet.engine.streaming import StreamOptions, StreamState, stream
    from fgnet.volumes.reading import open_volume

    plan = RunPlan.from_dict(order["plan"])
    path = Path(order["bundle"])
    # Who gave the order has checked the files against their hashes.
    bundle = Bundle(path, BundleManifest.from_json((path / MANIFEST).read_text(encoding="utf-8"), path))
    spoken = 0.0

    def progress(state: StreamState) -> None:
        nonlocal spoken
        now = time.monotonic()
        if now - spoken >= _SECONDS_BETWEEN_LINES or state.done == state.blocks:
            spoken = now
            tell(state_line(state))

    with ExitStack() as closing:
        volume = closing.enter_context(open_volume(order["volume"]))
        mask = None if order["mask"] is None else closing.enter_context(open_volume(order["mask"]))
        if order["grid"] is not None:
            grid = NetworkGrid.from_dict(order["grid"])
            volume = stated(volume, grid.volume_size)
            mask = None if mask is None else grid.tissue(mask, volume)
            volume = grid.gray(volume)
        tissue = None if mask is None else RunMask(mask, plan.grid.volume)
        runner = open_runner(
            Choice(**order["choice"]),
            bundle,
            build_network,
            threads=order["threads"],
            say=lambda text: tell(json.dumps({"note": text})),
        )
        closing.callback(runner.close)
        warm_up(runner)
        rescale = order["rescale"]
        source = GrayVolume(volume, None if rescale is None else (rescale[0], rescale[1]))
        writer = open_affinities(Path(order["output"]), plan, volume, segmentation=order["segmentation"])
        journal = closing.enter_context(JournalWriter(Path(order["output"])))
        options = StreamOptions(
            mask=tissue,
            done=finished_chunks(Path(order["output"])),
            tiles=order["tiles"],
            stop=over.is_set,
            progress=progress,
        )
        state = stream(plan, source, runner, JournaledSink(writer, journal, plan.region, tissue), options)
        tell(state_line(state))


if __name__ == "__main__":
    main()
