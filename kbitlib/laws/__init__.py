"""From a table of runs to a law: fits with honest intervals, and the best number of bits for a budget."""

from kbitlib.laws.clusters import cluster_robust
from kbitlib.laws.diagnostics import diagnose
from kbitlib.laws.fit import fit
from kbitlib.laws.forms import FORMS
from kbitlib.laws.frontier import BestK, HandOver, best_k, best_k_without_each_size
from kbitlib.laws.holdout import leave_one_size_out
from kbitlib.laws.identification import NotIdentified
from kbitlib.laws.results import LawResults

__all__ = [
    "FORMS",
    "BestK",
    "HandOver",
    "LawResults",
    "NotIdentified",
    "best_k",
    "best_k_without_each_size",
    "cluster_robust",
    "diagnose",
    "fit",
    "leave_one_size_out",
]
