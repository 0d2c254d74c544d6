"""What an alerting rule is made of.

An alert's condition is made of vectors and comparisons, so that a test can ask Prometheus for the vectors while nothing
is wrong: a comparison of nothing never fires.
"""

from typing import NamedTuple

RUNBOOKS = "docs/runbooks"

PLACE = {"job": "falconet", "chain": "ethereum"}
"""The labels of what a service for one chain tells, in the proofs."""


class Condition(NamedTuple):
    """A vector and what it must be."""

    vector: str
    comparison: str

    def __str__(self) -> str:
        return f"{self.vector} {self.comparison}"


class Proof(NamedTuple):
    """A drawn history in which the alert fires and resolves, in promtool's notation."""

    series: dict[str, str]
    fires: str
    """When it must fire."""
    resolves: str
    """When it must be over."""
    labels: dict[str, str]
    """Of the firing alert, without its severity."""
    shown: tuple[str, ...] = ()
    """The value as the summary tells it, for each rule that fires; none where it does not tell it."""
    interval: str = "1m"
    severities: tuple[str, ...] = ()
    """Which of the rules of the same name fire; none means the alert's own."""


class Alert(NamedTuple):
    """One alerting rule."""

    name: str
    severity: str
    """`page` wakes somebody, `ticket` waits for the morning."""
    summary: str
    any_of: tuple[tuple[Condition, ...], ...]
    """Holds where all conditions of one of them hold."""
    lasting: str
    """How long it must hold."""
    proof: Proof

    @property
    def expr(self) -> str:
        """The whole condition in PromQL."""
        parts = ["\nand ".join(map(str, every)) for every in self.any_of]
        return parts[0] if len(parts) == 1 else "\nor ".join(f"(\n{part}\n)" for part in parts)

    @property
    def runbook(self) -> str:
        """The page that says what to do."""
        return f"{RUNBOOKS}/{self.name}.md"
