"""fgnet-train: labelled volumes -> a model, resumable at any moment."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fgnet.cli.console import INTERRUPTED, guarded, optional_packages, print_json, run_app, say, voxel_progress
from fgnet.cli.training_data import (
    AugmentOption,
    DataDirOption,
    DataRequest,
    DatasetOption,
    LabelsOption,
    ListDatasetsOption,
    MaskOption,
    PreviewOption,
    RawOption,
    RoiOption,
    UnlabelledOption,
    ValLabelsOption,
    ValRawOption,
    ValRoiOption,
    WeightOption,
    augmentation,
    draw_augmentation,
    load_validation,
    load_volumes,
)
from fgnet.cli.training_data import list_datasets as show_datasets
from fgnet.cli.training_plan import (
    MODEL,
    STATE,
    TrainingPlan,
    make_plan,
    open_folder,
    prepare_folder,
    provenance,
)
from fgnet.network.config import Adaptation, EncoderName, Guidance, Modules

if TYPE_CHECKING:
    from fgnet.network.data import LabelledVolume
    from fgnet.network.model import FGNet

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

_NETWORK, _START, _OPTIMISATION, _RUN = "Network", "First weights", "Optimisation", "Run"


@app.command()
@guarded
def train(
    output: Annotated[
        Path | None, typer.Argument(metavar="OUT_DIR", help="Folder for model.pt and last.pt.", show_default=False)
    ] = None,
    raw: RawOption = None,
    labels: LabelsOption = None,
    roi: RoiOption = None,
    weight: WeightOption = None,
    mask: MaskOption = None,
    unlabelled: UnlabelledOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    list_datasets: ListDatasetsOption = False,
    val_raw: ValRawOption = None,
    val_labels: ValLabelsOption = None,
    val_roi: ValRoiOption = None,
    augment: AugmentOption = None,
    preview_augmentation: PreviewOption = None,
    encoder: Annotated[
        EncoderName | None,
        typer.Option(help="SAM2's variant, or our nano; tiny with --sam2, else nano.", rich_help_panel=_NETWORK),
    ] = None,
    input_scale: Annotated[
        int | None, typer.Option(help="Enlargement before the encoder: 1, 2 or 4.", rich_help_panel=_NETWORK)
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Levels of the fine-grained encoder: 3 to 5.", rich_help_panel=_NETWORK)
    ] = None,
    modules: Annotated[
        Modules | None, typer.Option(help="All of the network, or without a part.", rich_help_panel=_NETWORK)
    ] = None,
    guidance: Annotated[
        Guidance | None, typer.Option(help="How SAM2's features guide the fine ones.", rich_help_panel=_NETWORK)
    ] = None,
    adaptation: Annotated[
        Adaptation | None, typer.Option(help="Whether the encoder is trained.", rich_help_panel=_NETWORK)
    ] = None,
    sam2: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="An official one, as sam2.1_hiera_tiny.pt.", rich_help_panel=_START),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="CHECKPOINT",
            help="An fgnet model, whose configuration is taken too.",
            rich_help_panel=_START,
        ),
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Steps in all (10000).", rich_help_panel=_OPTIMISATION)] = None,
    batch: Annotated[int | None, typer.Option(help="Crops per step (4).", rich_help_panel=_OPTIMISATION)] = None,
    crop: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Voxels of a crop (16,256,256).", rich_help_panel=_OPTIMISATION)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Adam's, at its highest (1e-4).", rich_help_panel=_OPTIMISATION)
    ] = None,
    schedule: Annotated[
        Literal["constant", "cosine"] | None,
        typer.Option(help="How the rate goes on (constant).", rich_help_panel=_OPTIMISATION),
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(min=0, help="Steps of linear increase before (0).", rich_help_panel=_OPTIMISATION)
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16"] | None, typer.Option(help="Of the arithmetic (fp32).", rich_help_panel=_OPTIMISATION)
    ] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of the averaged weights (0.999).", rich_help_panel=_OPTIMISATION)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of weights, crops and changes (0).", rich_help_panel=_OPTIMISATION)
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints (200).", rich_help_panel=_RUN)
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(help="Steps between validations (1000).", rich_help_panel=_RUN)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from last.pt, with its options.", rich_help_panel=_RUN)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run that is there already.", rich_help_panel=_RUN)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout at the end.", rich_help_panel=_RUN)
    ] = False,
) -> None:
    """Train FGNet on labelled volumes: OUT_DIR/model.pt is what fgnet-export makes a bundle of.

    Try it: fgnet-train runs/first --raw v.h5:raw --labels v.h5:labels --roi 0:200,:,: --crop 16,128,128
    """
    if list_datasets:
        show_datasets(data_dir, as_json=as_json)
        return
    data = DataRequest(
        raw or (), labels or (), roi or (), weight or (), mask or (), unlabelled or (), dataset or (), data_dir,
        val_raw, val_labels, val_roi,
    )  # fmt: skip
    if preview_augmentation is not None:
        draw_augmentation(preview_augmentation, data, crop, augment, seed or 0)
        return
    if output is None:
        raise typer.BadParameter("name a folder for model.pt and last.pt", param_hint="OUT_DIR")
    prepare_folder(output, resume=resume, overwrite=overwrite)
    network = _given(
        encoder=encoder,
        input_scale=input_scale,
        depth=depth,
        modules=modules,
        guidance=guidance,
        adaptation=adaptation,
    )
    training = _given(
        iterations=iterations,
        batch=batch,
        crop=_crop(crop),
        learning_rate=learning_rate,
        schedule=schedule,
        warmup=warmup,
        precision=precision,
        ema=ema,
        seed=seed,
        save_every=save_every,
        validate_every=validate_every,
        augment=augmentation(augment),
    )
    with optional_packages("train"):
        plan = make_plan(output, network, training, sam2=sam2, start=start, resume=resume)
        volumes, held_out = load_volumes(data), load_validation(data)
        facts = provenance(data.addresses)
        open_folder(output, overwrite=overwrite)
        result = _run(output, plan, volumes, held_out, facts, resume)
    if as_json:
        print_json(result)


def _given(**options: Any) -> dict[str, Any]:
    """The options that stand on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def _crop(text: str | None) -> tuple[int, int, int] | None:
    from fgnet.volumes.geometry import parse_triple

    return None if text is None else parse_triple(text, "crop")


