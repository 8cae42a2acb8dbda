"""fgnet-train: labelled volumes -> a model, resumable at any moment; the paper's experiments; pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fgnet.cli import train_options as given
from fgnet.cli.console import guarded, optional_packages, print_json, print_text, run_app
from fgnet.cli.dataset_list import list_datasets as show_datasets
from fgnet.cli.train_experiment import GridRequest, run_grid
from fgnet.cli.train_pictures import draw_attention_maps
from fgnet.cli.train_run import divide, first_process, open_run, run_training
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
    ValMaskOption,
    ValRawOption,
    ValRoiOption,
    WeightOption,
    augmentation,
    draw_augmentation,
    load_test,
    load_validation,
    load_volumes,
)
from fgnet.cli.training_plan import fitted, make_plan, prepare_folder, provenance

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


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
    val_mask: ValMaskOption = None,
    val_share: given.ValShare = None,
    val_decoder: given.ValDecoder = None,
    augment: AugmentOption = None,
    preview_augmentation: PreviewOption = None,
    encoder: given.Encoder = None,
    input_scale: given.InputScale = None,
    depth: given.Depth = None,
    modules: given.ModulesOption = None,
    guidance: given.GuidanceOption = None,
    adaptation: given.AdaptationOption = None,
    sam2: given.Sam2 = None,
    start: given.Start = None,
    iterations: given.Iterations = None,
    batch: given.BatchSize = None,
    accumulate: given.Accumulate = None,
    crop: given.CropSize = None,
    learning_rate: given.LearningRate = None,
    schedule: given.ScheduleOption = None,
    warmup: given.Warmup = None,
    precision: given.PrecisionOption = None,
    ema: given.Ema = None,
    seed: given.Seed = None,
    device: given.DeviceOption = "auto",
    loaders: given.Loaders = 0,
    deterministic: given.Deterministic = False,
    save_every: given.SaveEvery = None,
    validate_every: given.ValidateEvery = None,
    patience: given.Patience = None,
    resume: given.Resume = False,
    overwrite: given.Overwrite = False,
    as_json: given.AsJson = False,
    experiment: given.ExperimentOption = None,
    seeds: given.Seeds = None,
    attention_maps: given.AttentionMaps = None,
) -> None:
    """Train FGNet on labelled volumes: OUT_DIR/model.pt is what fgnet-export makes a bundle of.

    Try it: fgnet-train runs/mine --from nano --raw v.h5:raw --labels v.h5:labels
    """
    if list_datasets:
        show_datasets(data_dir, as_json=as_json)
        return
    data = DataRequest(
        raw or (), labels or (), roi or (), weight or (), mask or (), unlabelled or (), dataset or (), data_dir,
        val_raw, val_labels, val_roi, val_mask,
    )  # fmt: skip
    if preview_augmentation is not None:
        draw_augmentation(preview_augmentation, data, crop, augment, seed or 0)
        return
    if output is None:
        raise typer.BadParameter("name a folder for model.pt and last.pt", param_hint="OUT_DIR")
    if attention_maps is not None:
        with optional_packages("train"):
            draw_attention_maps(output, attention_maps, data.raw, data.roi)
        return
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
        accumulate=accumulate,
        crop=_crop(crop),
        learning_rate=learning_rate,
        schedule=schedule,
        warmup=warmup,
        precision=precision,
        ema=ema,
        seed=seed,
        save_every=save_every,
        validate_every=validate_every,
        patience=patience,
        augment=augmentation(augment),
    )
    if experiment is not None:
        if resume or seed is not None:
            raise typer.BadParameter("--seeds are its seeds, and it goes on by itself", param_hint="--experiment")
        with optional_packages("train"):
            grid = GridRequest(
                experiment,
                seeds,
                network,
                training,
                sam2,
                start,
                # The paper's figures are of its own data alone.
                dataset[0] if dataset and len(dataset) == 1 and not (raw or val_raw) else None,
                val_decoder,
                val_share,
            )
            table = run_grid(
                output,
                grid,
                load_volumes(data),
                load_validation(data),
                load_test(data),
                _resources(device, loaders, deterministic),
                provenance=provenance(data.addresses),
                overwrite=overwrite,
            )
        print_json(table) if as_json else print_text(Path(table["table"]).read_text())
        return
    if seeds is not None:
        raise typer.BadParameter("they belong to --experiment; a run has one --seed", param_hint="--seeds")
    prepare_folder(output, resume=resume, overwrite=overwrite)
    with optional_packages("train"):
        plan = make_plan(output, network, training, sam2=sam2, start=start, share=val_share, resume=resume)
        parts = divide(load_volumes(data), load_validation(data), plan)
        if crop is None and start is not None and not resume:
            plan = fitted(plan, parts.volumes)
        facts = provenance(data.addresses)
        open_run(output, overwrite=overwrite)
        resources = _resources(device, loaders, deterministic)
        result = run_training(output, plan, parts, facts, decoder=val_decoder, resources=resources, resume=resume)
    if as_json and first_process():
        print_json(result)


def _given(**options: Any) -> dict[str, Any]:
    """The options that stand on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def _crop(text: str | None) -> tuple[int, int, int] | None:
    from fgnet.volumes.geometry import parse_triple

    return None if text is None else parse_triple(text, "crop")


def _resources(device: Any, loaders: int, deterministic: bool) -> Any:
    from fgnet.network.processes import chosen_device
    from fgnet.network.training_options import Resources
    from fgnet.volumes.kept_memory import keep_memory

    resources = Resources(device, loaders, deterministic)
    if chosen_device(resources.device) == "cpu":
        keep_memory()
    return resources


def main() -> None:
    """The command's entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
