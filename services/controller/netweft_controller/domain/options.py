"""Driver options: checked against what the driver says it takes, kept under the driver's own names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from netweft_controller.domain import fields
from netweft_controller.domain.objects import DriverInfo, OptionInfo

_TRUE = frozenset({"1", "t", "true", "yes", "on"})
_FALSE = frozenset({"0", "f", "false", "no", "off"})
_VALUE_MAX_BYTES = 4096


def check(values: Mapping[str, str], driver: DriverInfo, field: str = "options") -> dict[str, str]:
    """Return options in canonical form: the driver's name for each, bools as true and false, ints in decimal.

    Raises:
        InvalidArgument: An option is unknown (the message lists the known ones), given twice under two names, or not
            of its type, range, choices or pattern.
    """
    fields.count(values, fields.OPTIONS_MAX, field)
    known = {name: option for option in driver.options for name in (option.name, *option.aliases)}
    result: dict[str, str] = {}
    for key, value in values.items():
        path = f"{field}[{key[:80]!r}]"
        option = known.get(key)
        if option is None:
            raise fields.invalid(
                path,
                f"driver {driver.name} has no such option; it takes {_list(o.name for o in driver.options)}",
                "OPTION_UNKNOWN",
            )
        if option.name in result:
            raise fields.invalid(path, f"option {option.name} is given twice, under two names", "OPTION_TWICE")
        result[option.name] = _value(option, value, path)
    return result


def _value(option: OptionInfo, value: str, path: str) -> str:
    if len(value.encode()) > _VALUE_MAX_BYTES:
        raise fields.invalid(path, f"the value has more than {_VALUE_MAX_BYTES} bytes", "OPTION_MALFORMED")
    if option.type == "bool":
        return _bool(value, path)
    if option.type == "int":
        return _int(option, value, path)
    if value == option.default_value:
        return value  # though it has another form: an empty one means that there is none
    if option.choices and value not in option.choices:
        raise fields.invalid(path, f"{value!r} is none of {_list(option.choices)}", "OPTION_MALFORMED")
    if option.pattern and not re.fullmatch(option.pattern, value):
        raise fields.invalid(
            path, f"{value!r} does not match {option.pattern} ({option.description})", "OPTION_MALFORMED"
        )
    return value


def _bool(value: str, path: str) -> str:
    word = value.strip().lower()
    if word in _TRUE:
        return "true"
    if word in _FALSE:
        return "false"
    raise fields.invalid(path, f"{value!r} is neither true nor false", "OPTION_MALFORMED")


def _int(option: OptionInfo, value: str, path: str) -> str:
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", value.strip()):
        raise fields.invalid(path, f"{value!r} is not a whole number", "OPTION_MALFORMED")
    number = int(value)
    if option.maximum != option.minimum and not option.minimum <= number <= option.maximum:
        raise fields.invalid(
            path, f"{number} is not between {option.minimum} and {option.maximum}", "OPTION_OUT_OF_RANGE"
        )
    return str(number)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
