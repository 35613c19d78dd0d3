"""The Inception network of the Fréchet inception distance, by torch-fidelity, from weights on disk."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

#: The file of the weights that torch-fidelity publishes, converted from those of Heusel et al. (2017).
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


def inception(weights: str | Path | None = None) -> Callable[[Tensor], Tensor]:
    """The extractor behind FID and KID as published: images (n, 1 or 3, h, w) in [-1, 1] -> (n, 2048).

    For `extract_features`; a `frechet_distance` of these features is the FID of Heusel et al. 2017, with the
    resizing of the original. Nothing is downloaded, and the file is read without running code.

    Args:
        weights: file of the weights; if not given, where torch-fidelity keeps them once it has been used,
            checkpoints/ in torch's hub directory.

    Raises:
        ImportError: without torch-fidelity.
        FileNotFoundError: without the weights; tells how to get them.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", WEIGHTS) if weights is None else Path(weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"no Inception weights at {path}: get {WEIGHTS} from the releases of torch-fidelity on GitHub, "
            "put it there or give weights="
        )
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
            FeatureExtractorInceptionV3,
        )
    except ImportError:
        raise ImportError('inception needs torch-fidelity: pip install "sdekit[fid]"') from None
    state = torch.load(path, weights_only=True, map_location="cpu")
    with tempfile.TemporaryDirectory() as folder:
        # It would read any pickle: it gets one that was just written from tensors.
        torch.save(state, Path(folder, WEIGHTS))
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048"],
            feature_extractor_weights_path=str(Path(folder, WEIGHTS)),
        )

    def features(images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must have shape (n, 1 or 3, h, w), got {tuple(images.shape)}")
        levels = (127.5 * (images + 1)).round().clamp(0, 255).to(torch.uint8)
        return network(levels.expand(-1, 3, -1, -1))[0]

    features.__name__ = "Inception"
    return features
