"""The main job in small: data to trained network to samples, each held to its truth."""

import torch

import sdekit as sk
from sdekit.training import excess_loss


def test_trained_network_is_close_to_the_exact_score_and_law():
    target, process = sk.data.two_mode(), sk.VP()
    torch.manual_seed(0)
    model = sk.NetworkDenoiser(sk.networks.MLP(dim=1), process)
    result = sk.train(model, target, steps=1_500, seed=0, progress=False)

    excess, error = excess_loss(result.model, target)
    assert excess + 4 * error <= 5e-4

    table = sk.compare(
        result.model, [sk.samplers.EulerMaruyama()], [100], target, n=10_000, seeds=range(5)
    )
    assert table.rows[0]["W1"] - table.floors["W1"][0] <= 0.02


def test_euler_maruyama_at_a_thousand_steps_is_as_good_as_exact_draws():
    target, process = sk.data.two_mode(), sk.VP()
    out = sk.sample(
        target.denoiser(process),
        (20_000, 1),
        sampler=sk.samplers.EulerMaruyama(),
        steps=1_000,
        seed=0,
    )
    law = target.at(process, out.times[-1])

    def w2(x, truth):
        return sk.metrics.wasserstein_1d(x, truth, p=2)

    assert w2(out.x, law) < sk.metrics.floor(w2, law, n=20_000, repeats=40).quantile95
