"""The fields of a dataclass as the options of a command: name, type, default, help and group stand together.

@dataclass
class Options:
    epochs: float = option(2.0, "Optimisation", "Passes over the data.", above=0)

@click.command(cls=OptionsCommand)
@options_of(Options)
def main(**values):
    run(Options(**values))

A switch may be followed by its value: `--quick True` is `--quick`, and `--quick False` is `--no-quick`.
The command also takes `--config FILE.yaml`, whose keys are the names of the options; the command line wins
over the file.
"""

import csv
import dataclasses
import difflib
import io
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import click
import yaml
from click.core import ParameterSource
from click_option_group import optgroup

from training.common.errors import UserError
from training.common.hub import model_directory

CONFIG = "config"


def option(
    default: Any,
    group: str,
    help: str,
    *,
    required: bool = False,
    multiple: bool = False,
    parse: Callable[[str], Any] | None = None,
    metavar: str | None = None,
    at_least: int | None = None,
    above: float | None = None,
    below: float | None = None,
    flag: str | None = None,
    shown_default: str | None = None,
    planned: bool = False,
    is_path: bool = False,
    is_model: bool = False,
) -> Any:
    """A field of a dataclass, and the option that gives its value.

    default: the value without the option; a function is called for it. required: whether the command line or
    the file of --config must give a value; the dataclass itself need not. multiple: the option may be given
    several times, and the value is a tuple. parse: a function from the option's text to its value, which
    raises ValueError for a wrong text; `metavar` then says what the text looks like. at_least, above, below:
    bounds of a number. flag: what is typed, where it is not the field's name with dashes. shown_default: the
    default in words. planned: whether `training.plan` has the option too.
    is_path: whether the text may be a path, in which `~` is the home directory. is_model: whether it is a
    `ModelPath`.
    """
    bounds = {"min": at_least if above is None else above, "max": below}
    settings = {
        "group": group,
        "help": help,
        "required": required,
        "multiple": multiple,
        "parse": parse,
        "metavar": metavar,
        "bounds": bounds | {"min_open": above is not None, "max_open": below is not None},
        "flag": flag,
        "shown_default": shown_default,
        "planned": planned,
        "is_path": is_path,
        "is_model": is_model,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=settings)
    return dataclasses.field(default=default, metadata=settings)


class ParsedText(click.ParamType):
    """The type of an option whose value `parse` makes of its text; its ValueError is the user's mistake."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            return self.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, context)


class OptionsCommand(click.Command):
    """A command whose switches with a `--no-` form may be followed by a value, as in `--bf16 True`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        switches = {name: each for each in self.get_params(ctx) if each.secondary_opts for name in each.opts}
        spelt: list[str] = []
        rest = list(args)
        while rest:
            arg = rest.pop(0)
            name, equals, value = arg.partition("=")
            if name in switches and not equals and rest and not rest[0].startswith("-"):
                value, equals = rest.pop(0), True
            if name in switches and equals:
                is_on = click.BOOL.convert(value, switches[name], ctx)
                arg = name if is_on else switches[name].secondary_opts[0]
            spelt.append(arg)
        return super().parse_args(ctx, spelt)


class FiniteRange(click.FloatRange):
    """The type of an option that is a number within bounds; NaN, which no bound keeps out, is none."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        number = super().convert(value, param, context)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, context)
        return number


class UserPath(click.Path):
    """The type of an option that is a path; `~` is the home directory, even where a shell leaves it alone.

    A shell leaves it in `--option=~/x`, and there is no shell for a file of --config.
    """

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        return super().convert(os.path.expanduser(value), param, context)


class PathOrName(click.types.StringParamType):
    """The type of an option that is a path, or else a name on the hub; `~` is the home directory."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        return os.path.expanduser(super().convert(value, param, context))


class ModelPath(PathOrName):
    """The type of an option that is a model's or a run's directory, or else a name on the hub.

    The value for a run directory is that of its model.
    """

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        return model_directory(super().convert(value, param, context))


