"""Images as tensors: scikit-learn's digits, MNIST's files, folders of pictures, and any data set of images.

Levels are uint8, (n, channels, height, width); `Scaling` makes them numbers for a network and back.
"""

from sdekit.data.images.augmented import Augmented
from sdekit.data.images.embedded import digit_labels, digits
from sdekit.data.images.folders import image_folder
from sdekit.data.images.idx import read_idx
from sdekit.data.images.labelled import Labelled, as_images, balanced_subset
from sdekit.data.images.mnist_files import fashion_mnist, mnist
from sdekit.data.images.scaling import Scaling

__all__ = [
    "Augmented",
    "Labelled",
    "Scaling",
    "as_images",
    "balanced_subset",
    "digit_labels",
    "digits",
    "fashion_mnist",
    "image_folder",
    "mnist",
    "read_idx",
]
