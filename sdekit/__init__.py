"""Continuous-time score-based diffusion, with every part held against closed-form truth."""

__version__ = "0.1.0"
