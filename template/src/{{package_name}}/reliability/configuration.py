"""Reads the settings from the environment and explains what is wrong with them.

On pydantic alone, which the SDK brings: a library for settings would take longer to import than all of this package.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, SecretStr, ValidationError, ValidationInfo


class EnvironmentSettings(BaseModel):
    """Base of a class of settings: each field is read from the variable of its name, in upper case after the prefix.

    Subclasses set `env_prefix`. An empty variable counts as none; lists and mappings may be written as JSON.

    A secret, which is a field of the type `SecretStr`, may be in a file instead, whose path is in the variable with
    `_FILE` added: an environment is inherited by child processes and shown by `docker inspect`, a file is not.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, validate_default=False)

    env_prefix: ClassVar[str] = ""


CommaSeparated = Annotated[
    list[str],
    BeforeValidator(lambda v: [item.strip() for item in v.split(",") if item.strip()] if isinstance(v, str) else v),
]
"""A setting that is a list: `a.example.com, b.example.com`."""


def _one_without_sessions(count: int, others: ValidationInfo) -> int:
    if count > 1 and os.name != "posix":
        raise ValueError("there can be only one on this system")
    if count > 1 and not others.data.get("http_stateless", True):
        raise ValueError("a session lives in one process: with more than one HTTP_STATELESS must be true")
    return count


Workers = Annotated[int, AfterValidator(_one_without_sessions)]
"""A setting that is a number of processes; `http_stateless` is declared before it."""

LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], BeforeValidator(lambda v: v.lower() if isinstance(v, str) else v)
]
"""A setting that is a level of logging, in upper or lower case."""


LEAST_PER_MINUTE = 0.001


def _zero_or_enough(per_minute: float) -> float:
    if 0 < per_minute < LEAST_PER_MINUTE:
        raise ValueError(f"it must be 0, or at least {LEAST_PER_MINUTE:g}")
    return per_minute


RateOrNone = Annotated[float, AfterValidator(_zero_or_enough)]
"""A setting that is a number for each minute, where 0 is no limit."""


def at_most(other: str) -> AfterValidator:
    """Refuse a setting that is above the setting `other`, which is declared before it.

    A default is looked at only in a field with `validate_default=True`.
    """

    def check(value: float, others: ValidationInfo) -> float:
        limit = others.data.get(other)  # there is none where it is wrong itself
        if limit is not None and value > limit:
            raise ValueError(f"it must be at most {other.upper()}, which is {limit:g}")
        return value

    return AfterValidator(check)


def _web_address(text: str) -> str:
    if not re.fullmatch(r"https?://(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]]+)(:\d{1,5})?(/[^\s?#]*)?", text):
        raise ValueError("it must be like https://api.example.com/v1, without user, query and fragment")
    return text


WebAddress = Annotated[str, AfterValidator(_web_address)]
"""A setting that is the address of an HTTP service, to which paths are added."""


def _secure_address(text: str) -> str:
    if not re.match(r"https://|http://(localhost|127\.[\d.]+|\[::1\])(:|/|$)", text):
        raise ValueError("it must begin with https://, or be on this machine")
    return text


SecureAddress = Annotated[WebAddress, AfterValidator(_secure_address)]
"""A setting that is the address of a service whose answers are believed."""


def _address_ranges(texts: list[str]) -> list[str]:
    import ipaddress  # only where there are any: it would slow every start

    for text in texts:
        try:
            range_around = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{text!r} is neither an address nor a range of addresses, such as 10.0.0.0/8") from None
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise ValueError(f"{text!r} does not begin its range: write {range_around}") from None
    return texts


AddressRanges = Annotated[CommaSeparated, AfterValidator(_address_ranges)]
"""A setting that is a list of addresses and ranges of addresses."""


def _each(pattern: str, described: str) -> AfterValidator:
    def check(items: list[str]) -> list[str]:
        if wrong := [item for item in items if not re.fullmatch(pattern, item)]:
            raise ValueError(f"{wrong[0]!r} is not {described}")
        return items

    return AfterValidator(check)


Scopes = Annotated[CommaSeparated, _each(r"[\x21\x23-\x5b\x5d-\x7e]+", "a scope of OAuth")]
"""A setting that is a list of scopes."""

