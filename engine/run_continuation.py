"""May this output be created, replaced, or gone on with?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgnet.engine.blockwise_run import kept_tree, refuse_graph, require_graph
from fgnet.engine.foreign_output import refuse_foreign
from fgnet.engine.own_input import refuse_own_input
from fgnet.engine.run_identity import NETWORK_VOXEL_SIZE
from fgnet.engine.run_journal import RunJournal, differences, journal_path
from fgnet.engine.run_options import RunOptions
from fgnet.engine.run_outputs import (
    AFFINITIES_GROUP,
    GROUPS,
    RunOutputs,
    create_outputs,
    drop_affinities,
    drop_decoding,
    drop_network,
    reopen_outputs,
)
from fgnet.engine.run_plan import RunPlan
from fgnet.engine.run_record import read_record, record_path
from fgnet.volumes.address import is_zarr
from fgnet.volumes.errors import FGNetError, OutputError
from fgnet.volumes.output_store import explained, require_room
from fgnet.volumes.reading import Volume
from fgnet.volumes.zarr_source import is_image, is_unfinished


class AlreadyCompleteError(FGNetError):
    """The output that was to be continued is complete."""


def refuse_outputs(options: RunOptions, *sources: Volume | None, rescales: bool = False) -> None:
    """Refuse the outputs of a run for what is there already, as far as that is told without locking or changing any.

    Whether a run can be gone on with, only `open_run` says.

    Args:
        options: of the run.
        sources: gray and mask; None is passed over.
        rescales: whether the network sees them at another voxel size.

    Raises:
        OutputError: an output exists and is not to be replaced, or is something else, or what is read.
    """
    refuse_own_input(options.output, *sources)
    refuse_graph(options)
    refuse_foreign(options.output, overwrite=options.overwrite, rescales=rescales)
    if not options.resume:
        if journal_path(options.output).is_file() and is_zarr(options.output) and not options.overwrite:
            raise _not_finished(options.output)
        require_room(options.output, overwrite=options.overwrite, replaces=GROUPS)


def open_run(
    journal: RunJournal,
    plan: RunPlan,
    volume: Volume,
    options: RunOptions,
    *,
    named: dict[str, Any],
    wanted: dict[str, Any],
) -> RunOutputs:
    """Create the outputs of a run and begin its journal, or go on with those that the journal is of.

    Args:
        journal: of the output, locked.
        plan: of the run.
        volume: gray.
        options: of the run.
        named: what the affinities depend on.
        wanted: what is made of them, as `run.json` keeps it.

    Raises:
        OutputError: the output exists, is of another run, can neither be gone on with nor be replaced, or is complete
            without the merge tree that is asked for.
        AlreadyCompleteError: there is nothing to continue.
    """
    output, segmentation = options.output, options.decoder != "none"
    try:
        goes_on = options.resume and continues(
            journal,
            output,
            named,
            wanted,
            has_pieces=lambda: _has_affinities(options),
            clean_up=lambda: clean_up(options),
        )
    except AlreadyCompleteError:
        require_graph(options, named)
        raise
    if goes_on:
        return reopen_outputs(
            output,
            plan,
            volume,
            segmentation=segmentation,
            zarr_format=options.zarr_format,
            thresholds=options.more_thresholds,
        )
    # Begun, but not as far as its journal: nothing is lost by making it anew.
    empty = options.resume and is_unfinished(output) and not _has_affinities(options)
    # What was made on the network's grid is gone on with by itself.
    keep_network = options.resume and NETWORK_VOXEL_SIZE in named
    with created_anew(journal, output, overwrite=options.overwrite, keep_network=keep_network) as forget:
        outputs = create_outputs(
            output,
            plan,
            volume,
            segmentation=segmentation,
            zarr_format=options.zarr_format,
            overwrite=options.overwrite or empty,
            first=forget,
            thresholds=options.more_thresholds,
        )
    journal.begin(named, tree=kept_tree(options.graph) if options.overwrite else None)
    return outputs


@contextmanager
def created_anew(
    journal: RunJournal, output: Path, *, overwrite: bool, keep_network: bool = False
) -> Iterator[Callable[[], None]]:
    """Create an output inside of this; no journal is left of one that cannot be created.

    Args:
        journal: of the output, locked.
        output: the Zarr store.
        overwrite: whether an earlier run that did not finish may be lost.
        keep_network: whether affinities at the network's voxel size may be of use.

    Yields:
        What is to be called before an earlier output is replaced: all that lies beside it is forgotten but its record,
            which is once the output has been created.

    Raises:
        OutputError: an earlier run did not finish.
    """
    if journal.run is not None and is_zarr(output) and not overwrite:
        raise _not_finished(output)

    def forget() -> None:
        # First: another process may still write it, and then nothing is touched.
        if not keep_network:
            drop_network(output)
        journal.clear()
        drop_decoding(output)

    try:
        yield forget
        # Not before: a complete output that a kill leaves in its place is told from somebody else's by its record.
        with explained(record_path(output)):
            record_path(output).unlink(missing_ok=True)
    except BaseException:
        # One that holds anything is of an output that was left as it is.
        if journal.empty:
            journal.remove()
        raise


def _not_finished(output: Path) -> OutputError:
    return OutputError(
        "a run of this output did not finish", where=output, remedy="--resume continues it, --overwrite starts anew"
    )


def clean_up(options: RunOptions) -> None:
    """Remove what was only needed on the way to the segmentation."""
    if options.decoder != "none" and not options.save_affinities:
        drop_affinities(options.output)
    drop_decoding(options.output)


def continues(
    journal: RunJournal,
    output: Path,
    named: dict[str, Any],
    wanted: dict[str, Any],
    *,
    has_pieces: Callable[[], bool],
    clean_up: Callable[[], None],
) -> bool:
    """Whether there is a run to go on with.

    Args:
        journal: of the output, locked.
        output: the Zarr store.
        named: what the journal is to be of.
        wanted: what else a complete output's `run.json` is to say.
        has_pieces: whether an unfinished output holds anything worth keeping.
        clean_up: removes what a complete output needs no more.

    Raises:
        OutputError: the output is of another run, or can neither be gone on with nor be replaced.
        AlreadyCompleteError: there is nothing to continue.
    """
    if journal.run is None:
        if is_image(output):
            journal.remove()
            _require_same(output, {**named, **wanted})
            raise AlreadyCompleteError("the output is complete, nothing is left to do", where=output)
        if is_unfinished(output) and has_pieces():
            journal.remove()
            raise OutputError(
                "the output is unfinished, and the journal that knows its finished chunks is not there",
                where=journal.path,
                remedy="put it back beside the output, or start anew with --overwrite",
            )
        return False
    if not is_zarr(output):
        return False
    journal.require(named)
    if is_unfinished(output):
        return True
    if not is_image(output):
        raise OutputError(
            "its metadata cannot be read, so that it is neither gone on with nor replaced",
            where=output,
            remedy="restore its zarr.json, or start anew with --overwrite",
        )
    # The run was killed between its last steps. What it made was recorded before the output opened as complete.
    if read_record(output) is not None:
        _require_same(output, {**named, **wanted})
    clean_up()
    journal.remove()
    raise AlreadyCompleteError("the output is complete, nothing is left to do", where=output)


def _require_same(output: Path, asked: dict[str, Any]) -> None:
    """Refuse a complete output of another run, naming what differs."""
    record = read_record(output) or {}
    held = {**record.get("identity", {}), **record.get("decoding", {})}
    if different := differences(held, asked):
        raise OutputError(
            f"the output is complete, of another run: {different if held else 'it has no record'}",
            where=output,
            remedy="choose another output, or replace it with --overwrite",
        )


def has_chunks(output: Path, group: str | None = None) -> bool:
    """Whether anything was written into an output, or into a group of it."""
    level = output / (group or "") / "0"
    return level.is_dir() and any(entry.is_dir() for entry in level.iterdir())


def _has_affinities(options: RunOptions) -> bool:
    return has_chunks(options.output, AFFINITIES_GROUP if options.decoder != "none" else None)
