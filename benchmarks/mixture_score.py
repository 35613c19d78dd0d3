"""How long the exact score of a large mixture takes: 100,000 points, 100 components, 2-D, one thread."""

import time

import torch

from sdekit import GaussianMixture

POINTS, COMPONENTS, REPEATS = 100_000, 100, 11


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(COMPONENTS, 2, generator=generator)
    stds = torch.rand(COMPONENTS, 2, generator=generator) + 0.1
    factors = torch.randn(COMPONENTS, 2, 2, generator=generator) * 0.3
    cases = {
        "isotropic": {"stds": stds[:, 0]},
        "diagonal": {"stds": stds},
        "full": {"covariances": factors @ factors.mT + 0.01 * torch.eye(2)},
    }
    print(f"{'covariance':<12}{'dtype':<10}{'median ms':>10}{'least ms':>10}")
    for name, spread in cases.items():
        target = GaussianMixture(None, means, **spread)
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(POINTS, 2, generator=generator, dtype=dtype)
            taken = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                target.score(x)
                taken.append(1e3 * (time.perf_counter() - began))
            taken.sort()
            kind = str(dtype).removeprefix("torch.")
            print(f"{name:<12}{kind:<10}{taken[REPEATS // 2]:>10.1f}{taken[0]:>10.1f}")


if __name__ == "__main__":
    main()