Algorithms = Annotated[CommaSeparated, _each(r"[RPE]S(256|384|512)|EdDSA", "signed with a public key, as RS256 is")]
"""A setting that is a list of algorithms that sign a token."""


_POSTGRES_URL = re.compile(
    r"postgres(?:ql)?://(?:[^/?#]*@)?(?:{host})?(?:,{host})*(?:[/?#]|$)".format(
        host=r"(?:\[[^\]@/]+\]|[^@/?#:,\[\]]+)(?::\d{1,5})?"
    )
)
"""Whoever forgets to encode a `/` in the password gets a host that is none."""


def _postgres_url(text: SecretStr) -> SecretStr:
    if not _POSTGRES_URL.match(text.get_secret_value()):
        raise ValueError("it must be like postgresql://user:password@host:5432/database")
    return text


PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]
"""A setting that is the address of a PostgreSQL database; it may hold a password."""


def _token(text: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]+", text.get_secret_value()):
        raise ValueError("it must be letters, digits and signs of ASCII, without spaces and line breaks")
    return text


Token = Annotated[SecretStr, AfterValidator(_token)]
"""A setting that is sent in a header, as proof of who asks."""

_SHORTEST_KEY = 32


def _request_state_keys(text: SecretStr) -> SecretStr:
    keys = split_keys(text)
    if not keys or any(len(key) < _SHORTEST_KEY for key in keys) or len(set(keys)) < len(keys):
        raise ValueError(
            f"it must be one or more different keys of at least {_SHORTEST_KEY} characters, separated by commas"
        )
    return text


RequestStateKeys = Annotated[SecretStr, AfterValidator(_request_state_keys)]
"""A setting that is a list of keys, the newest first; see `split_keys`."""


def split_keys(text: SecretStr) -> list[str]:
    """The keys of a setting that has several, so that a new one can be made known before it is used."""
    return [key.strip() for key in text.get_secret_value().split(",") if key.strip()]


def _user_path(path: Path) -> Path:
    if str(path) == ":memory:":
        raise ValueError("it must be a file")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("it begins with '~', and there is no such home directory") from None


UserPath = Annotated[Path, AfterValidator(_user_path)]
"""A setting that is a path; `~` is the home directory."""

UserPaths = Annotated[CommaSeparated, AfterValidator(lambda paths: [str(_user_path(Path(path))) for path in paths])]
"""A setting that is a list of such paths."""


def _chaos_plan(text: str, others: ValidationInfo) -> str:
    from .chaos import Chaos  # only where there is a plan: it would slow every start

    if Chaos.parse(text) is not None and others.data.get("environment", "production") == "production":
        raise ValueError("it is refused while ENVIRONMENT is 'production': set that to 'development' for a rehearsal")
    return text


ChaosPlan = Annotated[str, AfterValidator(_chaos_plan)]
"""A setting that is a plan of faults for `chaos`; refused where `environment`, declared before it, is production."""

SettingsT = TypeVar("SettingsT", bound=EnvironmentSettings)


class ConfigurationError(Exception):
    """The environment holds values the server cannot start with; one line for each."""


def load_settings(settings_class: type[SettingsT]) -> SettingsT:
    """The settings from the environment.

    Raises:
        ConfigurationError: A value is wrong; names the variable, the value and what is allowed.
    """
    try:
        return settings_class.model_validate({**_values(settings_class), **_secrets(settings_class)})
    except ValidationError as error:
        found = error.errors(include_url=False)
        lines = [_explain(settings_class, p["loc"], p["input"], p["msg"]) for p in found]
        raise ConfigurationError("\n".join(lines)) from None


def _environment() -> dict[str, str]:
    return {name.upper(): text for name, text in os.environ.items()}


def _values(settings_class: type[EnvironmentSettings]) -> dict[str, object]:
    """What the environment says, by the names of the fields."""
    environment = _environment()
    found: dict[str, object] = {}
    for name in settings_class.model_fields:
        if text := environment.get(settings_class.env_prefix + name.upper()):
            found[name] = _decoded(settings_class, name, text)
    return found


