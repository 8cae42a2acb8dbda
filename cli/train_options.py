"""The options of fgnet-train that say how a network is built and trained, each with its name in the help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fgnet.network.config import Adaptation, EncoderName, Guidance, Modules

_VALIDATION, _NETWORK, _START = "Validation", "Network", "First weights"
_OPTIMISATION = "Optimisation (default; default with --from)"
_MACHINE, _RUN, _OTHER = "Machine", "Run", "Instead of one run"

ValShare = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.9,
        help="Of the first volume, held out where no --val-raw is given (0; 0.2).",
        rich_help_panel=_VALIDATION,
    ),
]
ValDecoder = Annotated[
    Literal["waterz", "blockwise"] | None,
    typer.Option(help="As fgnet-run's --decoder (waterz).", rich_help_panel=_VALIDATION),
]

Encoder = Annotated[
    EncoderName | None,
    typer.Option(help="SAM2's variant, or our nano; tiny with --sam2, else nano.", rich_help_panel=_NETWORK),
]
InputScale = Annotated[
    int | None, typer.Option(help="Enlargement before the encoder: 1, 2 or 4.", rich_help_panel=_NETWORK)
]
Depth = Annotated[
    int | None, typer.Option(help="Levels of the fine-grained encoder: 3 to 5.", rich_help_panel=_NETWORK)
]
ModulesOption = Annotated[
    Modules | None, typer.Option("--modules", help="All of the network, or without a part.", rich_help_panel=_NETWORK)
]
GuidanceOption = Annotated[
    Guidance | None,
    typer.Option("--guidance", help="How SAM2's features guide the fine ones.", rich_help_panel=_NETWORK),
]
AdaptationOption = Annotated[
    Adaptation | None, typer.Option("--adaptation", help="Whether the encoder is trained.", rich_help_panel=_NETWORK)
]

Sam2 = Annotated[
    Path | None,
    typer.Option(metavar="CHECKPOINT", help="An official one, as sam2.1_hiera_tiny.pt.", rich_help_panel=_START),
]
Start = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="Fine-tune a model: nano, a bundle's folder, or a model.pt. Its configuration is taken too.",
        rich_help_panel=_START,
    ),
]

# Values in brackets are those of a network that is trained from the start, and those of fine-tuning.
Iterations = Annotated[int | None, typer.Option(help="Steps in all (10000; 200).", rich_help_panel=_OPTIMISATION)]
BatchSize = Annotated[
    int | None, typer.Option("--batch", help="Crops per step, of all processes (4; 2).", rich_help_panel=_OPTIMISATION)
]
Accumulate = Annotated[
    int | None,
    typer.Option(help="Passes that share a step's crops, where memory is short (1).", rich_help_panel=_OPTIMISATION),
]
CropSize = Annotated[
    str | None,
    typer.Option(
        "--crop",
        metavar="Z,Y,X",
        help="Voxels of a crop (16,256,256; 16,128,128 or what fits).",
        rich_help_panel=_OPTIMISATION,
    ),
]
LearningRate = Annotated[
    float | None, typer.Option(help="Adam's, at its highest (1e-4; 3e-4).", rich_help_panel=_OPTIMISATION)
]
ScheduleOption = Annotated[
    Literal["constant", "cosine"] | None,
    typer.Option("--schedule", help="How the rate goes on (constant; cosine).", rich_help_panel=_OPTIMISATION),
]
Warmup = Annotated[
    int | None, typer.Option(min=0, help="Steps of linear increase before (0; 20).", rich_help_panel=_OPTIMISATION)
]
PrecisionOption = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option("--precision", help="Of the arithmetic (fp32).", rich_help_panel=_OPTIMISATION),
]
Ema = Annotated[
    float | None, typer.Option(help="Decay of the averaged weights (0.999; 0.98).", rich_help_panel=_OPTIMISATION)
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Of weights, crops and changes (0).", rich_help_panel=_OPTIMISATION)
]

DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(
        "--device", help="A GPU where there is one; for several, see docs/training.md.", rich_help_panel=_MACHINE
    ),
]
Loaders = Annotated[
    int, typer.Option(min=0, help="Processes that prepare crops ahead; the same crops.", rich_help_panel=_MACHINE)
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="The same bits each time, slower on a GPU.", rich_help_panel=_MACHINE)
]

SaveEvery = Annotated[int | None, typer.Option(help="Steps between checkpoints (200; 50).", rich_help_panel=_RUN)]
ValidateEvery = Annotated[int | None, typer.Option(help="Steps between validations (1000; 50).", rich_help_panel=_RUN)]
Patience = Annotated[
    int | None, typer.Option(help="Validations without a better one that end the run (never).", rich_help_panel=_RUN)
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from last.pt, with its options.", rich_help_panel=_RUN)]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a run that is there already.", rich_help_panel=_RUN)
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout at the end.", rich_help_panel=_RUN)
]

ExperimentOption = Annotated[
    Literal["adaptation", "table4", "table5", "table6", "table7"] | None,
    typer.Option(
        "--experiment",
        help="Train a grid of networks, as in the paper's table; go on with it if it is there.",
        rich_help_panel=_OTHER,
    ),
]
Seeds = Annotated[str | None, typer.Option(metavar="S,S,...", help="Of the grid's runs (0).", rich_help_panel=_OTHER)]
AttentionMaps = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Draw where its gates let features through, for sections of --raw and --roi, into the PNG OUT.",
        rich_help_panel=_OTHER,
    ),
]
