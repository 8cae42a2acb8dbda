"""The training loop: samples -> weights, resumable at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fgnet.network.batches import Batch, PassBatches, draw
from fgnet.network.config import FGNetConfig
from fgnet.network.data import CropSampler, LabelledVolume
from fgnet.network.memory_errors import memory_explained
from fgnet.network.model import FGNet
from fgnet.network.optimisation import Optimisation
from fgnet.network.processes import Processes, open_processes
from fgnet.network.run_folder import locked
from fgnet.network.training_log import TrainingLog
from fgnet.network.training_options import Resources, TrainingOptions
from fgnet.network.training_state import MODEL, STATE, Standing, clear, reproducible, restore, save_model, save_state
from fgnet.volumes.errors import FGNetError, TrainingError

__all__ = ["Progress", "Resources", "TrainingOptions", "TrainingStoppedError", "Validate", "train"]


_LESS_MEMORY = (
    "a larger --accumulate, a smaller --crop or fewer --loaders take less; what was saved goes on with --resume"
    " (an experiment: by the same command, or with other options in another folder)"
)


class TrainingStoppedError(FGNetError):
    """The run was asked to stop, and did so between two steps; `last.pt` is of the last one, if there was any."""

    def __init__(self) -> None:
        super().__init__("stopped on request; what was trained is saved", remedy="go on with --resume")


@dataclass(frozen=True)
class Progress:
    """What a step reports.

    Attributes:
        step: steps done; 0 for the weights that a run starts from.
        loss: this step's; NaN for those.
        rate: its learning rate.
        voxels_per_second: since this run was started or continued.
        validation: the figures of the averaged network, after a step that was validated.
    """

    step: int
    loss: float
    rate: float
    voxels_per_second: float
    validation: dict[str, Any] | None = None

    @property
    def score(self) -> float | None:
        """The VOI that the best checkpoint is chosen by."""
        return None if self.validation is None else float(self.validation["voi"])


Validate = Callable[[FGNet], dict[str, Any]]
"""From a network in evaluation mode to plain figures; `voi` is what the best checkpoint is chosen by."""


def train(
    folder: Path,
    config: FGNetConfig,
    options: TrainingOptions,
    volumes: list[LabelledVolume],
    *,
    validate: Validate | None = None,
    initial: Callable[[FGNet], None] | None = None,
    validate_first: bool = False,
    resume: bool = False,
    provenance: dict[str, Any] | None = None,
    resources: Resources | None = None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Progress]:
    """Train, reporting after each step.

    Writes `last.pt` (everything that an exact resume needs) every `save_every` steps and at the end, `model.pt`, the
    averaged weights (the best by validation, or the last ones without one), and a log. A stop that is asked for loses
    nothing; an interrupt at any moment leaves both checkpoints as they were written last. Those of an earlier run are
    deleted by one that does not resume it, once nothing is in the way of its first step. Of several processes only the
    first one writes.

    Args:
        folder: where the checkpoints go.
        config: the network.
        options: how it is trained.
        volumes: what it is trained on.
        validate: scores the averaged network.
        initial: loads weights into the new network (SAM2's, or another FGNet's); not called when resuming.
        validate_first: score the first weights too: a model that is fine-tuned is kept unless a better one is found.
        resume: continue from `last.pt`; data, configuration and all options but `CHANGEABLE` ones must be the same.
        provenance: plain data kept in `model.pt`.
        resources: what the run is carried out by.
        stop: asked before each step whether to save and stop; what one process hears, all of them heed.
        say: tells the user.

    Raises:
        TrainingStoppedError: `stop` said so.
        TrainingError: data without crops, a crop that the network cannot halve, data or options that differ from the
            resumed run's, a loss or gradient that is not finite, or too little memory (the last checkpoint stays).
        CheckpointError: nothing to resume from.
        OutputError: a checkpoint or the log cannot be written, or another run is writing in the folder.
    """
    resources = resources or Resources()
    sampler = _sampler(config, options, volumes)
    with ExitStack() as stack:
        stack.enter_context(reproducible(resources.deterministic))
        processes = stack.enter_context(open_processes(resources.device))
        if processes.first:
            stack.enter_context(locked(folder))
        crops = options.batch // options.accumulate
        batches = PassBatches(sampler, options.accumulate, crops, processes.share(crops))
        torch.manual_seed(options.seed)
        network = FGNet(config)
        if initial is not None and not resume:
            initial(network)
        with memory_explained("before the first step", "free some, or choose a smaller --encoder"):
            optimisation = Optimisation(network, options, processes)
        facts = dict(provenance or {}) | {
            "options": options.to_dict(),
            "voxel_sizes": [list(size) for size in sorted({v.space.voxel_size for v in volumes if v.space.known})],
            **identities(volumes),
        }
        standing = Standing()
        if resume:
            standing = restore(folder / STATE, optimisation, options, facts, validated=validate is not None)
        elif processes.first:
            # Not before all of the new run is known to be possible.
            clear(folder)
        log = stack.enter_context(closing(TrainingLog(folder, standing.step, say))) if processes.first else None
        run = _Run(folder, options, optimisation, processes, log, validate, stop, facts)
        if resume and not processes.agree((folder / MODEL).exists()):
            standing = run.without_model(standing, say)
        passes = range(standing.step * options.accumulate, options.iterations * options.accumulate)
        ahead = draw(batches, passes, loaders=resources.loaders, pin=processes.device.type == "cuda")
        if validate_first and validate is not None and not resume:
            first = run.first(standing)
            standing = standing.after(float(first.validation["voi"]) if first.validation else math.inf)
            yield first
        yield from run.steps(standing, stack.enter_context(closing(ahead)))


def require_trainable(
    config: FGNetConfig,
    options: TrainingOptions,
    volumes: list[LabelledVolume],
    *,
    initial: Callable[[FGNet], None] | None = None,
    resources: Resources | None = None,
) -> None:
    """Refuse what `train` refuses before its first step; arguments and errors are its own. Writes nothing."""
    _sampler(config, options, volumes)
    with open_processes((resources or Resources()).device):
        network = FGNet(config)
        if initial is not None:
            initial(network)


def _sampler(config: FGNetConfig, options: TrainingOptions, volumes: list[LabelledVolume]) -> CropSampler:
    multiple = config.section_multiple
    if any(side % multiple for side in options.crop[1:]):
        raise TrainingError(
            f"crop {options.crop}: the network halves y and x down to a stride of {multiple}",
            remedy=f"give y and x as multiples of {multiple}",
        )
    return CropSampler(volumes, options.crop, options.augment, options.seed)


def identities(volumes: list[LabelledVolume]) -> dict[str, Any]:
    """What tells a run's volumes from others: names, how often they are drawn, and how much of them is labelled."""
    return {
        "volumes": [volume.name for volume in volumes],
        "volume_weights": [float(volume.weight) for volume in volumes],
        "labelled_voxels": [volume.labelled_voxels for volume in volumes],
    }


