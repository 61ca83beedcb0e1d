"""Settings from the environment: one clear sentence for each wrong value, and no secret in it."""

from __future__ import annotations

import os
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, SecretStr
from reliability import configuration
from reliability.configuration import (
    AddressRanges,
    Algorithms,
    ChaosPlan,
    CommaSeparated,
    ConfigurationError,
    EnvironmentSettings,
    PostgresUrl,
    RateOrNone,
    RequestStateKeys,
    Scopes,
    SecureAddress,
    Token,
    UserPath,
    UserPaths,
    WebAddress,
    Workers,
    at_most,
    load_settings,
    split_keys,
    unknown_variables,
)

if TYPE_CHECKING:
    from pathlib import Path

LIKE_AN_ADDRESS = "it must be like https://api.example.com/v1, without user, query and fragment"


class Settings(EnvironmentSettings):
    env_prefix: ClassVar[str] = "MY_SERVER_"

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    tool_timeout_s: float = Field(25, gt=0, le=3600)
    max_calls: int = Field(32, ge=1, le=10_000)
    queue: int | None = None
    stateless: bool = True
    http_stateless: bool = True
    http_workers: Workers = Field(1, ge=1, le=64)
    allowed_hosts: CommaSeparated = Field(default=[])
    tags: list[str] = Field(default=[])
    api_key: SecretStr = Field(default=SecretStr("x" * 20), min_length=8)
    other_key: SecretStr | None = Field(default=None, min_length=8)
    api_url: WebAddress = "https://api.example.com"
    database_url: PostgresUrl = SecretStr("postgresql://localhost/x")
    token: Token | None = None
    keys: RequestStateKeys | None = None
    file: UserPath | None = None
    roots: UserPaths = Field(default=[])
    window: int = Field(10, ge=1, le=100)
    minimum: Annotated[int, at_most("window")] = Field(5, ge=1, le=100, validate_default=True)
    environment: Literal["development", "production"] = "production"
    chaos: ChaosPlan = ""
    issuer: SecureAddress | None = None
    proxies: AddressRanges = Field(default=[])
    rate: RateOrNone = Field(6000, ge=0)
    scopes: Scopes = Field(default=[])
    algorithms: Algorithms = Field(default=["RS256"])


def complaints(monkeypatch: pytest.MonkeyPatch, **values: str) -> list[str]:
    for name, value in values.items():
        monkeypatch.setenv(f"MY_SERVER_{name}", value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(Settings)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("address", ["http://localhost:80", "https://a.example.com/v1/", "http://[::1]:8080"])
def test_an_address_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MY_SERVER_API_URL", address)
    assert load_settings(Settings).api_url == address


@pytest.mark.parametrize(
    "address", ["a.example.com", "ftp://x", "https://", "https://a?b", "https://a/#b", "https://a b"]
)
def test_what_is_no_address_is_refused_with_an_example(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert complaints(monkeypatch, API_URL=address) == [
        f"MY_SERVER_API_URL={address!r} is not valid: {LIKE_AN_ADDRESS}."
    ]


@pytest.mark.parametrize(
    "address",
    ["https://a.example", "http://localhost", "http://localhost:9/x", "http://127.0.0.1:9", "http://[::1]:9/"],
)
def test_r70_who_is_believed_speaks_over_tls_or_from_this_machine(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("MY_SERVER_ISSUER", address)
    assert load_settings(Settings).issuer == address


@pytest.mark.parametrize(
    "address", ["http://a.example", "http://localhost.evil.example", "http://127.0.0.1.evil.example"]
)
def test_r70_anybody_else_is_not(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert complaints(monkeypatch, ISSUER=address) == [
        f"MY_SERVER_ISSUER={address!r} is not valid: it must begin with https://, or be on this machine."
    ]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"PROXIES": "10.0.0.0/8, *"}, "'*' is neither an address nor a range of addresses, such as 10.0.0.0/8"),
        ({"PROXIES": "10.0.0.1/8"}, "'10.0.0.1/8' does not begin its range: write 10.0.0.0/8"),
        ({"PROXIES": "fd00::1/64"}, "'fd00::1/64' does not begin its range: write fd00::/64"),
        ({"RATE": "0.0005"}, "it must be 0, or at least 0.001"),
        ({"SCOPES": 'a, b"c'}, "'b\"c' is not a scope of OAuth"),
        ({"SCOPES": "a b"}, "'a b' is not a scope of OAuth"),
        ({"ALGORITHMS": "RS256, none"}, "'none' is not signed with a public key, as RS256 is"),
        ({"ALGORITHMS": "HS256"}, "'HS256' is not signed with a public key, as RS256 is"),
    ],
)
def test_r70_what_is_wrong_about_authentication_is_told(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], told: str
) -> None:
    ((name, value),) = values.items()
    assert complaints(monkeypatch, **values) == [f"MY_SERVER_{name}={value!r} is not valid: {told}."]


