"""The command line: sdekit demo | train | sample | compare | samplers | check."""

import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from enum import StrEnum
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="sdekit",
    help="Continuous-time score-based diffusion that tells you exactly how wrong your sampler is.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="Torch device, such as cpu or cuda.")]
Out = Annotated[Path, typer.Option(help="Folder to write to.")]
Steps = Annotated[str, typer.Option(help="Step counts, separated by commas.")]


class Weighting(StrEnum):
    """Weightings of the loss."""

    simple = "simple"
    likelihood = "likelihood"
    min_snr = "min-snr"
    edm = "edm"
    truncated_snr = "truncated-snr"
    target = "target"


class Norm(StrEnum):
    """Norms of the error."""

    l2 = "l2"
    l1 = "l1"


class Times(StrEnum):
    """Laws of training times."""

    stratified = "stratified"
    uniform = "uniform"
    importance = "importance"
    log_normal = "log-normal"


class Precision(StrEnum):
    """Of matrix products and convolutions."""

    float32 = "float32"
    bf16 = "bf16"


class Final(StrEnum):
    """What the last step does."""

    none = "none"
    mean = "mean"
    data = "data"


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seed: Seed = 0,
    device: Device = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes.")] = False,
) -> None:
    """Three problems from data to exact errors.

    Trains, samples and measures on a 1-D mixture, a 2-D spiral and real 8x8 digits, and writes pictures and
    tables; open index.md in the output folder. Takes about three minutes on two cores.
    """
    from sdekit.demo import QUICK, Budget, run_demo

    _check_device(device)
    run_demo(out, seed=seed, device=device, budget=QUICK if quick else Budget(), say=typer.echo)


@app.command()
def train(
    data: Annotated[
        str,
        typer.Argument(
            help="two-mode, spiral, ring, digits, mnist, fashion-mnist, a folder of images, or a .npy file "
            "of (N, *event)."
        ),
    ],
    out: Out,
    size: Annotated[int, typer.Option(min=1, help="Pixels a side of images from a folder.")] = 32,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 5_000,
    batch: Annotated[int, typer.Option(min=1, help="Samples a step.")] = 512,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts that a batch goes through the network in.")
    ] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    process: Annotated[str, typer.Option(help="vp, vp-cosine, sub-vp or interpolant.")] = "vp",
    prediction: Annotated[str, typer.Option(help="noise, data, score, v or velocity.")] = "noise",
    weighting: Annotated[
        Weighting, typer.Option(help="Weight of the loss over time.")
    ] = Weighting.simple,
    norm: Annotated[Norm, typer.Option(help="Square or absolute errors.")] = Norm.l2,
    times: Annotated[Times, typer.Option(help="Law of the training times.")] = Times.stratified,
    half_life: Annotated[
        float, typer.Option(min=0, help="Of the averaged weights, in steps.")
    ] = 700.0,
    precision: Annotated[
        Precision, typer.Option(help="Of matrix products and convolutions.")
    ] = Precision.float32,
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    pictures_every: Annotated[
        int, typer.Option(min=0, help="Steps between pictures of samples; 0 for none.")
    ] = 0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's files too.")
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish an interrupted run in --out, same settings.")
    ] = False,
) -> None:
    """Train a network, with checkpoints.

    Denoising score matching; checkpoints/, log.csv and loss.png go to --out. A mixture's least attainable
    loss is known, and the excess over it is printed. Under torchrun, processes share every batch.
    """
    import torch

    from sdekit import plotting
    from sdekit import train as run
    from sdekit.data import GaussianMixture
    from sdekit.denoisers import NetworkDenoiser
    from sdekit.sample_pictures import SamplePictures
    from sdekit.training import DenoisingLoss, World, excess_loss, minimum_loss
    from sdekit.training.checkpoints import checkpoints

    _check_device(device)
    if not resume and checkpoints(out / "checkpoints"):
        raise ValueError(f"{out} already holds a run; give --resume or another --out")
    source, scaling = _data(data, size)
    world = World.current()  # before the device is used: "cuda" is this process's own
    torch.manual_seed(seed)
    network, event = _network(source)
    model = NetworkDenoiser(
        network.to(device), _choose("process", process, _processes()), prediction
    )
    loss = DenoisingLoss(weighting.value, norm.value)
    pictures = None
    if pictures_every:
        pictures = SamplePictures(out, (64, *event), every=pictures_every, scaling=scaling)
    result = run(
        model,
        source,
        steps=steps,
        out=out,
        scaling=scaling,
        batch=batch,
        accumulate=accumulate,
        lr=lr,
        loss=loss,
        times=times.value,
        half_life=half_life,
        precision=precision.value,
        compile=compile,
        tensorboard=tensorboard,
        seed=seed,
        resume=resume,
        callback=pictures,
    )
    if not world.writes:
        return
    known = {"loss": loss, "times": times.value}
    exact = isinstance(source, GaussianMixture)
    least = None
    if exact:
        least = minimum_loss(source, model.process, prediction=prediction, **known)  # type: ignore[arg-type]
    plotting.save(plotting.loss_curve(result.losses, least, title=data), out / "loss.png")
    if exact:
        excess, error = excess_loss(result.model, source, **known)  # type: ignore[arg-type]
        typer.echo(f"least loss {least:.5f}, excess over it {excess:.2e} +- {error:.0e}")
    typer.echo(f"{result.seconds:.1f} s; checkpoint {result.checkpoint}; curve {out / 'loss.png'}")


