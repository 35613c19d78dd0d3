"""A U-Net of the diffusers library as a network here."""

import inspect
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sdekit.errors import check_number
from sdekit.networks.embeddings import check_times
from sdekit.networks.unet import check_image, check_labels


class DiffusersUNet(nn.Module):
    """A `diffusers.UNet2DModel` called as `network(x, t, cond)`, with labels as `cond`; returns a tensor.

    A model trained on a chain of N steps knows the labels 0 .. N - 1: `NetworkDenoiser(..., time="label")`.
    Its sinusoids take any number of that size, so a new model of continuous time needs no rounding:
    `time="unit"` with `time_scale=1e3` (t itself, in [0, 1], would hardly move them). With
    `time_embedding_type="fourier"` it takes the logarithm of its time: `time="sigma"`; with "learned",
    labels only.

    Args:
        model: a `UNet2DModel`, or the arguments of one, from which it is built by torch's generator.
        time_scale: multiplies a time that is not an integer label.

    Raises:
        ImportError: diffusers is not installed.
        TypeError: neither a model nor arguments of one.
        ValueError: the model's output is not of the shape of its input, or its conditions are not labels.
    """

    def __init__(self, model: Any, time_scale: float = 1.0) -> None:
        super().__init__()
        self.model: Any = _model(model)
        self.time_scale = check_number("time_scale", time_scale, 0.0, open_low=True)
        known = self.model.config
        if known["in_channels"] != known["out_channels"]:
            raise ValueError(
                "model must have as many out_channels as in_channels, "
                f"got {known['out_channels']} and {known['in_channels']}"
            )
        if known["class_embed_type"] is not None:
            raise ValueError(
                "model must take labels (class_embed_type None, num_class_embeds theirs), "
                f"got class_embed_type={known['class_embed_type']!r}"
            )
        self.channels: int = known["in_channels"]
        self.num_classes: int = known["num_class_embeds"] or 0
        self.divisor = 2 ** (len(known["block_out_channels"]) - 1)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON: those of the model without its weights."""
        names = inspect.signature(type(self.model)).parameters
        arguments = {name: self.model.config[name] for name in names}
        return {"model": json.loads(json.dumps(arguments)), "time_scale": self.time_scale}

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The model at x (n, channels, h, w) and t (n,) or (1,), with labels cond (n,) if it takes any.

        Raises:
            ValueError: a shape or label does not fit, or `cond` is missing or unexpected.
        """
        check_image(x, self.channels, self.divisor)
        check_times(t, x)
        labels = check_labels(x, cond, self.num_classes)
        clock = self.time_scale * t if t.is_floating_point() else t
        return self.model(x, clock, class_labels=labels, return_dict=False)[0]


def _model(model: Any) -> Any:
    """`model`, or the one of these arguments."""
    try:
        from diffusers import UNet2DModel  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            'this network needs diffusers: pip install "sdekit[diffusers]"'
        ) from error
    if isinstance(model, UNet2DModel):
        return model
    if not isinstance(model, Mapping):
        raise TypeError(
            "model must be a diffusers.UNet2DModel or a mapping of its arguments, "
            f"got {type(model).__name__}"
        )
    return UNet2DModel(**model)