def options_of(
    options_class: type, *, only: Collection[str] | None = None, required: Collection[str] | None = None
) -> Callable[[Callable], Callable]:
    """A decorator that gives a command all options of `options_class`, group by group, and --config.

    only: names of the fields to offer; without it, all of them. required: names of the fields whose options
    are required, instead of those declared so.
    """
    kinds = typing.get_type_hints(options_class)
    declared = [field for field in dataclasses.fields(options_class) if "group" in field.metadata]
    fields = [field for field in declared if only is None or field.name in only]
    groups = list(dict.fromkeys(field.metadata["group"] for field in fields))

    def decorate(command: Callable) -> Callable:
        for group in reversed(groups):
            for field in reversed([field for field in fields if field.metadata["group"] == group]):
                is_required = field.metadata["required"] if required is None else field.name in required
                settings = _settings(field, kinds[field.name], is_required)
                command = optgroup.option(flag_of(field), field.name, **settings)(command)
            command = optgroup.group(group)(command)
        return click.option(
            "--config",
            type=UserPath(exists=True, dir_okay=False, path_type=Path),
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            help="YAML file of options, by the names below; the command line wins over it.",
        )(command)

    return decorate


def flag_of(field: dataclasses.Field) -> str:
    """What is typed for a field: `--max-length`, or `--bf16/--no-bf16` for a switch that is on by default."""
    flag = field.metadata["flag"] or f"--{field.name.replace('_', '-')}"
    return f"{flag}/--no-{flag.removeprefix('--')}" if field.default is True else flag


def option_of(options_class: type, name: str) -> Callable[[Callable], Callable]:
    """A decorator that gives a command one option of `options_class`, which need not be given."""
    (field,) = (field for field in dataclasses.fields(options_class) if field.name == name)
    settings = _settings(field, typing.get_type_hints(options_class)[name], required=False)
    return click.option(flag_of(field), name, **settings)


def names_not_given() -> tuple[str, ...]:
    """Names of the running command's options that neither the command line nor --config gives."""
    context = click.get_current_context()
    return tuple(
        name for name in context.params if context.get_parameter_source(name) is ParameterSource.DEFAULT
    )


def text_of_value(value: Any) -> str:
    """An option's value as text; several texts are a line of CSV."""
    if not isinstance(value, tuple) or not all(isinstance(part, str) for part in value):
        return str(value)
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(value)
    return line.getvalue()


def parse_value(options_class: type, name: str, text: str) -> Any:
    """The value of an option from what `text_of_value` makes of it."""
    (field,) = (field for field in dataclasses.fields(options_class) if field.name == name)
    settings = _settings(field, typing.get_type_hints(options_class)[name], required=False)
    kind = settings.get("type", click.BOOL if settings.get("is_flag") else click.STRING)
    if settings.get("multiple"):
        (parts,) = csv.reader([text])
        return tuple(kind.convert(part, None, None) for part in parts)
    return kind.convert(text, None, None)


def _settings(field: dataclasses.Field, kind: Any, required: bool) -> dict[str, Any]:
    """What click's `option` takes for a field of the type `kind`."""
    settings: dict[str, Any] = {"help": field.metadata["help"], "required": required}
    if not required:
        has_factory = field.default is dataclasses.MISSING
        settings["default"] = field.default_factory if has_factory else field.default
        settings["show_default"] = field.metadata["shown_default"] or (
            settings["default"] is not None and settings["default"] is not False
        )
    if isinstance(kind, types.UnionType):
        kind = next(part for part in kind.__args__ if part is not types.NoneType)
    if field.metadata["multiple"]:
        kind = typing.get_args(kind)[0]  # of a tuple of any length
    if field.metadata["parse"]:
        settings["type"] = ParsedText(field.metadata["metavar"], field.metadata["parse"])
        settings["multiple"] = field.metadata["multiple"]
        if settings["multiple"]:
            settings.pop("default", None)
    elif kind is bool:
        settings["is_flag"] = True
    elif typing.get_origin(kind) is typing.Literal:
        settings["type"] = click.Choice(typing.get_args(kind))
        settings["multiple"] = field.metadata["multiple"]
    elif kind is int:
        bounds = field.metadata["bounds"]
        has_bounds = bounds["min"] is not None or bounds["max"] is not None
        settings["type"] = click.IntRange(**bounds) if has_bounds else click.INT
    elif kind is float:
        settings["type"] = FiniteRange(**field.metadata["bounds"])
    elif kind is Path:
        settings["type"] = UserPath(path_type=Path)
    elif field.metadata["is_model"]:
        settings["type"] = ModelPath()
    elif field.metadata["is_path"]:
        settings["type"] = PathOrName()
        settings["multiple"] = field.metadata["multiple"]
    else:
        assert kind is str, f"{field.name} is of a type that no option has: {kind}"
    return settings


