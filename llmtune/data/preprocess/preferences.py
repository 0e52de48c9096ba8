"""Rows of preference datasets that no general format covers."""

from __future__ import annotations

from llmtune.data.preprocess.common import Drop, Row
from llmtune.errors import RowError


def helpsteer3(row: Row) -> Row | Drop:
    """Two responses, and by how much people prefer one: -3 (the first is much better) to 3 (the second is)."""
    preference = row.get("overall_preference")
    if not isinstance(preference, (int, float)) or isinstance(preference, bool):
        raise RowError("its 'overall_preference' is not a number")
    if preference == 0:
        return Drop("a tie")
    better, worse = ("response1", "response2") if preference < 0 else ("response2", "response1")
    return {
        "prompt": row.get("context"),
        "chosen": row.get(better),
        "rejected": row.get(worse),
        "margin": float(abs(preference)),
    }