@app.command()
def sample(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    out: Annotated[Path, typer.Option(help="Samples as .npy; a picture goes beside it.")] = Path(
        "samples.npy"
    ),
    n: Annotated[int, typer.Option(min=1, help="How many samples.")] = 64,
    sampler: Annotated[
        str,
        typer.Option(
            help="Its class in kebab case, as `sdekit samplers` lists them: euler-maruyama, ddim, uni-pc."
        ),
    ] = "ddim",
    steps: Annotated[int, typer.Option(min=1, help="Intervals of the time grid.")] = 50,
    grid: Annotated[
        str | None,
        typer.Option(
            help="uniform, quadratic, cubic, karras, log-snr, angle, flow-time, cosine, beta or beta6; "
            "the sampler's own if not given."
        ),
    ] = None,
    final: Annotated[Final, typer.Option(help="What the last step does.")] = Final.none,
    data_std: Annotated[
        float | None,
        typer.Option(help="Finest scale of the data, for predictor-corrector."),
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Draw samples from a trained network.

    A network of classes gets them in turn, 0, 1, 2, ..., but for the one that stands for none. The samples
    are as the network has them: where a run scaled its data, the picture alone is scaled back.
    """
    import numpy as np
    import torch

    from sdekit import plotting
    from sdekit import sample as draw
    from sdekit.sample_pictures import sample_picture
    from sdekit.sampling import by_name
    from sdekit.sampling.grids import resolve_grid

    _check_device(device)
    if out.suffix != ".npy":
        raise ValueError(f"out must end in .npy, got {out}; the picture goes beside it")
    chosen = _choose("sampler", sampler, by_name())
    if data_std is not None:
        if sampler != "predictor-corrector":
            raise ValueError(f"--data-std is for predictor-corrector, got --sampler {sampler}")
        chosen = replace(chosen, data_std=data_std)
    if grid is not None:
        resolve_grid(grid)
    model, event, scaling, null = _load(checkpoint)
    labels = [k for k in range(getattr(model.network, "num_classes", 0)) if k != null]
    samples = draw(
        model.to(device),
        (n, *event),
        cond=torch.tensor(labels)[torch.arange(n) % len(labels)] if labels else None,
        sampler=chosen,
        steps=steps,
        grid=grid,
        final=final.value,
        seed=seed,
        progress=True,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    np.save(out, samples.x.cpu().numpy())
    typer.echo(f"{n} samples, {samples.nfe} model calls each, seed {samples.seed}: {out}")
    if picture := sample_picture(samples.x, scaling=scaling):
        typer.echo(f"picture: {plotting.save(picture, out.with_suffix('.png'))}")


@app.command()
def compare(
    target: Annotated[str, typer.Option(help="two-mode, spiral or ring.")] = "two-mode",
    checkpoint: Annotated[
        Path | None, typer.Option(help="A trained model; the exact score if not given.")
    ] = None,
    samplers: Annotated[
        str | None,
        typer.Option(help="Names separated by commas, as for `sample`; all if not given."),
    ] = None,
    steps: Steps = "5,10,20,50,100",
    n: Annotated[int, typer.Option(min=2, help="Samples a run.")] = 10_000,
    seeds: Annotated[int, typer.Option(min=1, help="Runs a row.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for CSV and picture.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="File that keeps finished runs; those in it are not redone.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the runs.")] = 1,
    exact: Annotated[
        bool,
        typer.Option(help="Compute the laws of the samplers instead of drawing (on the line)."),
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Samplers against exact laws, by step count."""
    from sdekit import comparison, plotting
    from sdekit.data import TARGETS
    from sdekit.processes import VP
    from sdekit.sampling import ALL, PredictorCorrector, by_name

    _check_device(device)
    truth = _choose("target", target, TARGETS)()
    counts = _counts(steps)
    named = samplers and [_choose("samplers", s.strip(), by_name()) for s in samplers.split(",")]
    # The corrector's step must fit the finest structure of the data, which is known here.
    used = [
        replace(s, data_std=truth.narrowest) if isinstance(s, PredictorCorrector) else s
        for s in named or ALL
    ]
    model = truth.denoiser(VP())
    if checkpoint:
        model = _model_of(target, truth.dim, checkpoint).to(device)
    options: dict[str, Any] = {"n": n, "seeds": range(seed, seed + seeds), "progress": True}
    if exact:
        if truth.dim > 1 or resume is not None or workers > 1:
            raise typer.BadParameter(
                "--exact is for targets on the line, without --resume and --workers"
            )
        table = comparison.sampler_bias(model, used, counts, truth, **options)
    else:
        with _pool(workers) as executor:
            options |= {"executor": executor, "resume": resume}
            table = comparison.compare(model, used, counts, truth, **options)
    typer.echo(str(table))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        table.to_csv(out / "compare.csv")
        label = "exact score" if checkpoint is None else "trained network"
        figure = plotting.error_against_nfe({label: table}, table.metric_names[0], title=target)
        plotting.save(figure, out / "compare.png")
        typer.echo(f"wrote {out / 'compare.csv'} and {out / 'compare.png'}")


@app.command()
def samplers() -> None:
    """List the samplers.

    The name for `--sampler`, order, noise, calls a step, and the default instance it stands for.
    """
    from sdekit.sampling import ALL, by_name

    typer.echo(f"{'name':<28}{'order':>6}{'random':>8}{'calls':>7}  default instance")
    names = {repr(sampler): name for name, sampler in by_name().items()}
    for sampler in ALL:
        name = names.get(repr(sampler), "")
        random, calls = "yes" if sampler.stochastic else "no", sampler.nfe_per_step or "-"
        typer.echo(f"{name:<28}{sampler.order:>6}{random:>8}{calls:>7}  {sampler!r}")


@app.command()
def check(
    cells: Annotated[int, typer.Option(min=8, help="Cells of the PDE's grid.")] = 800,
    n: Annotated[int, typer.Option(min=2, help="Samples a sampler.")] = 100_000,
    out: Annotated[Path | None, typer.Option(help="Folder for a picture.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """PDEs and samplers against exact laws.

    The Fokker-Planck and heat equations against exact mixtures, then every plan on Gaussian data against its
    exact output law: how many standard errors the samples' mean and variance are off.
    """
    from sdekit.checks import fokker_planck_check, fokker_planck_film, law_check
    from sdekit.comparison.tables import short_names

    _check_device(device)
    result = fokker_planck_check(cells)
    typer.echo(f"{result}\n")
    rows = law_check(n, seed=seed, device=device)
    names, head = short_names([row["sampler"] for row in rows]), "sampler on N(0.7, 0.25), 20 steps"
    width = max(map(len, (head, *names.values()))) + 2
    typer.echo(f"{head:<{width}}{'mean':>9}{'variance':>10}{'off by':>14}")
    for row in rows:
        law = f"{row['mean']:>9.5f}{row['variance']:>10.5f}"
        off = f"{row['z_mean']:+.1f}, {row['z_variance']:+.1f} se"
        typer.echo(f"{names[row['sampler']]:<{width}}{law}{off:>14}")
    if out is not None:
        from sdekit import plotting
        from sdekit.density_pictures import density_picture

        figure = density_picture(
            {run.name: (run.solution, run.laws) for run in fokker_planck_film()},
            title="Forward density: PDE and exact mixture",
        )
        typer.echo(f"picture: {plotting.save(figure, out / 'fokker-planck.png')}")
    worst = max(max(abs(r["z_mean"]), abs(r["z_variance"])) for r in rows)
    if worst > 5:
        raise ValueError(f"a sampler's samples are {worst:.1f} standard errors off its exact law")
    if (lost := max(abs(r["mass"] - 1) for r in result.rows)) > 1e-9:
        raise ValueError(f"the Fokker-Planck solver lost mass: {lost:.1e}")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; errors are one line on stderr and exit code 2, Ctrl-C is 130."""
    from sdekit.errors import SdekitError

    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(arguments or ["--help"], prog_name="sdekit", standalone_mode=False)
    except (ValueError, TypeError, OSError, ImportError, SdekitError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # Some versions of the options library turn Ctrl-C into an exception of their own.
        if isinstance(error.__cause__, KeyboardInterrupt):
            return 130
        # Usage errors of the options library, under whatever name its version gives them.
        if not hasattr(error, "format_message"):
            raise
        return _fail(error.format_message())  # type: ignore[attr-defined]
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    print(f"sdekit: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


# ------------------------------------------------------------------- what names on the line mean


def _choose(what: str, name: str, known: dict[str, Any]) -> Any:
    from sdekit.errors import check_choice

    # The class's own name, and its words run together, mean the same.
    spelt = {known_name.replace("-", ""): known_name for known_name in known}
    name = spelt.get(name.lower().replace("-", ""), name)
    return known[check_choice(what, name, tuple(known))]


def _processes() -> dict[str, Any]:
    from sdekit.processes import VP, Interpolant, SubVP
    from sdekit.schedules import Cosine

    return {
        "vp": VP(),
        "vp-cosine": VP(schedule=Cosine()),
        "sub-vp": SubVP(),
        "interpolant": Interpolant(),
    }


def _data(name: str, size: int) -> tuple[Any, Any]:
    """A target by name, images, or an array from a file; and the scaling of what is levels."""
    from sdekit.data import TARGETS, images

    if name == "digits":
        return images.digits(), None
    sets = {"mnist": images.mnist, "fashion-mnist": images.fashion_mnist}
    if name in sets:
        return sets[name]().images, images.Scaling.symmetric()
    if name.endswith(".npy"):
        return _array(name), None
    if Path(name).is_dir():
        return images.image_folder(name, size=size).images, images.Scaling.symmetric()
    return _choose("data", name, {**TARGETS, "digits": None, **sets})(), None


def _array(name: str) -> Any:
    """The numbers in a .npy file."""
    import numpy as np
    import torch

    with Path(name).open("rb") as file:
        try:
            array = np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise ValueError(
                f"{name} is damaged or is not a .npy file of numbers: {error}"
            ) from None
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must hold floating-point numbers, got {array.dtype}")
    return torch.from_numpy(array).float()


def _network(source: Any) -> tuple[Any, tuple[int, ...]]:
    """A U-Net for images, an MLP for everything else; and the shape of a sample."""
    from torch import Tensor

    from sdekit.networks import MLP, UNet

    if not isinstance(source, Tensor):
        return MLP(source.dim), (source.dim,)
    event = source.shape[1:]
    if len(event) == 3 and event[0] <= 3 and event[1] % 2 == event[2] % 2 == 0:
        return UNet(channels=event[0]), event
    return MLP(event.numel()), event


def _load(path: Path) -> tuple[Any, tuple[int, ...], Any, Any]:
    """The averaged model of a checkpoint (or of a run), shape and scaling of its samples, null label."""
    from sdekit.data.images import Scaling
    from sdekit.denoisers import NetworkModel, model_file
    from sdekit.storage import load_tensors

    path = model_file(path)
    model, config = NetworkModel.load(path), load_tensors(path)[1].get("config", {})
    event, scaling = config.get("event"), config.get("scaling")
    if event is None and not hasattr(model.network, "dim"):
        raise ValueError(f"{path} does not record the shape of its samples; give a run of `train`")
    event = (int(model.network.dim),) if event is None else tuple(event)  # type: ignore[arg-type]
    scaling = None if scaling is None else Scaling(**scaling)
    return model, event, scaling, config.get("cond_null")


def _model_of(target: str, dim: int, checkpoint: Path) -> Any:
    """The model of a checkpoint, if it draws samples of the target's shape."""
    model, event, *_ = _load(checkpoint)
    if event != (dim,):
        raise ValueError(
            f"target {target!r} is of shape ({dim},), but {checkpoint} draws samples of shape {event}; "
            "name its target with --target"
        )
    return model


def _pool(workers: int) -> Any:
    """A context of that many processes that share the threads, or of none for one."""
    if workers == 1:
        return nullcontext()
    import torch

    threads = max(1, torch.get_num_threads() // workers)
    return ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(threads,),
    )


def _counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"steps must be integers separated by commas, got {text!r}") from None


def _check_device(name: str) -> None:
    import torch

    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {name!r} is not available: {str(error).splitlines()[0]}"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