@dataclass(frozen=True, eq=False)
class _Run:
    """What goes through all steps; without a log this process is not the one that writes."""

    folder: Path
    options: TrainingOptions
    optimisation: Optimisation
    processes: Processes
    log: TrainingLog | None
    validate: Validate | None
    stop: Callable[[], bool]
    facts: dict[str, Any]

    def first(self, standing: Standing) -> Progress:
        """The validation of the weights that the run starts from."""
        return Progress(0, math.nan, self.options.rate(0), 0.0, self._validated(standing))

    def without_model(self, standing: Standing, say: Callable[[str], None]) -> Standing:
        """Keep the weights that the run goes on from where the ones that it had kept are gone."""
        over = standing.step >= self.options.iterations or not standing.patient(self.options)
        lost = self.validate is not None and standing.best < math.inf
        if not (over or lost or self.validate is None):
            return standing
        figures = None if self.validate is None else self._figures(standing)
        if figures is not None:
            standing = replace(standing, best=float(figures["voi"]))
        if self.log is not None:
            validated = {} if figures is None else {"validation": figures}
            save_model(self.folder, self.optimisation, self._facts(standing) | validated)
            save_state(self.folder, self.optimisation, self.options, standing, self._facts(standing))
        before = ", not the best before," if lost else ""
        say(f"{self.folder / MODEL} is gone: the weights{before} of step {standing.step} are kept in its place")
        return standing

    def steps(self, standing: Standing, batches: Iterator[Batch]) -> Iterator[Progress]:
        options = self.options
        started, spent, first = time.perf_counter(), standing.seconds, standing.step
        while standing.step < options.iterations and standing.patient(options):
            crops, failed = self._drawn(standing, batches)
            if self.processes.any(self.stop() or failed is not None):
                self._keep(standing)
                # A signal to all processes ends the loaders, too.
                raise TrainingStoppedError if failed is None or self.stop() else failed
            with memory_explained(f"after step {standing.step}", _LESS_MEMORY):
                loss = self.optimisation.step(standing.step, crops)
            since = time.perf_counter() - started
            standing = replace(standing, step=standing.step + 1, seconds=round(spent + since, 3))
            voxels = (standing.step - first) * options.batch * math.prod(options.crop)
            now = Progress(standing.step, loss, options.rate(standing.step - 1), voxels / since)
            if self.log is not None:
                self.log.step(now.step, now.loss, now.rate, standing.seconds, now.voxels_per_second)
            if self.validate is not None and self._due(standing, options.validate_every):
                now = replace(now, validation=self._validated(standing))
                standing = standing.after(float(now.validation["voi"]) if now.validation else math.inf)
            self._save(standing, now)
            yield now
        # Nobody leaves before the first process has written what others may want to read.
        self.processes.agree(None)

    def _drawn(self, standing: Standing, batches: Iterator[Batch]) -> tuple[list[Batch], TrainingError | None]:
        """The crops of a step, or why there are none: its weights are whole, and are kept."""
        try:
            with memory_explained(f"after step {standing.step}", _LESS_MEMORY):
                return [next(batches) for _ in range(self.options.accumulate)], None
        except TrainingError as error:
            return [], error

    def _due(self, standing: Standing, every: int) -> bool:
        step = standing.step
        return step % every == 0 or step == self.options.iterations or not standing.patient(self.options)

    def _validated(self, standing: Standing) -> dict[str, Any]:
        """The figures of the averaged network; the best one is kept."""
        figures = self._figures(standing)
        if self.log is not None:
            self.log.validation(standing.step, figures)
            if float(figures["voi"]) < standing.best:
                save_model(self.folder, self.optimisation, self._facts(standing) | {"validation": figures})
        return figures

    def _figures(self, standing: Standing) -> dict[str, Any]:
        """Those of the averaged network, found by the first process."""
        assert self.validate is not None  # noqa: S101 - for the type checker
        averaged = self.optimisation.averaged
        with memory_explained(f"in the validation of step {standing.step}", "free some, and go on with --resume"):
            found = self.validate(averaged.eval()) if self.processes.first else None
        averaged.train()
        figures: dict[str, Any] = self.processes.agree(found)
        return figures

    def _save(self, standing: Standing, now: Progress) -> None:
        if self.log is None:
            return
        if self._due(standing, self.options.save_every):
            self._write(standing)
        if now.validation is not None or standing.step == self.options.iterations:
            self.log.draw()

    def _keep(self, standing: Standing) -> None:
        """Write what was trained since it was written last, for a run that ends before it is due again."""
        if self.log is not None and not self._due(standing, self.options.save_every):
            self._write(standing)
        # torchrun ends the others when one has ended.
        self.processes.agree(None)

    def _write(self, standing: Standing) -> None:
        if self.validate is None:
            save_model(self.folder, self.optimisation, self._facts(standing))
        save_state(self.folder, self.optimisation, self.options, standing, self._facts(standing))

    def _facts(self, standing: Standing) -> dict[str, Any]:
        changes = {"changes": list(standing.changes)} if standing.changes else {}
        return self.facts | changes | {"steps": standing.step, "seconds": standing.seconds}
