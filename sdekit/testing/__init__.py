"""What a project needs to test its own classes, and to read the plan out of anyone's sampler.

`strategies` for Hypothesis needs the extra `testing`.
"""

from sdekit.testing.black_box import BlackBox, Model
from sdekit.testing.conformance import Report, check_sampler
from sdekit.testing.extraction import affine_deviation, plan_from_sampler

__all__ = ["BlackBox", "Model", "Report", "affine_deviation", "check_sampler", "plan_from_sampler"]
