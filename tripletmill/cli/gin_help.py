"""The gin parameters of a program, with their defaults, as its --help lists them.

The source files are parsed, not imported: importing TensorFlow or Apache Beam takes seconds.
"""

import ast
import functools
import importlib.util
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

HEADING = "gin parameters and their defaults, for --gin_file and --gin_param:"
NO_DEFAULT = "(no default)"


def source_and_gin_name(configurable: str) -> tuple[str, str]:
    """Splits "module:name" or "module:name as GIN_NAME" into "module:name" and the name in gin."""
    source, _, gin_name = configurable.partition(" as ")
    return source, gin_name or source.partition(":")[2]


def gin_help(configurables: Sequence[str], set_by_program: Sequence[str] = ()) -> str:
    """Lists the parameters of configurables, one group for each configurable.

    Args:
      configurables: functions and classes, see `source_and_gin_name`. Those of Keras are listed
        by name only.
      set_by_program: parameters such as "preprocess.runner" that the list leaves out.
    """
    groups, of_keras = [HEADING], []
    for each in configurables:
        source, name = source_and_gin_name(each)
        module, _, definition = source.partition(":")
        if module.partition(".")[0] == "keras":
            of_keras.append(name)
            continue
        lines = [
            f"  {name}.{parameter} = {default}"
            for parameter, default in _parameters(module, definition)
            if f"{name}.{parameter}" not in set_by_program
        ]
        groups.append("\n".join(lines))
    if of_keras:
        names = f"and, with the parameters that Keras gives them: {', '.join(of_keras)}"
        groups.append(textwrap.fill(names, 80, initial_indent="  ", subsequent_indent="  "))
    return "\n\n".join(groups) + "\n"


def _parameters(module: str, name: str) -> Iterator[tuple[str, str]]:
    """Yields each parameter of a function or class, and its default."""
    definition = _definition(_body(module), name)
    if isinstance(definition, ast.ClassDef):
        init = _definition(definition.body, "__init__")
        if init is None:  # a dataclass
            for node in definition.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    yield node.target.id, _shown(module, node.value)
            return
        definition = init
    assert isinstance(definition, ast.FunctionDef)
    arguments = definition.args
    num_required = len(arguments.args) - len(arguments.defaults)
    defaults = [*[None] * num_required, *arguments.defaults, *arguments.kw_defaults]
    for argument, default in zip(arguments.args + arguments.kwonlyargs, defaults, strict=True):
        if argument.arg != "self":
            yield argument.arg, _shown(module, default)


def _definition(body: Sequence[ast.stmt], name: str) -> ast.stmt | None:
    return next((node for node in body if getattr(node, "name", None) == name), None)


def _shown(module: str, default: ast.expr | None) -> str:
    """Returns a default as source code, with the value of a constant in place of its name."""
    if default is None:
        return NO_DEFAULT
    if isinstance(default, ast.Name):
        default = _constant(module, default.id) or default
    factories = [k.value for k in getattr(default, "keywords", ()) if k.arg == "default_factory"]
    if not factories:
        return ast.unparse(default)
    [factory] = factories  # dataclasses.field(default_factory=...)
    is_lambda = isinstance(factory, ast.Lambda)
    return ast.unparse(factory.body) if is_lambda else f"{ast.unparse(factory)}()"


def _constant(module: str, name: str) -> ast.expr | None:
    """Returns the value that a module, or the module that it imports the name from, assigns."""
    for node in _body(module):
        if isinstance(node, ast.ImportFrom) and node.module:
            if name in [alias.name for alias in node.names]:
                return _constant(node.module, name)
        elif isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=True))
            for assigned, constant in pairs:
                if ast.unparse(assigned) == name:
                    return constant
    return None


@functools.cache
def _body(module: str) -> list[ast.stmt]:
    spec = importlib.util.find_spec(module)
    assert spec
    assert spec.origin
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
