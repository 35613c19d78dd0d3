import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from torch import nn

import sdekit
from sdekit import networks, processes, samplers, schedules

HEAVY = ("torchdiffeq", "torchsde", "scipy", "matplotlib", "sklearn", "hypothesis")


def modules() -> Iterator[ModuleType]:
    yield sdekit
    for info in pkgutil.walk_packages(sdekit.__path__, "sdekit."):
        if not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


MODULES = {module.__name__: module for module in modules()}


def concrete(base: type) -> set[type]:
    """Public classes of the package, anywhere in it, that derive from `base` and can be made."""
    found = set()
    for module in MODULES.values():
        for name, member in vars(module).items():
            if (
                inspect.isclass(member)
                and issubclass(member, base)
                and not inspect.isabstract(member)
            ):
                own = member.__module__.startswith("sdekit.") and not member.__name__.startswith(
                    "_"
                )
                if own and not name.startswith("_"):
                    found.add(member)
    return found


def test_importing_sdekit_leaves_the_heavy_libraries_out() -> None:
    code = f"import sys, sdekit; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_strategies_without_hypothesis_say_what_to_install() -> None:
    code = "import sys; sys.modules['hypothesis'] = None; import sdekit.testing.strategies"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert (
        'ImportError: sdekit.testing.strategies needs hypothesis: pip install "sdekit[testing]"'
        in run.stderr
    )


@pytest.mark.parametrize("name", MODULES)
def test_all_names_what_the_module_has(name: str) -> None:
    module = MODULES[name]
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names)
    for public in names:
        assert hasattr(module, public), f"{name}.__all__ names {public}"


def test_every_module_says_what_it_is() -> None:
    assert [name for name, module in MODULES.items() if not (module.__doc__ or "").strip()] == []


@pytest.mark.parametrize(
    ("base", "catalogue"),
    [
        (schedules.Schedule, schedules.ALL),
        (processes.Process, processes.ALL),
        (samplers.Sampler, samplers.ALL),
        (samplers.TimeGrid, tuple(samplers.GRIDS.values())),
    ],
    ids=lambda v: v.__name__ if inspect.isclass(v) else "",
)
def test_catalogues_are_complete(base: type, catalogue: tuple[object, ...]) -> None:
    computed = {samplers.ComputedPlan, samplers.Tabulated}  # hold numbers: no instance by default
    special = {samplers.LearnedAncestral}  # runs on models that know their variance, not on any
    assert {type(member) for member in catalogue} == concrete(base) - computed - special
    assert all(isinstance(member, base) for member in catalogue)
    names = [repr(member) for member in catalogue]
    assert len(set(names)) == len(names)
    assert not any(" at 0x" in name for name in names)


def test_networks_are_complete() -> None:
    buildable = {
        c
        for c in concrete(nn.Module)
        if c.__module__.startswith("sdekit.networks") and hasattr(c, "config")
    }
    assert set(networks.ALL) == buildable
    assert len({c.__name__ for c in networks.ALL}) == len(networks.ALL)


def test_public_processes_and_denoisers_are_at_the_top() -> None:
    for cls in concrete(processes.Process):
        assert getattr(sdekit, cls.__name__) is cls