def test_lists_of_authentication_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"PROXIES": "10.0.0.0/8,fd00::1", "SCOPES": "read, mcp:write", "ALGORITHMS": "ES256,EdDSA"}
    for name, value in values.items():
        monkeypatch.setenv(f"MY_SERVER_{name}", value)
    read = load_settings(Settings)
    assert (read.proxies, read.scopes) == (["10.0.0.0/8", "fd00::1"], ["read", "mcp:write"])
    assert read.algorithms == ["ES256", "EdDSA"]


@pytest.mark.parametrize("token", [" ", "two words", "line\nbreak", "caf\u00e9"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    sentence = "it must be letters, digits and signs of ASCII, without spaces and line breaks"
    assert complaints(monkeypatch, TOKEN=token) == [f"MY_SERVER_TOKEN=(hidden) is not valid: {sentence}."]


def test_keys_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVER_KEYS", f"{'a' * 32}, {'b' * 40},")
    keys = load_settings(Settings).keys
    assert keys is not None
    assert split_keys(keys) == ["a" * 32, "b" * 40]


@pytest.mark.parametrize("keys", [",", "a" * 31, f"{'a' * 32},short", f"{'a' * 32},{'a' * 32}"])
def test_keys_that_are_short_or_twice_the_same_are_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, keys: str
) -> None:
    sentence = "it must be one or more different keys of at least 32 characters, separated by commas"
    assert complaints(monkeypatch, KEYS=keys) == [f"MY_SERVER_KEYS=(hidden) is not valid: {sentence}."]


def test_a_path_may_begin_with_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MY_SERVER_FILE", "~/a.db")
    monkeypatch.setenv("MY_SERVER_ROOTS", "~, /srv")
    settings = load_settings(Settings)
    assert (settings.file, settings.roots) == (tmp_path / "a.db", [str(tmp_path), "/srv"])


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("FILE", "~nobody-has-this-name/a.db", "it begins with '~', and there is no such home directory"),
        ("FILE", ":memory:", "it must be a file"),
        ("ROOTS", "/srv,~nobody-has-this-name", "it begins with '~', and there is no such home directory"),
    ],
)
def test_a_path_that_cannot_be_one_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str) -> None:
    assert complaints(monkeypatch, **{name: value}) == [f"MY_SERVER_{name}={value!r} is not valid: {why}."]


@pytest.mark.parametrize(
    ("values", "sentences"),
    [
        ({"MINIMUM": "10"}, []),
        ({"MINIMUM": "11"}, ["MINIMUM='11' is not valid: it must be at most WINDOW, which is 10."]),
        ({"WINDOW": "4"}, ["MINIMUM=5 is not valid: it must be at most WINDOW, which is 4."]),
        ({"MINIMUM": "0"}, ["MINIMUM='0' is not valid: it must be a whole number at least 1 and at most 100."]),
        ({"WINDOW": "x"}, ["WINDOW='x' is not valid: it must be a whole number at least 1 and at most 100."]),
    ],
)
def test_a_setting_may_be_bounded_by_another(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], sentences: list[str]
) -> None:
    if sentences:
        assert complaints(monkeypatch, **values) == [f"MY_SERVER_{sentence}" for sentence in sentences]
    else:
        monkeypatch.setenv("MY_SERVER_MINIMUM", values["MINIMUM"])
        assert load_settings(Settings).minimum == 10


def test_several_processes_keep_no_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVER_HTTP_STATELESS", "false")
    assert load_settings(Settings).http_workers == 1
    (complaint,) = complaints(monkeypatch, HTTP_WORKERS="2")
    assert complaint.startswith("MY_SERVER_HTTP_WORKERS='2' is not valid: a session lives in one process")
    monkeypatch.delenv("MY_SERVER_HTTP_STATELESS")
    assert load_settings(Settings).http_workers == 2
    monkeypatch.setattr(configuration, "os", SimpleNamespace(name="nt", environ=os.environ))
    assert complaints(monkeypatch, HTTP_WORKERS="2")[0].endswith("there can be only one on this system.")


