"""A look at reward functions before anything runs: do they reward the data's own reference responses?"""

from __future__ import annotations

from collections.abc import Sequence

from llmtune.rewards.call import score
from llmtune.rewards.functions import RewardFunction
from llmtune.rewards.inputs import RewardInput
from llmtune.rewards.results import excerpt

MOST = 0.5


def zero_on_reference(functions: Sequence[RewardFunction], inputs: RewardInput) -> list[str]:
    """Return a line for each function that gives most reference responses 0 or less.

    Either the data lacks what the function looks for, or the function looks for it in the wrong place; the model would
    be trained to write other responses than the data has. Of a penalty, whose best value is 0, most have to be below 0.
    Functions with a weight of 0 or less are not looked at, nor rows for which they return None.

    Args:
        functions: From `load_rewards`.
        inputs: Rows whose completions are their reference responses.
    """
    lines = []
    for function in functions:
        values = score(function, inputs) if function.weight > 0 else []
        given = [(row, value) for row, value in enumerate(values) if value is not None]
        low = [row for row, value in given if value < 0 or (value == 0 and not function.penalty)]
        if low and len(low) / len(given) > MOST:
            bound = "less than 0" if function.penalty else "0 or less"
            lines.append(
                f"The reward {function.name} is {bound} for {len(low) / len(given):.0%} of {len(given):,} reference "
                f"responses of the data, {inputs.name(low[0])} for example: {excerpt(inputs.completions[low[0]])}."
            )
    return lines
