"""Settings as an operator gives them: from the environment or from files, with a sentence about what is wrong.

A secret may lie in a file named as its variable (`LOBEWISE_SIGNING_KEY`, in capitals or not) in the folder
`LOBEWISE_SECRETS_DIR`, by default `/run/secrets`: where Docker and Kubernetes put them. The environment goes first.
"""

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import AliasChoices, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from jobs.errors import SettingsError

SECRETS_VARIABLE: Final = "LOBEWISE_SECRETS_DIR"
SECRETS_DIR: Final = Path("/run/secrets")
OTHERS: Final = (SECRETS_VARIABLE, "LOBEWISE_SERVICE", "LOBEWISE_SUPERVISOR_PID", "LOBEWISE_DATA")
"""Variables of ours that are no settings of a process: of the client, of the command line, of the tests."""

GATEWAY: Final = "LOBEWISE_API_"
"""What the gateway's variables begin with."""

Settings = TypeVar("Settings", bound=BaseSettings)


@dataclass(frozen=True)
class Variable:
    """A setting, as the table of all settings shows it."""

    name: str
    default: str
    description: str
    is_secret: bool


def read_settings(kind: type[Settings], **given: Any) -> Settings:
    """The settings of a process; `given` ones go before the environment, which goes before files.

    Raises:
        SettingsError: a value is wrong; the sentence says which variable to set and to what.
    """
    folder = Path(os.environ.get(SECRETS_VARIABLE, SECRETS_DIR))
    if SECRETS_VARIABLE in os.environ and not folder.is_dir():
        raise SettingsError(f"{SECRETS_VARIABLE} is {str(folder)!r}: there is no such folder.")
    try:
        return kind(_secrets_dir=folder if folder.is_dir() else None, **given)
    except ValidationError as error:
        raise SettingsError(" ".join(_sentences(kind, error))) from error


def variables(kind: type[BaseSettings]) -> Iterator[Variable]:
    """Every variable that sets something of `kind`."""
    for name, field in kind.model_fields.items():
        secret = field.annotation in (SecretStr, SecretStr | None) or name == "redis_url"
        yield Variable(_variable(kind, name, field), _shown(field.default), field.description or "", secret)


def misspelt(kinds: tuple[type[BaseSettings], ...], environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence about each variable that looks like one of ours and is none.

    Of the gateway's, only a process that reads them has a say: workers and senders may get them with the same image, or
    the same ConfigMap.
    """
    foreign = () if any(kind.model_config.get("env_prefix") == GATEWAY for kind in kinds) else (GATEWAY,)
    known = [*OTHERS, *(variable.name for kind in kinds for variable in variables(kind))]
    sentences = []
    for name in sorted(environment):
        if name.startswith("LOBEWISE_") and name not in known and not name.startswith(foreign):
            near = difflib.get_close_matches(name, known, 1)
            sentences.append(f"{name} sets nothing." + (f" Do you mean {near[0]}?" if near else ""))
    return sentences


def _sentences(kind: type[BaseSettings], error: ValidationError) -> Iterator[str]:
    """Without the value where it may be a secret."""
    named = {variable.name: variable for variable in variables(kind)}
    for fault in error.errors(include_url=False):
        message = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:  # of several values together
            yield f"{message}."
            continue
        variable = named[_name_of(kind, str(fault["loc"][0]))]
        value = "" if variable.is_secret else f" is {fault['input']!r}"
        meaning = f" ({variable.description})" if variable.description else ""
        yield f"{variable.name}{value}: {message[0].lower()}{message[1:]}{meaning}."


def _name_of(kind: type[BaseSettings], location: str) -> str:
    """pydantic names a field or, where it has one, an alias."""
    field = kind.model_fields.get(location)
    if field is not None:
        return _variable(kind, location, field)
    return next(
        _variable(kind, name, field) for name, field in kind.model_fields.items() if location in _aliases(field)
    )


def _variable(kind: type[BaseSettings], name: str, field: FieldInfo) -> str:
    aliases = _aliases(field)
    return aliases[0] if aliases else f"{kind.model_config.get('env_prefix', '')}{name}".upper()


def _aliases(field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []


def _shown(default: object) -> str:
    if default is None or default in ((), ""):
        return ""
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
