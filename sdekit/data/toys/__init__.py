"""Toy laws on the line and in the plane, drawn at will and with densities to hold the draws against."""

from sdekit.data.toys.curves import Curve, Moons, Spiral, SwissRoll
from sdekit.data.toys.line import Line, Ramp, TwoMode
from sdekit.data.toys.plane import Checkerboard, Pinwheel, Plane, Ring
from sdekit.data.toys.toy import MixtureToy, Toy

#: Every toy, with its default arguments.
ALL: tuple[Toy, ...] = (
    TwoMode(),
    Ramp(),
    Spiral(),
    SwissRoll(),
    Ring(),
    Checkerboard(),
    Moons(),
    Pinwheel(),
)

__all__ = [
    "ALL",
    "Checkerboard",
    "Curve",
    "Line",
    "MixtureToy",
    "Moons",
    "Pinwheel",
    "Plane",
    "Ramp",
    "Ring",
    "Spiral",
    "SwissRoll",
    "Toy",
    "TwoMode",
]
