"""What `train` costs beyond the loop one would write by hand: same network, optimiser, clipping and average.

    python benchmarks/training.py [--quick]

The two take their steps in turn, one each, in one process on one thread, so that whatever else the machine
does falls on both. Times are of the processor: the mean over steps, and the ratio of the means.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import fmean

import torch
from torch import Tensor, nn

import sdekit as sk
from sdekit.networks import MLP, UNet

BETA_MIN, BETA_MAX = 0.1, 20.0
LR, CLIP, HALF_LIFE = 3e-3, 1.0, 700.0


def by_hand(network: nn.Module, data: Tensor, batch: int) -> Iterator[None]:
    """A plain loop for the VP process: nothing checked, logged or saved. Stops after every step."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.0, fused=True)
    weights = list(network.parameters())
    average, decay = [w.detach().clone() for w in weights], 2 ** (-1 / HALF_LIFE)
    shape = (-1, *[1] * (data.ndim - 1))
    while True:
        x0 = data[torch.randint(len(data), (batch,))]
        t, noise = torch.rand(batch), torch.randn(x0.shape)
        integral = BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t.square()
        alpha, sigma = torch.exp(-0.5 * integral), torch.sqrt(-torch.expm1(-integral))
        x_t = alpha.view(shape) * x0 + sigma.view(shape) * noise
        loss = (network(x_t, t) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - decay)
        loss.item()
        yield


def step_times(
    make: Callable[[], nn.Module], data: Tensor, batch: int, steps: int
) -> tuple[list[float], list[float]]:
    """Seconds of each step by hand and by `train`, whose callback takes a step by hand."""
    hand, ours = list[float](), list[float]()
    loop, clock = by_hand(make(), data, batch), time.process_time
    began = clock()

    def callback(_: object, __: object) -> None:
        nonlocal began
        between = clock()
        ours.append(between - began)
        next(loop)
        began = clock()
        hand.append(began - between)

    sk.train(
        sk.NetworkDenoiser(make(), sk.VP(BETA_MIN, BETA_MAX)), data, steps=steps, batch=batch, lr=LR,
        clip=CLIP, half_life=HALF_LIFE, schedule="constant", warmup=0, progress=False, callback=callback,
    )  # fmt: skip
    return hand[WARM:], ours[WARM:]


WARM = 20
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "MLP 3 x 128, 1-D, batch 512": (lambda: MLP(1), (10_000, 1), 512, 3_000),
    "MLP 3 x 256, 2-D, batch 512": (lambda: MLP(2, hidden=256), (10_000, 2), 512, 2_000),
    "UNet (16, 32), 8 x 8, batch 64": (lambda: UNet(1, (16, 32)), (2_000, 1, 8, 8), 64, 500),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    fewer = 10 if parser.parse_args().quick else 1
    torch.set_num_threads(1)
    print(
        f"{'case':<34}{'by hand, ms':>12}{'train, ms':>12}{'ratio':>8}{'quarters of the run':>23}"
    )
    for name, (make, shape, batch, steps) in CASES.items():
        data = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        hand, ours = step_times(make, data, batch, WARM + steps // fewer)
        quarter = len(hand) // 4
        quarters = sorted(
            fmean(ours[k : k + quarter]) / fmean(hand[k : k + quarter])
            for k in range(0, 4 * quarter, quarter)
        )
        a, b = fmean(hand), fmean(ours)
        spread = f"{quarters[0]:.3f} .. {quarters[-1]:.3f}"
        print(f"{name:<34}{1e3 * a:>12.3f}{1e3 * b:>12.3f}{b / a:>8.3f}{spread:>23}")


if __name__ == "__main__":
    main()
