"""From a table of runs to a law: fits with honest intervals, what they predict, and what to take for a budget."""

from kbitlib.laws.clusters import cluster_robust
from kbitlib.laws.compare import compare
from kbitlib.laws.diagnostics import diagnose
from kbitlib.laws.fit import fit
from kbitlib.laws.forms import FORMS
from kbitlib.laws.frontier import BestK, HandOver, best_k, best_k_without_each_size, pareto
from kbitlib.laws.holdout import largest_size_out, leave_one_size_out
from kbitlib.laws.identification import NotIdentified
from kbitlib.laws.outliers import flag
from kbitlib.laws.planner import plan
from kbitlib.laws.published import published
from kbitlib.laws.results import LawResults
from kbitlib.laws.sensitivity import sensitivity
from kbitlib.laws.worth import worth_of_a_bit

__all__ = [
    "FORMS",
    "BestK",
    "HandOver",
    "LawResults",
    "NotIdentified",
    "best_k",
    "best_k_without_each_size",
    "cluster_robust",
    "compare",
    "diagnose",
    "fit",
    "flag",
    "largest_size_out",
    "leave_one_size_out",
    "pareto",
    "plan",
    "published",
    "sensitivity",
    "worth_of_a_bit",
]
