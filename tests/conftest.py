"""One thread, reproducible examples, and the laws with known answers that the tests share."""

import pytest
import torch
from hypothesis import HealthCheck, settings

from sdekit import GaussianMixture

torch.set_num_threads(1)

for name, examples in (("dev", 50), ("ci", 150), ("thorough", 1000)):
    settings.register_profile(
        name,
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        # The time that generation takes depends on the machine, not on the code under test.
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile("dev")


@pytest.fixture(scope="session")
def toy() -> GaussianMixture:
    """Two modes on the line: mean 0, variance 1, entropy 1.0978868 nats."""
    return GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)


@pytest.fixture(scope="session")
def toy2() -> GaussianMixture:
    """Three correlated components in the plane."""
    covariances = [[[0.3, 0.2], [0.2, 0.4]], [[0.5, -0.3], [-0.3, 0.25]], [[0.1, 0.0], [0.0, 0.6]]]
    means = [[-1.0, 0.5], [1.2, 0.8], [0.1, -1.3]]
    return GaussianMixture(
        [0.3, 0.45, 0.25], torch.tensor(means, dtype=torch.float64), covariances=covariances
    )


@pytest.fixture(scope="session")
def gauss1() -> GaussianMixture:
    """N(0.7, 0.25): variance one quarter."""
    return GaussianMixture(None, [0.7], 0.5)


@pytest.fixture(scope="session")
def delta() -> GaussianMixture:
    """A single atom: it has a density once diffused."""
    return GaussianMixture(None, [0.7], 0.0)
