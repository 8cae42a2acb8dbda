"""The paper's ablations (arXiv 2511.13063, Tables 4 to 7): which networks each table compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One row of a table.

    Attributes:
        name: of its folders.
        label: as the table calls it.
        changes: fields of the network's configuration.
    """

    name: str
    label: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """One table.

    Attributes:
        name: on the command line.
        title: of the table.
        cells: its rows.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]


def _values(field: str, **labels: str) -> tuple[Cell, ...]:
    return tuple(Cell(value, label, {field: value}) for value, label in labels.items())


EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "adaptation", "Adaptation of the encoder", _values("adaptation", frozen="frozen", fine_tuned="fine-tuned")
        ),
        Experiment(
            "table4",
            "Table 4: ways of adapting the encoder",
            (
                Cell("frozen", "frozen encoder, coarse decoder", {"modules": "without_fge", "adaptation": "frozen"}),
                Cell(
                    "tuning", "fine-tuning: the same, trained", {"modules": "without_fge", "adaptation": "fine_tuned"}
                ),
                Cell("refinement", "refinement: FGE without guidance", {"modules": "without_fga"}),
                Cell("ours", "FGNet", {"modules": "full"}),
            ),
        ),
        Experiment(
            "table5",
            "Table 5: modules",
            _values(
                "modules",
                without_sam2="without SAM2's encoder",
                without_fge="without FGE",
                without_fga="without FGA",
                full="FGNet",
            ),
        ),
        Experiment(
            "table6",
            "Table 6: guidance",
            _values(
                "guidance",
                fga="FGA",
                se="SE",
                cbam="CBAM",
                eca="ECA",
                cross_attention="cross-attention (not the paper's)",
            ),
        ),
        Experiment(
            "table7",
            "Table 7: levels of the fine-grained encoder",
            tuple(Cell(f"depth{depth}", str(depth), {"depth": depth}) for depth in (3, 4, 5)),
        ),
    )
}


def run_name(cell: Cell, seed: int) -> str:
    """The folder of a run."""
    return f"{cell.name}-seed{seed}"
