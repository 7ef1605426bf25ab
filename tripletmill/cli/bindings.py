"""Checks a gin configuration: every name exists, values are of the right type, none is missing.

Gin itself does not notice a wrong name if the function takes any keyword argument. It notices a
missing value only when the function is called, which may be long after the devices were started.
"""

import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterator

import gin

from tripletmill.errors import UsageError

MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
PLAIN_KINDS = {int, float, bool, str, type(None)}


def check(configurables: Collection[Callable], called: Collection[Callable]) -> None:
    """Raises UsageError for the first binding that is wrong or missing.

    Args:
      configurables: functions and classes whose parameters gin may set.
      called: the configurables that will be called. Each parameter without a default must be set
        by gin, for them and for the configurables that they refer to. Parameters that a caller
        can give by position are not required.
    """
    for scope, configurable, name, value in _bindings():
        if configurable in configurables:
            where = f"{scope}/" if scope else ""
            _check(configurable, name, f"{where}{_gin_name(configurable)}.{name}", value)
    for configurable in called:
        _require_all(configurable, "", evaluated=False)


def value_of(parameter: str) -> typing.Any:
    """Returns the value that gin has for a parameter, with macros replaced by their values."""
    return _without_macros(gin.query_parameter(parameter))


def is_set(parameter: str) -> bool:
    """Returns whether gin has a value for a parameter or a %MACRO."""
    try:
        gin.query_parameter(parameter)
    except ValueError:
        return False
    return True


def _gin_name(configurable: Callable) -> str:
    return gin.config._INVERSE_REGISTRY[configurable].name


def _bindings() -> Iterator[tuple[str, Callable, str, typing.Any]]:
    """Yields the scope, configurable, parameter and value of each binding."""
    for (scope, selector), values in gin.config._CONFIG.items():
        wrapped = gin.config._REGISTRY[selector].wrapped
        for name, value in values.items():
            yield scope, wrapped, name, _without_macros(value)


def _without_macros(value: typing.Any) -> typing.Any:
    while isinstance(value, gin.config.ConfigurableReference) and value.selector == "gin.macro":
        value = gin.query_parameter(f"%{value.scoped_selector.removesuffix('/gin.macro')}")
    return value


def _check(configurable: Callable, name: str, parameter: str, value: typing.Any) -> None:
    """Raises UsageError if the parameter of a binding does not exist, or its value does not fit.

    The type is taken from the annotation of the parameter, or from its default if it has none.
    Only numbers, strings, booleans, choices and functions are checked. The configurables check
    values of other types themselves.
    """
    known = _parameters(configurable)
    if name not in known:
        raise UsageError(f"gin: {parameter}: {_gin_name(configurable)} has no parameter {name!r}")
    init = vars(configurable).get("__init__", configurable)
    hint = typing.get_type_hints(init).get(name, _kind_of(known[name].default))
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if typing.get_origin(hint) is Callable:
        fits = isinstance(value, gin.config.ConfigurableReference) and not value.evaluate
        expected = "an @reference, without ()"
    elif typing.get_origin(hint) is typing.Literal:
        fits = value in typing.get_args(hint)
        expected = " or ".join(map(repr, typing.get_args(hint)))
    elif set(kinds) <= PLAIN_KINDS:
        fits = type(value) in kinds or (type(value) is int and float in kinds)
        fits = fits or (isinstance(value, gin.config.ConfigurableReference) and value.evaluate)
        expected = " or ".join(kind.__name__ for kind in kinds).replace("NoneType", "None")
    else:
        return
    if not fits:
        raise UsageError(f"gin: {parameter} = {value!r}: must be {expected}")


def _kind_of(default: typing.Any) -> typing.Any:
    """Returns the type of a parameter without an annotation, such as those of Keras."""
    return type(default) if type(default) in (float, bool) else None


def _parameters(configurable: Callable) -> dict[str, inspect.Parameter]:
    """Returns parameters by name, with those of the base class if **kwargs are passed on to it."""
    functions = [configurable]
    if inspect.isclass(configurable):
        classes = inspect.getmro(configurable)
        functions = [vars(each)["__init__"] for each in classes if "__init__" in vars(each)]
    known: dict[str, inspect.Parameter] = {}
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        known = {p.name: p for p in parameters if p.kind not in MANY and p.name != "self"} | known
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return known


def _require_all(configurable: Callable, scope: str, *, evaluated: bool) -> None:
    """Raises UsageError if a parameter without a default is not set, also in references."""
    name = _gin_name(configurable)
    with gin.config_scope(scope or None):
        bound = gin.get_bindings(configurable, resolve_references=False)
    for parameter in inspect.signature(configurable).parameters.values():
        by_position = not evaluated and parameter.kind is not parameter.KEYWORD_ONLY
        if parameter.kind in MANY or parameter.default is not parameter.empty or by_position:
            continue
        if parameter.name not in bound:
            raise UsageError(
                f"gin: {name}.{parameter.name} is missing; set it in a gin file or by --gin_param"
            )
    for value in bound.values():
        for reference in _references(_without_macros(value)):
            inner = "/".join(reference.scopes)
            _require_all(reference.configurable.wrapped, inner, evaluated=reference.evaluate)


def _references(value: typing.Any) -> Iterator[gin.config.ConfigurableReference]:
    if isinstance(value, gin.config.ConfigurableReference):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _references(_without_macros(each))
