"""The report on loaded weights."""

from __future__ import annotations

from dataclasses import dataclass

from skipnets.models.weights.checkpoint import PublishedInput, PublishedLabels


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Which tensor of a model came from which tensor of a source; `print` it.

    Args:
        source: Where the weights came from.
        model: The model's registry name.
        layout: How tensors were matched: the names' layout, or by structure.
        mapping: Names in the model to names in the source, in the model's order. Re-initialized tensors are
            not in it.
        changes: Adaptations where the source and the model differ (head, first convolution).
        ignored: Names in the source of tensors that were ignored on request.
        notes: Further remarks, for example which of several state dicts was used.
        input: Preprocessing that the source states, adapted to the model's input channels; None if it does
            not.
        labels: What the outputs stand for, where the source says so and the head was kept.
        task: What the outputs are, as of `skipnets.Classifier`, likewise.
        prefix: Common prefix of all names in the source, such as "module.".
    """

    source: str
    model: str
    layout: str
    mapping: dict[str, str]
    changes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    input: PublishedInput | None = None
    labels: PublishedLabels | None = None
    task: str | None = None
    prefix: str = ""

    def __str__(self) -> str:
        renamed = {wanted: found for wanted, found in self.mapping.items() if found != self.prefix + wanted}
        lines = [f"{self.model} from {self.source}: {len(self.mapping)} tensors, {self.layout}"]
        lines += [f"  {line}" for line in (*self.changes, *self.notes)]
        if self.ignored:
            lines.append(f"  ignored: {', '.join(self.ignored)}")
        if self.input is not None:
            lines.append(f"  {self.input}")
        if self.labels is not None:
            lines.append(f"  {self.labels}")
        if same := len(self.mapping) - len(renamed):
            lines.append(f"  {same} tensors by their own names{self.prefix and f', after {self.prefix!r}'}")
        width = max(map(len, renamed), default=0)
        lines += [f"  {wanted:{width}} ← {found}" for wanted, found in renamed.items()]
        return "\n".join(lines)