@pytest.mark.parametrize(
    "address",
    [
        *("postgresql://localhost/x", "postgres://u:p%2Fw@[::1]:5432/x", "postgresql:///x?host=/run/postgresql"),
        *("postgresql://u:p@w@a,b:5433/x?target_session_attrs=primary", "postgresql://"),
    ],
)
def test_the_address_of_a_database_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MY_SERVER_DATABASE_URL", address)
    assert load_settings(Settings).database_url.get_secret_value() == address


@pytest.mark.parametrize("address", ["postgresql://u:p@h:port/x", "postgresql://u:hunter/2@h/x", "postgresql://["])
def test_what_is_no_address_of_a_database_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert complaints(monkeypatch, DATABASE_URL=address) == [
        "MY_SERVER_DATABASE_URL=(hidden) is not valid: it must be like postgresql://user:password@host:5432/database."
    ]


def test_no_address_shows_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = complaints(
        monkeypatch, API_URL="https://me:hunter2@a.example.com", DATABASE_URL="mysql://me:hunter2@host/x"
    )
    assert lines == [
        f"MY_SERVER_API_URL=(hidden) is not valid: {LIKE_AN_ADDRESS}.",
        "MY_SERVER_DATABASE_URL=(hidden) is not valid: it must be like postgresql://user:password@host:5432/database.",
    ]


def test_faults_are_refused_in_production_by_the_name_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "it is refused while ENVIRONMENT is 'production': set that to 'development' for a rehearsal"
    assert complaints(monkeypatch, CHAOS="api: error") == [f"MY_SERVER_CHAOS='api: error' is not valid: {sentence}."]
    monkeypatch.setenv("MY_SERVER_ENVIRONMENT", "development")
    assert load_settings(Settings).chaos == "api: error"


@pytest.mark.parametrize("plan", ["", " ; "])
def test_a_plan_without_faults_may_be_set_in_production(monkeypatch: pytest.MonkeyPatch, plan: str) -> None:
    monkeypatch.setenv("MY_SERVER_CHAOS", plan)
    assert load_settings(Settings).environment == "production"


def test_without_variables_the_defaults_apply() -> None:
    assert load_settings(Settings).tool_timeout_s == 25


def test_an_empty_variable_is_like_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVER_TOOL_TIMEOUT_S", "")
    assert load_settings(Settings).tool_timeout_s == 25


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("LOG_LEVEL", "loud", "'loud' is not valid: it must be one of debug, info, warning, error."),
        ("TOOL_TIMEOUT_S", "0", "'0' is not valid: it must be a number greater than 0 and at most 3600."),
        ("TOOL_TIMEOUT_S", "soon", "'soon' is not valid: it must be a number greater than 0 and at most 3600."),
        ("TOOL_TIMEOUT_S", "nan", "'nan' is not valid: it must be a number greater than 0 and at most 3600."),
        ("MAX_CALLS", "1.5", "'1.5' is not valid: it must be a whole number at least 1 and at most 10000."),
        ("STATELESS", "maybe", "'maybe' is not valid: it must be true or false."),
        ("QUEUE", "x", "'x' is not valid: it must be a whole number."),
    ],
)
def test_a_wrong_value_is_explained_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    assert complaints(monkeypatch, **{name: value}) == [f"MY_SERVER_{name}={sentence}"]


def test_every_wrong_value_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = complaints(monkeypatch, LOG_LEVEL="loud", MAX_CALLS="0", STATELESS="maybe")
    assert [line.partition("=")[0] for line in lines] == [
        "MY_SERVER_LOG_LEVEL",
        "MY_SERVER_MAX_CALLS",
        "MY_SERVER_STATELESS",
    ]


