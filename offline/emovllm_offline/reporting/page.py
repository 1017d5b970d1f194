"""Pages of HTML that work offline, from the templates beside this file."""

from __future__ import annotations

import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("emovllm_offline.reporting"),
        # Whatever a template shows is text, unless it is made of HTML by itself, as a table is.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **content: Any) -> str:
    """A template by its file's name. Raises: jinja2.TemplateError, where it shows what is not given too."""
    return str(_environment().get_template(template).render(content))
