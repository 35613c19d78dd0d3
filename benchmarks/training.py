"""What `train` costs beyond the loop one would write by hand: same network, optimiser, clipping and average.

    python benchmarks/training.py [--quick]

Both run in turn in one process on one thread; a ratio is the median over turns of processor times.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import sdekit as sk
from sdekit.networks import MLP, UNet

BETA_MIN, BETA_MAX = 0.1, 20.0
LR, CLIP, HALF_LIFE = 3e-3, 1.0, 700.0


def by_hand(network: nn.Module, data: Tensor, steps: int, batch: int) -> None:
    """A plain loop for the VP process: nothing checked, logged or saved."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.0, fused=True)
    weights = list(network.parameters())
    average, decay = [w.detach().clone() for w in weights], 2 ** (-1 / HALF_LIFE)
    shape = (-1, *[1] * (data.ndim - 1))
    for _ in range(steps):
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


def with_train(network: nn.Module, data: Tensor, steps: int, batch: int) -> None:
    """The same by `train`."""
    model = sk.NetworkDenoiser(network, sk.VP(BETA_MIN, BETA_MAX))
    sk.train(
        model, data, steps=steps, batch=batch, lr=LR, clip=CLIP, half_life=HALF_LIFE,
        schedule="constant", warmup=0, progress=False,
    )  # fmt: skip


Loop = Callable[[nn.Module, Tensor, int, int], None]


def processor_time(loop: Loop, network: nn.Module, data: Tensor, steps: int, batch: int) -> float:
    """Seconds a step."""
    began = time.process_time()
    loop(network, data, steps, batch)
    return (time.process_time() - began) / steps


CASES = {
    "MLP 3 x 128, 1-D, batch 512": (lambda: MLP(1), (10_000, 1), 512, 300),
    "MLP 3 x 256, 2-D, batch 512": (lambda: MLP(2, hidden=256), (10_000, 2), 512, 200),
    "UNet (16, 32), 8 x 8, batch 64": (
        lambda: UNet(1, (16, 32)),
        (2_000, 1, 8, 8),
        64,
        25,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few turns")
    turns = 2 if parser.parse_args().quick else 11
    torch.set_num_threads(1)
    print(f"{'case':<34}{'by hand, ms':>12}{'train, ms':>12}{'ratio':>8}{'spread':>16}")
    for name, (make, shape, batch, steps) in CASES.items():
        data = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for loop in (by_hand, with_train):
            loop(make(), data, 10, batch)
        pairs = [
            [processor_time(loop, make(), data, steps, batch) for loop in (by_hand, with_train)]
            for _ in range(turns)
        ]
        hand, ours = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = sorted(b / a for a, b in pairs)
        spread = f"{ratios[0]:.3f} .. {ratios[-1]:.3f}"
        print(f"{name:<34}{hand:>12.3f}{ours:>12.3f}{statistics.median(ratios):>8.3f}{spread:>16}")


if __name__ == "__main__":
    main()
