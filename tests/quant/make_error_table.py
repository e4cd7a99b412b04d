"""Write error_table.csv: each format's mean error on Gaussian weights, and its spread from matrix to matrix.

    python tests/quant/make_error_table.py

To be run when a quantizer is meant to change, which takes some two minutes; the difference then shows in the table.
"""

import csv

import numpy as np
from test_error_table import MATRICES, TABLE, errors, formats

with TABLE.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["format", "mean", "spread"])
    for format in formats():
        found = errors(format, 0, MATRICES)
        writer.writerow([format, f"{np.mean(found):.6g}", f"{np.std(found, ddof=1):.3g}"])
