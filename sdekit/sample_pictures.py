"""Samples as a picture, whatever their shape, and such pictures while a model trains."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sdekit import plotting
from sdekit.data.images import Scaling
from sdekit.denoisers import Denoiser
from sdekit.errors import check_integer
from sdekit.sampling import DDIM, sample
from sdekit.sampling.front_door import check_cond
from sdekit.sampling.sampler import Sampler
from sdekit.training import Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Images in a picture.
_SHOWN = 64


def sample_picture(
    x: Tensor, *, scaling: Scaling | None = None, title: str = "samples"
) -> "Figure | None":
    """Points of one or two coordinates, or images of one or three channels; None for any other shape.

    Args:
        x: samples, (n, 1), (n, 2) or (n, c, h, w).
        scaling: how images were made of levels 0 .. 255; [-1, 1] if not given.
        title: of the picture.
    """
    if not _pictured(tuple(x.shape)):
        return None
    if x.ndim == 4:
        levels = (Scaling.symmetric() if scaling is None else scaling).to_levels(x[:_SHOWN].cpu())
        return plotting.image_grids({title: Scaling.symmetric().forward(levels)})
    return plotting.scatter(x.cpu(), title=title)


class SamplePictures:
    """A callback of `train`: a picture of samples of the averaged model every so many steps.

    Args:
        out: folder for samples-00001000.png and so on.
        shape: (n, *event) of what is drawn.
        every: steps between pictures.
        sampler: DDIM if not given.
        steps: of the sampler.
        cond: one row a sample.
        scaling: see `sample_picture`.
        seed: the same for every picture, so that a change is the model's.

    Raises:
        ValueError, TypeError: an argument, so that no run stumbles over it at its first picture.
    """

    def __init__(
        self,
        out: str | Path,
        shape: Sequence[int],
        *,
        every: int = 1_000,
        sampler: Sampler | None = None,
        steps: int = 20,
        cond: Tensor | None = None,
        scaling: Scaling | None = None,
        seed: int = 0,
    ) -> None:
        self.out, self.shape = Path(out), _check_shape(shape)
        self.every = check_integer("every", every, 1)
        self.scaling = scaling
        chosen = DDIM() if sampler is None else sampler
        if not isinstance(chosen, Sampler):
            raise TypeError(f"sampler must be a Sampler, got {type(chosen).__name__}")
        steps, seed = check_integer("steps", steps, 1), check_integer("seed", seed, 0)
        check_cond(cond, self.shape[0])
        self._options: dict[str, Any] = {
            "sampler": chosen, "steps": steps, "cond": cond, "seed": seed
        }  # fmt: skip

    def __call__(self, step: Step, average: Denoiser) -> None:
        """Draw and save, if it is time."""
        taken = step.index + 1
        if taken % self.every:
            return
        drawn = sample(average, self.shape, **self._options)
        figure = sample_picture(drawn.x, scaling=self.scaling, title=f"after {taken:,} steps")
        if figure is not None:
            plotting.save(figure, self.out / f"samples-{taken:08d}.png")


def _pictured(shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape have a picture."""
    return shape[1:] in ((1,), (2,)) or (len(shape) == 4 and shape[1] in (1, 3))


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(check_integer(f"shape[{k}]", size, 1) for k, size in enumerate(shape))
    if not _pictured(sizes):
        raise ValueError(
            "shape must be (n, 1), (n, 2) or (n, c, h, w) of one or three channels, which have a picture; "
            f"got {sizes}"
        )
    return sizes
