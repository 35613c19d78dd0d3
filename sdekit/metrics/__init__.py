"""How far samples or densities are from the truth, and how far exact samples would be.

Distances between samples (Wasserstein on the line, over random directions and by assignment, energy
distance), between features of images (Fréchet and kernel distance), what nearest neighbours tell
(precision, recall, density, coverage, memorisation), and divergences of densities on a grid. Every
estimate from n samples has a floor: exact samples of the same n do not score 0. `floor` and
`data_floor` measure it, and a distance means something only beside it.

Samples are read as float64 on the CPU and results are Python floats.
"""

from sdekit.metrics.densities import kl_divergence, total_variation
from sdekit.metrics.energy import energy_distance
from sdekit.metrics.features import FeatureSet, extract_features
from sdekit.metrics.floors import Floor, Samplable, data_floor, data_splits, floor
from sdekit.metrics.frechet import Frechet, frechet_bias, frechet_distance, gaussian_wasserstein
from sdekit.metrics.inception import inception
from sdekit.metrics.kernel import kid
from sdekit.metrics.lenet import LeNet, TrainedLeNet, train_lenet
from sdekit.metrics.neighbours import (
    DensityCoverage,
    Memorisation,
    PrecisionRecall,
    density_coverage,
    memorisation,
    precision_recall,
)
from sdekit.metrics.quantiles import Truth1D
from sdekit.metrics.two_sample import Measured
from sdekit.metrics.wasserstein import assigned_wasserstein, sliced_wasserstein, wasserstein_1d

__all__ = [
    "DensityCoverage",
    "FeatureSet",
    "Floor",
    "Frechet",
    "LeNet",
    "Measured",
    "Memorisation",
    "PrecisionRecall",
    "Samplable",
    "TrainedLeNet",
    "Truth1D",
    "assigned_wasserstein",
    "data_floor",
    "data_splits",
    "density_coverage",
    "energy_distance",
    "extract_features",
    "floor",
    "frechet_bias",
    "frechet_distance",
    "gaussian_wasserstein",
    "inception",
    "kid",
    "kl_divergence",
    "memorisation",
    "precision_recall",
    "sliced_wasserstein",
    "total_variation",
    "train_lenet",
    "wasserstein_1d",
]