@pytest.mark.parametrize("name", ["API_KEY", "OTHER_KEY"])
def test_r6_a_secret_is_not_shown_even_when_it_is_wrong(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (line,) = complaints(monkeypatch, **{name: "hunter2"})
    assert "hunter2" not in line
    assert line.startswith(f"MY_SERVER_{name}=(hidden) is not valid: ")


def test_a_list_that_is_not_json_is_explained_too(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = complaints(monkeypatch, TAGS="a,b")
    assert line == "MY_SERVER_TAGS='a,b' is not valid: it must be a list, written as JSON."


@given(value=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_value_makes_anything_but_a_sentence(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    for name in Settings.model_fields:
        with monkeypatch.context() as patch:
            patch.setenv(f"MY_SERVER_{name.upper()}", value)
            try:
                load_settings(Settings)
            except ConfigurationError as error:
                line = str(error)
                assert line.endswith(".")
                assert "\n" not in line
                assert not re.search("must be Input should|pydantic", line)


@pytest.mark.parametrize(
    ("value", "items"),
    [("a", ["a"]), (" a.example.com , b:80,, ", ["a.example.com", "b:80"]), (",", []), ('["a"]', ["a"])],
)
def test_a_list_is_written_with_commas(monkeypatch: pytest.MonkeyPatch, value: str, items: list[str]) -> None:
    monkeypatch.setenv("MY_SERVER_ALLOWED_HOSTS", value)
    assert load_settings(Settings).allowed_hosts == items


def test_a_variable_that_names_no_setting_is_found_with_the_nearest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVER_LOG_LEVLE", "info")
    monkeypatch.setenv("MY_SERVER_XYZZY", "1")
    monkeypatch.setenv("MY_SERVER_MAX_CALLS", "1")
    monkeypatch.setenv("MY_SERVICE_MAX_CALLS", "1")
    assert unknown_variables(Settings) == {"MY_SERVER_LOG_LEVLE": "MY_SERVER_LOG_LEVEL", "MY_SERVER_XYZZY": None}


def test_lower_case_variables_are_settings_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("my_server_max_calls", "7")
    assert load_settings(Settings).max_calls == 7
    assert unknown_variables(Settings) == {}


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("name", ["API_KEY", "OTHER_KEY", "TOKEN"])
def test_a_secret_may_be_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, end: str) -> None:
    (tmp_path / "secret").write_bytes(f"hunter2-hunter2{end}".encode())
    monkeypatch.setenv(f"MY_SERVER_{name}_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv(f"MY_SERVER_{name}", "")
    secret = getattr(load_settings(Settings), name.lower())
    assert secret.get_secret_value() == "hunter2-hunter2"
    assert unknown_variables(Settings) == {}


def test_a_mark_at_the_beginning_of_the_file_is_no_part_of_a_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"\xef\xbb\xbfhunter2-hunter2")
    monkeypatch.setenv("MY_SERVER_TOKEN_FILE", str(tmp_path / "secret"))
    assert load_settings(Settings).token == SecretStr("hunter2-hunter2")


def test_what_is_wrong_in_a_file_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mysql://me:hunter2@host/x\n")
    assert complaints(monkeypatch, DATABASE_URL_FILE=str(tmp_path / "secret")) == [
        "MY_SERVER_DATABASE_URL=(hidden) is not valid: it must be like postgresql://user:password@host:5432/database."
    ]


def test_a_secret_is_at_one_place_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert complaints(monkeypatch, TOKEN="a", TOKEN_FILE="b") == [
        "MY_SERVER_TOKEN and MY_SERVER_TOKEN_FILE are both set: leave one of them out."
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read: No such file or directory."),
        (b"\n", "names an empty file."),
        (b"\xff\xfe", "does not name a file of text."),
    ],
)
def test_a_file_that_holds_no_secret_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, why: str
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    assert complaints(monkeypatch, TOKEN_FILE=str(path)) == [f"MY_SERVER_TOKEN_FILE={str(path)!r} {why}"]


def test_only_secrets_may_be_in_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_SERVER_LOG_LEVEL_FILE", str(tmp_path / "none"))
    assert load_settings(Settings).log_level == "info"
    assert "MY_SERVER_LOG_LEVEL_FILE" in unknown_variables(Settings)


def test_a_setting_of_that_name_is_not_taken_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(EnvironmentSettings):
        env_prefix: ClassVar[str] = "MY_SERVER_"

        key: SecretStr | None = None
        key_file: str = ""

    monkeypatch.setenv("MY_SERVER_KEY_FILE", "/run/key")
    assert load_settings(Other).model_dump() == {"key": None, "key_file": "/run/key"}
