"""The options of fgnet-run, each with its help; their defaults stand in `fgnet.cli.run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

DECODING, INFERENCE, OUTPUT = "Decoding", "Inference", "Output"

Volume: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        show_default=False,
        metavar="VOLUME",
        help="Gray values: v.zarr\\[/group/array], f.h5:dataset, stack.tif or a folder of sections.",
    ),
]
Output: TypeAlias = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Zarr store to create.", show_default="VOLUME's name + .segmentation.zarr"),
]
Model: TypeAlias = Annotated[
    Path | None, typer.Option(help="Bundle of fgnet-export.", show_default="nano, which ships with fgnet")
]
Stride: TypeAlias = Annotated[str | None, typer.Option(help="Voxels z,y,x between patches.", rich_help_panel=INFERENCE)]
Roi: TypeAlias = Annotated[str | None, typer.Option(help="Region z0:z1,y0:y1,x0:x1 of the volume.")]
GrayRange: TypeAlias = Annotated[
    str | None, typer.Option(help="LOW,HIGH: gray values that become 0 and 255, for volumes that are not uint8.")
]
VoxelSize: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Voxel size z,y,x of the volume in nm, where the file says none or a wrong one.", show_default="the file's"
    ),
]
Rescale: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Voxel size z,y,x in nm at which the network sees the volume; or auto, the nearest one that the model was"
        " trained on, where the volume's differs by more than a quarter from all. The output has the volume's voxels.",
        show_default="the volume's",
        rich_help_panel=INFERENCE,
    ),
]
Mask: TypeAlias = Annotated[
    str | None, typer.Option(help="Address of a volume that is 0 where there is no tissue; coarser ones will do.")
]
Backend: TypeAlias = Annotated[
    str,
    typer.Option(help="auto, onnxruntime, openvino, tensorrt, tensorrt-rtx, torch, ...", rich_help_panel=INFERENCE),
]
Precision: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="fp32, fp16, bf16 or int8.", show_default="the fastest that was proved", rich_help_panel=INFERENCE
    ),
]
Device: TypeAlias = Annotated[
    str | None, typer.Option(help="cpu or cuda.", show_default="a GPU if present", rich_help_panel=INFERENCE)
]
Blending: TypeAlias = Annotated[
    str, typer.Option(help="gaussian, bump or constant weights of a patch.", rich_help_panel=INFERENCE)
]
Threads: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Threads.", show_default="all cores", rich_help_panel=INFERENCE)
]
Decoder: TypeAlias = Annotated[
    str,
    typer.Option(
        help="waterz, with all in memory; blockwise, with a block at a time, by mean affinity; none: the output is the"
        " affinities; auto: blockwise for scores by mean and for regions that are too large for waterz, else waterz.",
        rich_help_panel=DECODING,
    ),
]
Threshold: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="0 to 1; higher merges more. Several by commas for blockwise: the output is of the first, and those of"
        " the others lie in OUTPUT/thresholds/T.",
        show_default="the model's, from validation",
        rich_help_panel=DECODING,
    ),
]
SaveGraph: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Zarr group for blockwise to keep its merge tree in, for --from-graph.", rich_help_panel=DECODING
    ),
]
GraphThreshold: TypeAlias = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Highest threshold that --save-graph is to serve.",
        show_default="the highest --threshold",
        rich_help_panel=DECODING,
    ),
]
FromGraph: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Merge tree of --save-graph to make the segmentation of, in place of VOLUME.", rich_help_panel=DECODING
    ),
]
Workers: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that decode block by block, from the first affinities on.",
        show_default="threads, afterwards",
        rich_help_panel=DECODING,
    ),
]
Cluster: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Who starts --workers: local, slurm or lsf.", show_default="local", rich_help_panel=DECODING),
]
ClusterOptions: TypeAlias = Annotated[
    str | None,
    typer.Option(help="For srun or bsub, such as '--partition cpu --mem 4G'.", rich_help_panel=DECODING),
]
Host: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Name or address by which workers of a cluster reach this machine.",
        show_default="found out",
        rich_help_panel=DECODING,
    ),
]
Fragments: TypeAlias = Annotated[
    str | None,
    typer.Option(help="sections or affinity.", show_default="the model's", rich_help_panel=DECODING),
]
Scoring: TypeAlias = Annotated[
    str | None, typer.Option(help="quantile or mean.", show_default="the model's", rich_help_panel=DECODING)
]
Quantile: TypeAlias = Annotated[
    int | None, typer.Option(help="Percent, 10 to 95.", show_default="the model's", rich_help_panel=DECODING)
]
MinSize: TypeAlias = Annotated[
    int, typer.Option(min=0, help="Voxels below which a segment becomes background.", rich_help_panel=DECODING)
]
Processes: TypeAlias = Annotated[
    int,
    typer.Option(
        min=1, help="That share the work: on GPUs one for each, on a CPU its cores.", rich_help_panel=INFERENCE
    ),
]
Memory: TypeAlias = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        help="GiB of each process for the sums of unfinished chunks, of the host or the GPU; with more of it,"
        " less work is done twice.",
        show_default="0.5",
        rich_help_panel=INFERENCE,
    ),
]
SaveAffinities: TypeAlias = Annotated[
    bool, typer.Option("--save-affinities", help="Keep them in OUTPUT/affinities.", rich_help_panel=OUTPUT)
]
Preview: TypeAlias = Annotated[Path | None, typer.Option(help="PNG of the middle section.", rich_help_panel=OUTPUT)]
ZarrFormat: TypeAlias = Annotated[
    int, typer.Option(min=2, max=3, help="3 (OME-NGFF 0.5) or 2 (0.4).", rich_help_panel=OUTPUT)
]
Overwrite: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier output.", rich_help_panel=OUTPUT)
]
Resume: TypeAlias = Annotated[
    bool,
    typer.Option("--resume", help="Go on with a run of this output that was stopped.", rich_help_panel=OUTPUT),
]
DryRun: TypeAlias = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would be done and the memory it takes beside the network's, and stop."),
]
LogJson: TypeAlias = Annotated[
    bool,
    typer.Option("--log-json", help="Progress on stderr as lines of JSON.", rich_help_panel=OUTPUT),
]
AsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=OUTPUT)
]
