"""The tape: a sampler writes its paper's formula on symbolic linear forms, the tape records the rows.

s, t = two grid nodes, with .t .alpha .sigma .half_log_snr .rho as plain floats
data = tape.data(x, s)                        # "call the model at x"
x = tape.node(0.9 * x + 0.1 * data, t)        # "this is the state at node t"
"""

from collections.abc import Mapping
from dataclasses import replace
from math import hypot

from sdekit.processes import Node, Process
from sdekit.sampling.plan import Plan, Row


class Form:
    """A linear combination of states ("x"), predictions ("p") and unit normals ("z"), by number."""

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[tuple[str, int], float]) -> None:
        self.terms = dict(terms)

    def __add__(self, other: "Form") -> "Form":
        terms = dict(self.terms)
        for key, weight in other.terms.items():
            terms[key] = terms.get(key, 0.0) + weight
        return Form(terms)

    def __sub__(self, other: "Form") -> "Form":
        return self + other * -1.0

    def __mul__(self, weight: float) -> "Form":
        if isinstance(weight, Form):
            raise TypeError(
                "a plan is affine: states, predictions and normals cannot be multiplied"
            )
        return Form({key: c * weight for key, c in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, weight: float) -> "Form":
        return self * (1 / weight)

    def __neg__(self) -> "Form":
        return self * -1.0

    @property
    def state(self) -> int | None:
        """k if this form is the state x_k itself, else None."""
        if len(self.terms) != 1:
            return None
        ((kind, k), weight) = next(iter(self.terms.items()))
        return k if kind == "x" and weight == 1.0 else None


class Tape:
    """Records what a sampler writes. Readings of the same state share one model call."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._rows: list[Row] = []
        self._normals: list[tuple[float, float] | None] = []
        self._spent: set[int] = set()

    def start(self, node: Node) -> Form:
        """The state the plan starts from."""
        return Form({("x", self._record(Form({}), node.t, node.index)): 1.0})

    def node(self, form: Form, node: Node) -> Form:
        """Let the state at this grid node be `form`."""
        return Form({("x", self._record(form, node.t, node.index)): 1.0})

    def data(self, x: Form, node: Node) -> Form:
        """E[x_0 | x] at the node's time."""
        return self._read(x, node, (0.0, 1.0))

    def noise(self, x: Form, node: Node) -> Form:
        """(x - alpha E[x_0 | x]) / sigma."""
        return self._read(x, node, (1 / node.sigma, -node.alpha / node.sigma))

    def score(self, x: Form, node: Node) -> Form:
        """-(x - alpha E[x_0 | x]) / sigma^2."""
        return self._read(x, node, (-1 / node.sigma**2, node.alpha / node.sigma**2))

    def v(self, x: Form, node: Node) -> Form:
        """(alpha noise - sigma data) / sqrt(alpha^2 + sigma^2)."""
        length = hypot(node.alpha, node.sigma)
        return self._read(x, node, (node.alpha / node.sigma / length, -length / node.sigma))

    def flow(self, x: Form, node: Node) -> Form:
        """noise - data, the velocity of the straight path between them."""
        return self._read(x, node, (1 / node.sigma, -(node.alpha + node.sigma) / node.sigma))

    def velocity(self, x: Form, node: Node) -> Form:
        """dx/dt of the probability flow: E[x_0 | x] d alpha/dt + noise d sigma/dt."""
        alpha_slope, sigma_slope = (float(v) for v in self.process.slopes(node.t))
        growth = sigma_slope / node.sigma
        return self._read(x, node, (growth, alpha_slope - growth * node.alpha))

    def normal(self, interval: tuple[float, float] | None = None) -> Form:
        """A fresh unit normal; `interval` is the stretch of the sampler's clock whose noise it is."""
        self._normals.append(interval)
        return Form({("z", len(self._normals) - 1): 1.0})

    def plan(self, name: str, *, drop_last_noise: bool = False) -> Plan:
        """The rows so far as a plan; a node reached twice is the later state."""
        rows = list(self._rows)
        if drop_last_noise:
            rows[-1] = replace(rows[-1], z={})
        final = set({row.node: k for k, row in enumerate(rows)}.values())
        rows = [r if k in final else replace(r, node=None) for k, r in enumerate(rows)]
        return Plan(self.process, tuple(rows), tuple(self._normals), name)

    def _record(self, form: Form, t: float, node: int | None) -> int:
        parts: dict[str, dict[int, float]] = {"x": {}, "p": {}, "z": {}}
        for (kind, j), weight in form.terms.items():
            if weight != 0.0:
                parts[kind][j] = float(weight)
        # Normals are drawn as they are used and not kept: one that entered two rows would be two draws.
        if again := self._spent & parts["z"].keys():
            raise ValueError(
                f"normals {sorted(again)} enter a second row; name the state that first uses them "
                "with tape.node() and go on from it"
            )
        self._spent |= parts["z"].keys()
        self._rows.append(Row(t, parts["x"], parts["p"], parts["z"], None, node))
        return len(self._rows) - 1

    def _read(self, x: Form, node: Node, read: tuple[float, float]) -> Form:
        k = x.state
        if k is None or self._rows[k].t != node.t:
            k = self._record(x, node.t, None)
        earlier = self._rows[k].read
        if earlier is None:
            self._rows[k] = replace(self._rows[k], read=read)
            return Form({("p", k): 1.0})
        # A second reading of one evaluation: solve for E[x_0 | x] in the first.
        scale = read[1] / earlier[1]
        return Form({("x", k): read[0] - scale * earlier[0], ("p", k): scale})
