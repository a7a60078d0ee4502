"""Flattens answers for tools that read tables: a row a sample, a column a figure.

In: the JSON lines of ``output``. Out: rows, their columns, CSV.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_FIGURES = ("value", "lower", "upper", "percentile")


def columns(targets: Sequence[str]) -> dict[str, type]:
    """The columns of a table of valuations for ``targets``, with the type of each."""
    return (
        {"sample_id": str, "provider": str}
        | {f"{target}_{figure}": float for target in targets for figure in _FIGURES}
        | {"token_count": int, "truncated": bool}
        | {"out_of_distribution_score": float, "out_of_distribution": bool}
        | {"bundle_id": str, "error": str}
    )


def flat_row(line: str | bytes) -> dict[str, object]:
    """One answer by column; a sample without a value has its ``error``, one with it has none."""
    answer: dict[str, Any] = json.loads(line)
    for value in answer.pop("values", ()):
        for figure in _FIGURES:
            answer[f"{value['target']}_{figure}"] = float(value[figure])
    return answer


def write_csv(rows: Iterable[dict[str, object]], columns: dict[str, type], out: Path) -> None:
    """Write a table, an absent cell empty, true and false in JSON's words."""
    with out.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns))
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {name: str(c).lower() if isinstance(c, bool) else c for name, c in row.items()}
            )
