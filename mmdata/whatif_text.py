"""What `mmdata whatif` prints for people."""

from __future__ import annotations

from typing import Final

import click

from mmdata.query import write_rows
from mmdata.steps.curate.unknown import told
from mmdata.whatif import Answer

_BAR_CHARS: Final = 40


def tell(answer: Answer) -> None:
    """Print an answer."""
    now, then = answer.kept
    click.echo(f"{answer.title}: {now} samples kept; then {then}: {answer.came} come in, {answer.went} go out")
    write_rows(["split", "kept now", "kept then"], answer.splits, "table")
    write_rows(["step", "rule", "drops now", "drops then", "alone"], answer.rules, "table")
    for row in answer.unknown:
        click.echo(told(row))
    if answer.borders:
        names = ["rule", "", "value", "threshold", "key", "text"]
        rows = [(b.rule, "kept" if b.kept else "dropped", b.value, b.threshold, b.key, b.text) for b in answer.borders]
        write_rows(names, rows, "table")
    for expression, curve in answer.curves.items():
        _draw(expression, curve)


def _draw(expression: str, curve: list[tuple[float, float, int]]) -> None:
    """Lines of threshold, how many reach it, and a bar of that."""
    click.echo(f"{expression} >= threshold")
    most = max((kept for _, _, kept in curve), default=0)
    for share, bound, kept in curve:
        bar = "█" * round(_BAR_CHARS * kept / most) if most else ""
        click.echo(f"{bound:>12.4g}  keeps {kept:>8}  (quantile {share:.2f})  {bar}")
