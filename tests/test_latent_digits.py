"""The autoencoder of the latent diffusion: its loss, its latents, and the way back."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tests.helpers import normal


@pytest.fixture
def latent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "experiments"))
    with torch.no_grad():
        yield importlib.import_module("latent_digits")


def small(latent: Any) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    return latent.Autoencoder((1, 4, 4), 3, 8).double(), normal(50, 1, 4, 4).tanh()


def test_the_divergence_of_the_loss_is_that_of_torch(latent):
    model, images = small(latent)
    losses = [float(model.loss(images, w, torch.Generator().manual_seed(1))) for w in (0.0, 2.0)]
    mean, log_std = model.encode(images)
    unit = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = kl_divergence(Normal(mean, log_std.exp()), unit).sum(1).mean()
    assert (losses[1] - losses[0]) / 2 == pytest.approx(float(expected), rel=1e-12)


def test_the_error_of_the_loss_is_summed_over_pixels(latent):
    model, images = small(latent)
    found = float(model.loss(images, 0.0, torch.Generator().manual_seed(1)))
    mean, log_std = model.encode(images)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    away = model.decode(mean + log_std.exp() * noise) - images
    assert found == pytest.approx(float(away.square().sum()) / 50, rel=1e-12)


def test_latents_are_standardised_and_go_back(latent):
    model, images = small(latent)
    found = latent.Latents.of(model, images, draws=4, seed=2)
    assert found.rows.shape == (200, 3)
    torch.testing.assert_close(found.rows.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.rows.std(0), torch.ones(3).double(), rtol=0, atol=1e-12)
    mean, log_std = model.encode(images)
    noise = (found.back(found.rows[50:100]) - mean) / log_std.exp()  # second draw of every image
    expected = torch.randn(200, 3, generator=torch.Generator().manual_seed(2))[50:100]
    torch.testing.assert_close(noise, expected.double(), rtol=1e-5, atol=1e-6)


def test_another_data_set_is_refused(latent):
    with pytest.raises(ValueError, match="data must be one of 'digits', 'fashion'"):
        latent.images_of(latent.Config(data="letters"))
