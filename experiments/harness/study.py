"""An experiment as a command: the fields of its frozen config are the options."""

import inspect
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, field, fields
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from sdekit.storage import save_text


def option(default: Any, help: str) -> Any:
    """A field of a config: its default, and what it means."""
    return field(default=default, metadata={"help": help})


def study(
    run: Callable[[Any, Path], dict[str, Any]], config: type, quick: Mapping[str, Any]
) -> None:
    """Read a config from the command line, run it, and write what it returns to summary.json.

    Args:
        run: called with the config and an existing folder for pictures and tables; returns figures as JSON.
        config: a frozen dataclass of numbers, strings and flags with defaults, its fields made by `option`.
        quick: the fields that `--quick` changes, where the command line does not give them.
    """
    script = Path(sys.argv[0]).stem
    torch.set_num_threads(1)  # small networks run faster on one thread than on two

    def command(**given: Any) -> None:
        out, hurried = given.pop("out"), given.pop("quick")
        told = {name: value for name, value in given.items() if value is not None}
        chosen = config(**{**(quick if hurried else {}), **told})
        summary = recorded(run, chosen, out, asdict(chosen))
        print(f"{summary['seconds']:.0f} s, {summary['cpu_seconds']:.0f} s of processor time")
        print(f"written to {out}")

    command.__doc__ = (sys.modules["__main__"].__doc__ or "").partition("\n")[0]
    command.__signature__ = inspect.Signature([*_options(config), *_common(script)])  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(command)
    app()


def recorded(
    run: Callable[[Any, Path], Mapping[str, Any]], config: Any, out: Path, description: Any
) -> dict[str, Any]:
    """Run a config in a folder of its own; what it returned, with its cost, is then in summary.json.

    The file is renamed into place when it is whole, so a run that has one is done.
    """
    out.mkdir(parents=True, exist_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    figures = run(config, out)
    cost = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    summary = {"config": description, **figures, **cost}
    save_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _options(config: type) -> list[inspect.Parameter]:
    """The fields of a config as options that are None unless given."""
    found = []
    for item in fields(config):
        if item.default is MISSING or isinstance(item.type, str):
            raise TypeError(f"{config.__name__}.{item.name} must have a default and a plain type")
        text = f"{item.metadata['help']}  [default: {item.default}]"
        kind = Annotated[item.type | None, typer.Option(help=text, show_default=False)]
        found.append(_parameter(item.name, None, kind))
    return found


def _common(script: str) -> list[inspect.Parameter]:
    """Options that every experiment has."""
    out = Annotated[Path, typer.Option(help="Folder to write to.")]
    hurried = Annotated[
        bool, typer.Option("--quick", help="Everything in seconds, for a first look.")
    ]
    return [_parameter("out", Path("runs") / script, out), _parameter("quick", False, hurried)]


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
