"""What a run leaves behind: results that own their memory, finite states taken for finite."""

import threading
from typing import Any

import pytest
import torch

import sdekit as sk
from sdekit import samplers as ss
from sdekit.sampling.noise import BlockNormals

TOY, VP = sk.data.two_mode(), sk.VP()
SHORT = {"t_end": 0.05, "steps": 12, "seed": 0}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize(
    "sampler",
    [
        ss.DDIM(),
        ss.EulerMaruyama(),
        ss.UniPC(),
        ss.FlowODE("rk4"),
        ss.TorchSDE(),
        ss.NormCorrector(),
    ],
    ids=repr,
)
def test_a_result_keeps_no_other_memory_alive(sampler: ss.Sampler, chunk: int | None) -> None:
    for final in ("none", "data"):
        settings: dict[str, Any] = {"sampler": sampler, "final": final, "chunk": chunk}
        x = sk.sample(TOY.denoiser(VP), (7, 1), **settings, **SHORT).x
        assert x.untyped_storage().nbytes() == x.nbytes
        assert x.is_contiguous()


class Constant(sk.Denoiser):
    """A model with one answer, always the same tensor."""

    process = VP

    def __init__(self, answer: torch.Tensor) -> None:
        self.answer = answer

    def predict(self, x: torch.Tensor, t: Any, **conditions: Any) -> torch.Tensor:
        """The answer."""
        return self.answer


@pytest.mark.parametrize("sampler", [ss.DDIM(), ss.ExponentialAB(3), ss.FlowODE("euler")], ids=repr)
def test_what_a_model_returns_is_neither_written_to_nor_handed_out(sampler: ss.Sampler) -> None:
    model = Constant(torch.full((3, 2), 0.25))
    for final in ("none", "data"):
        x = sk.sample(model, (3, 2), sampler=sampler, final=final, **SHORT).x
        assert torch.equal(model.answer, torch.full((3, 2), 0.25))
        assert x.data_ptr() != model.answer.data_ptr()


def test_finite_states_whose_sum_overflows_are_a_result() -> None:
    start = torch.full((4, 1), 3e38)
    assert not torch.isfinite(start.sum())
    out = sk.sample(TOY.denoiser(VP), (4, 1), x_init=start, callback=lambda i, t, x: True)
    assert torch.equal(out.x, start)


def test_states_of_opposite_infinities_are_an_error() -> None:
    start = torch.tensor([[3e38], [-3e38]])
    model = Constant(torch.tensor([[3e38], [-3e38]]))
    with pytest.raises(sk.NumericsError, match="2 of 2 samples"):
        sk.sample(model, (2, 1), x_init=start, grid=[1.0, 0.5])


def test_threads_draw_what_one_draws_alone() -> None:
    def draw(seed: int) -> torch.Tensor:
        normals = BlockNormals(seed, 0, 600, (3,), torch.float32, torch.device("cpu"), 64)
        return torch.stack([normals.start(), *(normals(m) for m in range(64))])

    alone = [draw(seed) for seed in range(4)]
    together: dict[int, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: together.update({seed: draw(seed)}))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(together[seed], alone[seed]) for seed in range(4))