def _secrets(settings_class: type[EnvironmentSettings]) -> dict[str, str]:
    """What the files of secrets say, by the names of the fields."""
    environment = _environment()
    found: dict[str, str] = {}
    for name in _secret_names(settings_class):
        variable = settings_class.env_prefix + name.upper()
        if path := environment.get(variable + _FILE):
            if environment.get(variable):
                raise ConfigurationError(f"{variable} and {variable}{_FILE} are both set: leave one of them out.")
            found[name] = _secret(variable + _FILE, path)
    return found


def _secret_names(settings_class: type[EnvironmentSettings]) -> list[str]:
    """The fields whose values may be in files: all secrets, but no field whose variable is that of another one."""
    fields = settings_class.model_fields
    return [name for name, field in fields.items() if _is_secret(field.annotation) and f"{name}_file" not in fields]


def _is_secret(annotation: object) -> bool:
    return annotation is SecretStr or any(map(_is_secret, get_args(annotation)))


def _secret(variable: str, path: str) -> str:
    """The text of a file, without the end of its last line."""
    try:
        with open(path, encoding="utf-8-sig") as file:  # some editors begin a file with a mark
            text = file.read(_MAX_SECRET).rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(f"{variable}={path!r} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise ConfigurationError(f"{variable}={path!r} does not name a file of text.") from None
    if not text:
        raise ConfigurationError(f"{variable}={path!r} names an empty file.")
    return text


def _decoded(settings_class: type[EnvironmentSettings], name: str, text: str) -> object:
    if text[0] in "[{" and settings_class.model_json_schema()["properties"][name].get("type") in ("array", "object"):
        with suppress(ValueError):  # the field's own complaint is clearer
            return json.loads(text)
    return text


def unknown_variables(settings_class: type[EnvironmentSettings]) -> dict[str, str | None]:
    """Variables that carry the prefix but name no setting, each with the nearest setting: probably a typing error."""
    prefix = settings_class.env_prefix
    known = [name.upper() for name in settings_class.model_fields]
    known += [name.upper() + _FILE for name in _secret_names(settings_class)]
    names = {variable: variable.upper().removeprefix(prefix) for variable in sorted(os.environ)}
    strange = {v: n for v, n in names.items() if v.upper().startswith(prefix) and n not in known}
    return {variable: _nearest(name, known, prefix) for variable, name in strange.items()}


def _nearest(name: str, known: list[str], prefix: str) -> str | None:
    import difflib  # only where something is wrong: it would slow every start

    return next((prefix + found for found in difflib.get_close_matches(name, known, n=1)), None)


def _explain(
    settings_class: type[EnvironmentSettings], location: tuple[int | str, ...], value: object, reason: str
) -> str:
    name = str(location[0]) if location else ""
    variable = settings_class.env_prefix + name.upper()
    schema = settings_class.model_json_schema()["properties"].get(name, {})
    # "writeOnly" is how a schema marks a secret, and before "@" an address may hold one.
    shown = "(hidden)" if "writeOnly" in str(schema) or "@" in str(value) else repr(value)
    own_words = reason.removeprefix(_VALIDATOR).removesuffix(".")  # of a validator, without what pydantic adds
    allowed = next(filter(None, map(_allowed, [schema, *schema.get("anyOf", [])])), "")
    described = f"it must be {allowed}" if allowed and not reason.startswith(_VALIDATOR) else own_words
    return f"{variable}={shown} is not valid: {described}."


def _allowed(schema: dict[str, Any]) -> str:
    """What a field accepts, in words, from its JSON schema; empty when that does not say."""
    if choices := schema.get("enum"):
        return "one of " + ", ".join(map(str, choices))
    kind = _KINDS.get(schema.get("type", ""), "")
    bounds = [f"{words} {schema[key]:g}" for key, words in _BOUNDS.items() if kind and key in schema]
    return " ".join([kind, " and ".join(bounds)]).strip()


_FILE = "_FILE"
_MAX_SECRET = 65_536
_VALIDATOR = "Value error, "
_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list, written as JSON",
    "object": "a mapping, written as JSON",
}
_BOUNDS = {
    "exclusiveMinimum": "greater than",
    "minimum": "at least",
    "exclusiveMaximum": "less than",
    "maximum": "at most",
}
