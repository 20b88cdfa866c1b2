"""Rendering of the Jinja templates beside this file."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from neurofreeze.report import card, formatting


def render(name: str, /, **values: object) -> str:
    """The template `name` filled with `values`; *.html escapes what it is given, other templates do not.

    Raises:
        jinja2.TemplateNotFound: if there is no such template.
        jinja2.UndefinedError: if the template uses a value that was not given.
    """
    return _environment().get_template(name).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("neurofreeze", "report/templates"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for function in (*formatting.FILTERS, *card.FILTERS):
        environment.filters[function.__name__] = function
    return environment
