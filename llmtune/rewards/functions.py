"""Loaded reward functions: how each is called, which columns and options it takes, by the names of its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmtune.errors import LlmtuneError, RewardError, UsageError, one_line
from llmtune.registry import resolve_reference
from llmtune.rewards.info import REWARD_MAPPING, Form, RewardInfo
from llmtune.utils.modules import where

if TYPE_CHECKING:
    from llmtune.rewards.specs import RewardSpec

GIVEN = (
    "prompts", "completions", "completion_ids", "messages", "trainer_state", "log_extra", "log_metric",
    "response_token_ids",
)  # fmt: skip
"""Parameters that are no columns: those of trl, and ms-swift's name of completion_ids."""
VERL = ("data_source", "solution_str", "ground_truth", "extra_info")
VERL_TRUTH = ("ground_truth", "reward_model")
"""verl's rows have the truth in `reward_model["ground_truth"]`."""


@dataclass(kw_only=True)
class RewardFunction:
    """A reward function, ready to be called by `score`.

    Attributes:
        options: Options that are passed at each call; a class got its own when it was instantiated.
        form: Form of the completions, as in `RewardInfo`.
        columns: Columns that it needs beside those that its parameters name; `a|b` is either of them.
        penalty: Whether 0 is its best value.
        names, required: Its parameters, and those of them without a default.
        takes_all: Whether it has `**kwargs`, and so takes every column.
        logged_slow: Whether it has been logged as slow.
    """

    name: str
    function: Callable[..., Any]
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    form: Form = "auto"
    columns: tuple[str, ...] = ()
    penalty: bool = False
    names: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    takes_all: bool = False
    logged_slow: bool = False

    def __post_init__(self) -> None:
        parameters = _parameters(self.function, self.name)
        self.names = tuple(one.name for one in parameters if one.kind not in VARIADIC)
        self.required = tuple(one.name for one in parameters if one.kind not in VARIADIC and one.default is one.empty)
        self.takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)

    @property
    def is_verl(self) -> bool:
        return "solution_str" in self.names

    @property
    def is_async(self) -> bool:
        of_type = type(self.function).__call__
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(of_type)

    @property
    def file(self) -> str | None:
        """The source file, where it is known."""
        return getattr(inspect.unwrap(_code_holder(self.function)), "__code__", _NO_CODE).co_filename or None

    def missing_columns(self, available: Collection[str]) -> list[str]:
        """Return the columns that it needs and the data lacks, in words: `solution`, or `solution or answer`."""
        given = {*GIVEN, *self.options, *(VERL if self.is_verl else ())}
        needed = [*self.columns, *(name for name in self.required if name not in given)]
        if self.is_verl and "ground_truth" in self.required:
            needed.append("|".join(VERL_TRUTH))
        missing = [name for name in needed if not set(name.split("|")) & {*available}]
        return [name.replace("|", " or ") for name in dict.fromkeys(missing)]

    def check_columns(self, available: Collection[str]) -> None:
        """Refuse data that lacks a column.

        Raises:
            UsageError: Names the missing columns and those of the data.
        """
        missing = self.missing_columns(available)
        if missing:
            found = ", ".join(sorted(available)) or "none"
            raise UsageError(
                f"The reward function {self.name!r} needs the column {' and '.join(missing)}; the data has: {found}. "
                "Add it to the rows, or remove the function from --rewards."
            )


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class _NoCode:
    co_filename = ""


_NO_CODE = _NoCode()


def load_rewards(specs: Iterable[RewardSpec], defaults: Mapping[str, Any] | None = None) -> list[RewardFunction]:
    """Load the specs that are functions; reward models, of kind `model`, are run elsewhere."""
    return [load_reward(spec, defaults) for spec in specs if spec.kind != "model"]


def load_reward(spec: RewardSpec, defaults: Mapping[str, Any] | None = None) -> RewardFunction:
    """Import the function of a spec; instantiate a class.

    Args:
        spec: Of kind `key` or `file`.
        defaults: Values of the run for options of entries, such as max_length; what the user wrote is preferred.

    Raises:
        UsageError: An option is missing or out of range. LlmtuneError: The class cannot be instantiated.
    """
    assert spec.kind != "model", "a reward model is no function"
    info = REWARD_MAPPING[spec.target] if spec.kind == "key" else RewardInfo(function=spec.function)
    target = resolve_reference(info.function, what=f"The reward {spec.name!r}")
    run = {name: value for name, value in (defaults or {}).items() if name in info.defaults}
    options = {**info.defaults, **run, **spec.options}
    form, columns = info.completions, info.columns
    if inspect.isclass(target):
        target = _instance(target, options, spec.name)
        own = getattr(target, "columns", columns) if columns else columns
        options, columns = {}, own
        form = "text" if form == "auto" else form
    return RewardFunction(
        name=spec.name,
        function=target,
        weight=spec.weight,
        options=options,
        form=form,
        columns=columns,
        penalty=info.penalty,
    )


def option_names(of: Any) -> list[str] | None:
    """Return the options that an entry, function or class takes; None for a class that takes any."""
    if isinstance(of, RewardInfo):
        if of.defaults:
            return list(of.defaults)
        of = resolve_reference(of.function, what="The reward")
    if not inspect.isclass(of):
        return [
            one.name
            for one in _parameters(of, getattr(of, "__name__", "reward"))
            if one.default is not one.empty and one.name not in GIVEN and one.kind not in VARIADIC
        ]
    parameters = _parameters_of_class(of)
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    return [one.name for one in parameters if one.kind not in VARIADIC and one.name != "args"]


def _instance(target: type, options: dict[str, Any], name: str) -> Callable[..., Any]:
    """Instantiate a class; ms-swift's take its arguments as `args`, which llmtune has none of."""
    parameters = [one for one in _parameters_of_class(target) if one.kind not in VARIADIC]
    if any(one.name == "args" for one in parameters):
        options = {"args": None, **options}
    missing = [one.name for one in parameters if one.default is one.empty and one.name not in options]
    if missing:
        raise UsageError(f"The reward {name!r} needs the option {missing[0]}: write {name}({missing[0]}=...).")
    if "__call__" not in dir(target):
        raise UsageError(f"The reward {name!r} is a class without __call__(self, completions, **kwargs). Add one.")
    try:
        made: Callable[..., Any] = target(**options)
    except LlmtuneError:
        raise
    except Exception as err:
        raise RewardError(
            f"The reward {name!r} cannot be instantiated: {type(err).__name__}: {one_line(err)} ({where(err)}). "
            "Fix its __init__, or give it options."
        ) from err
    return made


def _parameters_of_class(target: type) -> list[inspect.Parameter]:
    return [] if target.__init__ is object.__init__ else _parameters(target, target.__name__)  # type: ignore[misc]


def _parameters(function: Any, name: str) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise UsageError(
            f"The parameters of the reward {name!r} cannot be read. Wrap it: def {name}(completions, **kwargs)."
        ) from None


def _code_holder(function: Any) -> Any:
    """Return the function of a function, a bound method, a partial, or an object with `__call__`."""
    while hasattr(function, "func"):
        function = function.func
    if not hasattr(function, "__code__") and not inspect.ismethod(function):
        function = type(function).__call__
    return getattr(function, "__func__", function)
