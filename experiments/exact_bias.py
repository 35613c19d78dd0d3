"""The exact bias of ten samplers against steps, on the two-mode mixture under VP: no samples, no noise.

    python experiments/exact_bias.py [--quick] [--out runs/exact_bias]

Writes bias.csv, bias.md and a picture of each distance.
"""

import argparse
import time
from pathlib import Path

import torch

import sdekit as sk
from sdekit import plotting, samplers

TEN = (
    samplers.EulerMaruyama(),
    samplers.EulerMaruyama("integrated"),
    samplers.Ancestral("beta"),
    samplers.Ancestral(),
    samplers.DPMSolverPP2SAncestral(),
    samplers.DDIM(),
    samplers.EDMHeun(),
    samplers.DPMSolverPP(),
    samplers.UniPC(),
    samplers.ExponentialAB(order=4, prediction="v"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 and 20 steps only")
    parser.add_argument("--out", type=Path, default=Path("runs/exact_bias"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    target, began = sk.data.two_mode(), time.process_time()
    steps = [10, 20] if options.quick else [5, 10, 20, 50, 100, 200]
    table = sk.sampler_bias(target.denoiser(sk.VP()), TEN, steps, target, progress=True)
    print(table)
    print(f"\n{len(table.rows)} laws in {time.process_time() - began:.0f} s of processor time")
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "bias.csv")
    (options.out / "bias.md").write_text(table.markdown() + "\n")
    for metric in table.metric_names:
        title = "Exact bias of ten samplers against steps"
        figure = plotting.error_against_nfe({"two-mode mixture": table}, metric, title=title)
        plotting.save(figure, options.out / f"{metric.lower()}.png")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