def _run(
    folder: Path,
    plan: TrainingPlan,
    volumes: list[LabelledVolume],
    held_out: LabelledVolume | None,
    facts: dict[str, Any],
    resume: bool,
) -> dict[str, Any]:
    """Trains, with a bar on stderr; the figures of the run."""
    from fgnet.network.training import train as steps
    from fgnet.network.validation import Validation

    scored: list[dict[str, Any]] = []
    check = None if held_out is None else _recorded(Validation(held_out), scored)
    options = plan.options
    voxels = options.batch * math.prod(options.crop)
    started, step, loss, speed = time.perf_counter(), plan.first, None, 0.0
    size = sum(volume.raw.size for volume in volumes) / 1e6
    say(f"training {plan.config.encoder} on {size:.1f} Mvoxels in {len(volumes)} volumes")
    try:
        with voxel_progress("training", options.iterations * voxels, plan.first * voxels) as bar:
            for now in steps(
                folder, plan.config, options, volumes,
                validate=check, initial=plan.initial, resume=resume, provenance=facts,
            ):  # fmt: skip
                step, loss, speed = now.step, now.loss, now.voxels_per_second
                bar.update(step * voxels, f"step {step}/{options.iterations}  loss {loss:.4f}  rate {now.rate:.1e}")
                if now.score is not None:
                    bar.say(f"step {step}: {_figures(scored[-1])}")
    except KeyboardInterrupt:
        say(_how_to_resume(folder, step), "yellow")
        raise typer.Exit(INTERRUPTED) from None
    seconds = time.perf_counter() - started
    model = folder / MODEL
    say(f"{model}: step {step}, {seconds:.1f} s" + ("" if loss is None else f", loss {loss:.4f}"))
    return {
        "model": str(model),
        "steps": step,
        "seconds": round(seconds, 3),
        "voxels_per_second": round(speed),
        "loss": loss,
        "validation": _validation_of(model),
    }


def _recorded(
    validate: Callable[[FGNet], dict[str, Any]], scored: list[dict[str, Any]]
) -> Callable[[FGNet], dict[str, Any]]:
    """A validation that also notes its figures; training reports one of them only."""

    def noted(network: FGNet) -> dict[str, Any]:
        scored.append(validate(network))
        return scored[-1]

    return noted


def _figures(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _validation_of(model: Path) -> dict[str, Any] | None:
    """The figures of the weights that were kept, where there was a validation."""
    from fgnet.network.checkpoint import load_checkpoint

    figures: dict[str, Any] | None = load_checkpoint(model).provenance.get("validation")
    return figures


def _how_to_resume(folder: Path, step: int) -> str:
    if not (folder / STATE).is_file():
        return f"interrupted at step {step}, before the first checkpoint (--save-every says when)"
    again = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--overwrite")]
    command = shlex.join(["fgnet-train", *again, "--resume"])
    return f"interrupted at step {step}; go on from the last checkpoint with\n  {command}"


def main() -> None:
    """The command's entry point."""
    run_app(app)
