"""fgnet-bench pipeline: from a volume on the disk to its segmentation on the disk, next to PyTorch's ways."""

from __future__ import annotations

import shlex
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand

from fgnet.benchmarks.result_file import without_folders
from fgnet.cli.bench_options import AsJson, Folder, Output, Repeats, Report, listed
from fgnet.cli.bench_result import publish, require_places
from fgnet.cli.console import say
from fgnet.volumes.errors import BackendError, VolumeError

if TYPE_CHECKING:
    from fgnet.engine.torch_runner import Device

_NOT_REPEATED = ("output", "report", "folder", "as_json")


class OptionsOfRunLast(TyperCommand):
    """A command whose words after "--" are another command's options; its own argument may be left out before them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what stands before "--"; the rest is `ctx.args`."""
        end = args.index("--") if "--" in args else len(args)
        super().parse_args(ctx, args[:end])
        rest = args[end + 1 :]
        ctx.args = rest
        return rest


def pipeline(
    context: typer.Context,
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle of fgnet-export.", show_default="nano, which ships with fgnet")
    ] = None,
    shape: Annotated[str, typer.Option(help="z,y,x voxels of synthetic neuropil.")] = "64,512,512",
    volume: Annotated[
        str | None, typer.Option(help="Address of gray to segment instead.", show_default="synthetic neuropil")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Address of the true labels of --volume.", show_default="none are known")
    ] = None,
    baselines: Annotated[
        str,
        typer.Option(help="paper, monai, each also with -kept: with the C library keeping memory; several by commas."),
    ] = "paper,paper-kept,monai,monai-kept",
    run_options: Annotated[
        list[str] | None,
        typer.Option(help='Of one more row of fgnet-run, such as "--backend openvino"; may be given again.'),
    ] = None,
    repeats: Repeats = 3,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="a GPU if there is one")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of one call on the CPU.", show_default="each way's own choice")
    ] = None,
    folder: Folder = None,
    output: Output = None,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Segment a volume as the paper does, with MONAI, and by fgnet-run, whose options come after "--".

    Times from disk to disk, stages, memory, and how far the segmentations are from each other and from the truth.

    Try it: fgnet-bench pipeline, or fgnet-bench pipeline --shape 32,256,256 -- --decoder blockwise.
    """
    from fgnet.benchmarks.pipeline_benchmark import PipelineOptions, PipelineVolume, measure_pipelines
    from fgnet.benchmarks.pipeline_table import render_pipeline
    from fgnet.benchmarks.tissue import write_sample
    from fgnet.engine.bundle import default_bundle, load_bundle
    from fgnet.volumes.address import parse_address
    from fgnet.volumes.geometry import parse_triple

    if device not in (None, "cpu", "cuda"):
        raise BackendError(f"there is no device {device!r}", where="--device", remedy="cpu or cuda")
    if labels is not None and volume is None:
        raise VolumeError("synthetic neuropil has its own labels", where="--labels", remedy="give --volume too")
    require_places(output, report)
    loaded = load_bundle(bundle or default_bundle())
    options = PipelineOptions(
        baselines=listed(baselines),
        run=context.args,
        more_runs=[shlex.split(more) for more in run_options or []],
        repeats=repeats,
        device=cast("Device | None", device),
        threads=threads,
        command=repeated_command(context),
    )
    with ExitStack() as cleanup:
        place = Path(cleanup.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        if volume is None:
            say("making synthetic neuropil")
            source = PipelineVolume(
                *write_sample(place / "sample.zarr", parse_triple(shape, "--shape")), "synthetic neuropil"
            )
        else:
            address = parse_address(volume)
            name = str(replace(address, path=Path(address.path.name)))
            source = PipelineVolume(volume, labels, name)
        benchmark = measure_pipelines(loaded, source, options, folder=place, say=say)
    publish(
        benchmark.to_dict(), lambda: render_pipeline(benchmark), context=context, output=output, report=report,
        as_json=as_json,
    )  # fmt: skip


def repeated_command(context: typer.Context) -> list[str]:
    """The words of a subcommand of fgnet-bench as they were given, but for folders and where the result went."""
    words = ["fgnet-bench", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if name in _NOT_REPEATED or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        for one in value if isinstance(value, (list, tuple)) else [value]:
            words += [str(one)] if parameter.param_type_name == "argument" else [parameter.opts[-1], str(one)]
    return list(map(without_folders, [*words, *(["--", *context.args] if context.args else [])]))
