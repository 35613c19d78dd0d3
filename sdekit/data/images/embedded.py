"""Small images that need no download: scikit-learn's 8 x 8 digits (the optional extra `images`)."""

from typing import Any

import torch
from torch import Tensor

from sdekit.data.images.scaling import Scaling


def digits() -> Tensor:
    """The 1,797 handwritten digits, (1797, 1, 8, 8) float32 in [-1, 1], ink high.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (test part), UCI, 1998.

    Raises:
        ImportError: scikit-learn is missing.
    """
    levels = torch.tensor(_load().images, dtype=torch.float32).unsqueeze(1)  # 0 to 16
    return Scaling.symmetric(17).forward(levels)


def digit_labels() -> Tensor:
    """The digits' classes 0 to 9, (1797,) int64, in the order of `digits()`.

    Raises:
        ImportError: scikit-learn is missing.
    """
    return torch.tensor(_load().target, dtype=torch.int64)


def _load() -> Any:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'the digits come with scikit-learn: pip install "sdekit[images]"'
        ) from error
    return load_digits()
