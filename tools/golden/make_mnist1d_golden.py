#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/mnist1d.json: rows that the PyPI package mnist1d makes of known random draws.

Needs: pip install mnist1d==0.0.2.post1, with what it depends on. The package's random functions are replaced
by ones that note what they gave."""

import json
from pathlib import Path

import numpy as np
import scipy
from mnist1d.transform import transform
from mnist1d.data import get_dataset_args, get_templates

OUT = Path(__file__).resolve().parent.parent.parent / "tests/golden/mnist1d.json"
SEED = 7


def main():
    random = np.random.default_rng(SEED)
    noted = []

    def note(value):
        noted.append(value)
        return value

    np.random.rand = lambda: note(float(random.random()))
    np.random.randn = lambda *shape: note(random.standard_normal(shape).round(6))
    np.random.choice = lambda bound: note(int(random.integers(bound)))
    arguments, templates = get_dataset_args(), get_templates()
    rows = []
    for label in (0, 4, 7, 9):
        noted.clear()
        row, _ = transform(templates["x"][label], templates["t"], arguments)
        padding, scale, shift, correlated, iid, shear = noted
        rows.append({"label": label, "padding": 36 + int(padding * 25), "scale": scale, "shift": shift,
                     "correlated_noise": correlated.tolist(), "iid_noise": iid.tolist(), "shear": shear,
                     "row": [float(x) for x in row]})
    made_by = {"script": "tools/golden/make_mnist1d_golden.py", "mnist1d": "0.0.2.post1", "numpy": np.__version__,
               "scipy": scipy.__version__, "seed": SEED}
    OUT.write_text(json.dumps({"made_by": made_by, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
