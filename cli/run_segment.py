"""One run of fgnet-run: the pipeline under a display, and the record of it beside the output."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import typer

from fgnet.cli.run_display import open_display, say_before
from fgnet.cli.stop_signals import stop_signals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fgnet.engine.backends import Choice
    from fgnet.engine.bundle import Bundle
    from fgnet.engine.network_grid import NetworkGrid
    from fgnet.engine.pipeline import Section
    from fgnet.engine.run_options import RunOptions
    from fgnet.engine.streaming import StreamState
    from fgnet.volumes.reading import Volume


def segment(
    volume: Volume,
    mask: Volume | None,
    bundle: Bundle,
    choices: Iterator[Choice],
    options: RunOptions,
    grid: NetworkGrid | None,
    voxel_sizes: dict[str, Any],
    *,
    threads: int | None,
    processes: int,
    log_json: bool,
    began: float,
) -> tuple[dict[str, Any], Section | None]:
    """Runs the pipeline under a display, and keeps the record of it beside the output.

    Returns:
        What `--json` prints, little where the output was complete already; and the middle section for a picture.
    """
    from fgnet.cli.run_streamer import open_streamer
    from fgnet.engine.pipeline import plan_run, segment_volume
    from fgnet.engine.rescaled_streaming import RescaledStreamer, plan_network
    from fgnet.engine.run_continuation import AlreadyCompleteError
    from fgnet.engine.run_estimate import decoded_again
    from fgnet.engine.run_record import streaming_figures, surroundings, write_record
    from fgnet.engine.streaming import RunStoppedError
    from fgnet.volumes.errors import OutputError

    with ExitStack() as closing:
        streamer, described, close = open_streamer(
            bundle,
            choices,
            threads=threads,
            processes=processes,
            say=lambda text: say_before(text, as_json=log_json),
        )
        closing.callback(close)
        network_plan = None
        if grid is not None:
            _, _, network_plan = plan_network(volume, grid, streamer.patch, options, shares=streamer.shares)
            streamer = RescaledStreamer(streamer, grid)
        display = closing.enter_context(open_display((options.box or volume.box).size, as_json=log_json))
        display.event("start", output=str(options.output), network=streamer.identity)
        plan = network_plan or plan_run(volume, streamer.patch, options, shares=streamer.shares)
        if (again := decoded_again(volume, plan)) is not None:
            display.say(f"warning: {again}")
        # Threads that decode ask nobody whether to stop; who waits for workers does.
        asking = ("affinities",) if options.crew is None else ("affinities", "agglomeration")
        running = "affinities"

        def told() -> None:
            if running == "affinities":
                display.say("finishing the block in hand, then stopping")

        signals = closing.enter_context(stop_signals(told))

        def report(phase: str, state: StreamState) -> None:
            nonlocal running
            running = phase
            signals.asked = phase in asking
            display.phase(phase, state)

        try:
            made = segment_volume(
                volume, streamer, options, mask=mask, report=report, decoded=display.decoding, stop=signals
            )
        except RunStoppedError:
            display.event("stopped", output=str(options.output))
            display.say(
                f"stopped; the same command with --resume, and without --overwrite, goes on with {options.output}"
            )
            raise typer.Exit(128 + (signals.number or 0)) from None
        except AlreadyCompleteError as complete:
            if options.section:
                raise OutputError(
                    "the output is complete, and only the run that makes it draws it",
                    where=options.output,
                    remedy="leave out --preview, or start anew with --overwrite",
                ) from complete
            display.event("complete", output=str(options.output))
            display.say(str(complete))
            return {"output": str(options.output), "complete": True}, None
        total = time.perf_counter() - began
        figures = streaming_figures(made.streaming)
        result: dict[str, Any] = {
            "voxels": made.plan.region.size,
            "seconds": round(total, 3),
            "voxels_per_second": round(made.plan.region.size / total),
            "stages": {phase: round(seconds, 3) for phase, seconds in made.seconds.items()},
            "bottleneck": figures["bottleneck"],
            "backend": described["backend"],
            "precision": described["precision"],
            "output": str(options.output),
            "segments": None if made.segments is None else made.segments[0],
            **({"thresholds": _by_threshold(options, made.segments)} if options.more_thresholds else {}),
            "model": bundle.manifest.name,
            "decoder": options.decoder,
            "scoring": options.scoring,
            "threshold": options.threshold,
            "resumed_chunks": made.resumed,
            "runner": described,
        }
        write_record(
            options.output,
            {
                **result,
                "identity": made.identity,
                "decoding": options.wanted,
                "plan": made.plan.to_dict(),
                **({} if network_plan is None else {"network_plan": network_plan.to_dict()}),
                "voxel_sizes": voxel_sizes,
                "streaming": figures,
                "bundle": {"path": str(bundle.path), "files": dict(bundle.manifest.files)},
                **surroundings(),
            },
        )
        display.event("finished", **result)
    return result, made.section


def _by_threshold(options: RunOptions, segments: list[int] | None) -> dict[str, int]:
    """How many segments there are at each threshold."""
    from fgnet.engine.run_outputs import threshold_name

    return dict(zip(map(threshold_name, options.thresholds), segments or [], strict=True))
