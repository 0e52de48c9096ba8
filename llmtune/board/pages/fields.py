"""A field of the form: the widget that fits its type, with its help, default, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import ui

from llmtune.board.form import FormField
from llmtune.board.pages.frame import Page
from llmtune.data.info import DATASET_MAPPING


class Field:
    """One widget. Setting it from the page does not count as a change by the visitor."""

    def __init__(self, widget: Any, field: FormField, on_change: Callable[[Any], None]) -> None:
        self.widget = widget
        self.field = field
        self._quiet = False
        widget.on_value_change(lambda event: None if self._quiet else on_change(event.value))
        widget.classes(f"w-full field field-{field.name}")

    def show(self, value: str | list[str] | None) -> None:
        """Show a value; None for the default."""
        shown: Any = _for_widget(self.field, value)
        if shown == self.widget.value:
            return
        self._quiet = True
        if isinstance(self.widget, ui.select):
            self.widget.set_options(_options(self.field, value), value=shown)
        else:
            self.widget.set_value(shown)
        self._quiet = False

    def complain(self, problem: str) -> None:
        self.widget.error = problem or None


def field_for(page: Page, field: FormField, value: str | list[str] | None, on_change: Callable[[Any], None]) -> Field:
    """Return the field of a flag."""
    label = f"--{field.name}"
    shown = _for_widget(field, value)
    widget: Any
    if field.is_list:
        widget = ui.select(
            _options(field, value),
            value=shown,
            multiple=True,
            with_input=True,
            new_value_mode="add-unique",
            label=label,
        ).props("use-chips dense hide-dropdown-icon stack-label")
    elif field.kind in ("flag", "choice"):
        widget = ui.select(_options(field, value), value=shown, label=label, clearable=True).props("dense stack-label")
    else:
        widget = ui.input(label, value=shown).props("dense clearable stack-label debounce=100")
        if field.kind == "number":
            widget.props("inputmode=decimal")
    if field.default:
        widget.props(f'placeholder="{_attribute(field.default)}"')
        widget.props(f'hint="{_attribute(page.text("default", text=field.default))}"')
    if field.help:
        with widget:
            ui.tooltip(field.help).classes("text-body2").style("max-width: 360px")
    return Field(widget, field, on_change)


def _options(field: FormField, value: str | list[str] | None) -> list[str]:
    if field.kind == "flag":
        return ["true", "false"]
    known = list(field.choices)
    if field.name in ("dataset", "val_dataset"):
        known = list(DATASET_MAPPING)
    given = value if isinstance(value, list) else [value] if value else []
    return [*known, *(one for one in given if one not in known)]


def _for_widget(field: FormField, value: str | list[str] | None) -> Any:
    if field.is_list:
        return list(value or [])
    if field.kind in ("flag", "choice"):
        return value or None
    return value or ""


def _attribute(text: str) -> str:
    return text.replace('"', "'")
