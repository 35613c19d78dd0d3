"""What a project needs to test its own classes: `check_sampler`; `strategies` for Hypothesis (an extra)."""

from sdekit.testing.conformance import Report, check_sampler

__all__ = ["Report", "check_sampler"]