def _read_config(context: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Make the values of a YAML file the defaults of the command's options.

    Raises UserError for a file that is no YAML mapping, for a key that is no option, and for a wrong value.
    """
    if path is None:
        return
    try:
        text = path.read_text(encoding="utf-8")
        content, tree = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a mapping of option names to values")
    keys = [key.value for key, _ in tree.value]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f'{path}: "{key}" stands there twice')
    known = {_key(option): option for option in context.command.params if option.expose_value}
    values = {}
    for key, value in content.items():
        option = known.get(str(key).replace("_", "-"))
        if option is None:
            nearest = difflib.get_close_matches(str(key).replace("_", "-"), known, n=1, cutoff=0)
            raise UserError(f'{path}: there is no option "{key}"; the nearest is "{nearest[0]}"')
        if value is None:
            continue
        if option.multiple and not isinstance(value, list):
            value = [value]
        for item in value if option.multiple else [value]:
            if not isinstance(item, _yaml_kinds(option)) or (
                isinstance(item, bool) and not _is_switch(option)
            ):
                raise UserError(f"{path}: {key}: {item!r} is not {_wanted(option)}")
        try:
            option.type_cast_value(context, value)
        except click.BadParameter as error:
            raise UserError(f"{path}: {key}: {error.message}") from None
        values[option.name] = value
    context.default_map = values


def _is_switch(option: click.Parameter) -> bool:
    return isinstance(option.type, click.types.BoolParamType)


def _yaml_kinds(option: click.Parameter) -> tuple[type, ...]:
    """What YAML may make of an option's value: a name that YAML takes for a number has lost its spelling."""
    if _is_switch(option):
        return (bool,)
    if isinstance(option.type, click.types.IntParamType):
        return (int,)
    if isinstance(option.type, click.types.FloatParamType):
        return (int, float, str)  # YAML takes 5e-7, without a point, for text
    if isinstance(option.type, ParsedText):
        return (int, float, str)
    return (str,)


def _wanted(option: click.Parameter) -> str:
    if _is_switch(option):
        return "true or false"
    if isinstance(option.type, ParsedText):
        return option.type.name
    if _yaml_kinds(option) == (str,):
        return "text; put it in quotes"
    return "a whole number" if _yaml_kinds(option) == (int,) else "a number"


def _key(option: click.Parameter) -> str:
    return option.opts[0].removeprefix("--").replace("_", "-")


def as_yaml(values: Mapping[str, Any]) -> str:
    """Values of options, by the names of their fields, as a file for --config.

    A None is left out; what is neither text, a number, a boolean nor a list is written as text.
    """

    def plain_value(value: Any) -> Any:
        if isinstance(value, list):
            return [plain_value(item) for item in value]
        return value if isinstance(value, str | int | float) else str(value)

    given = {name.replace("_", "-"): value for name, value in values.items() if value is not None}
    return yaml.safe_dump(
        {name: plain_value(value) for name, value in given.items()}, sort_keys=False, allow_unicode=True
    )
