"""How wrong every sampler is, what it costs, and where the error of a trained model comes from."""

from sdekit.comparison.bias import BiasTable, sampler_bias
from sdekit.comparison.error_budget import ErrorBudget, error_budget
from sdekit.comparison.front_door import compare
from sdekit.comparison.runs import Metric, default_metrics
from sdekit.comparison.sets import SetTable, compare_sets
from sdekit.comparison.tables import Table, short_name, short_names
from sdekit.records import Records

__all__ = [
    "BiasTable",
    "ErrorBudget",
    "Metric",
    "Records",
    "SetTable",
    "Table",
    "compare",
    "compare_sets",
    "default_metrics",
    "error_budget",
    "sampler_bias",
    "short_name",
    "short_names",
]
