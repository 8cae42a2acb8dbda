from pathlib import Path

import h5py
import pytest


@pytest.fixture(scope="session")
def real_labels():
    """Reads one dataset of a real volume that lies beside the checkout, or skips."""

    def read(name, dataset, region=()):
        path = Path(__file__).resolve().parents[3] / "shared" / "data" / name
        if not path.is_file():
            pytest.skip(f"{path} is missing")
        with h5py.File(path) as file:
            return file[dataset][region]

    return read
