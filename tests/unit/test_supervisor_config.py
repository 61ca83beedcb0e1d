"""The supervisor reads the server's own variables, and leaves what is wrong in them to the server (R29)."""

from __future__ import annotations

import pytest
from reliability.supervisor_config import SupervisorConfig


def test_its_own_settings_and_those_of_the_server() -> None:
    variables = {
        "APP_WATCHDOG_MAX_RESTARTS": "3",
        "APP_WATCHDOG_CLEAN_EXIT": "Stop",
        "APP_TOOL_TIMEOUT_S": "90.5",
        "APP_WATCHDOG_TOOL_TIMEOUT_S": "1",
        "APP_WINDOW_S": "1",
    }
    config = SupervisorConfig.from_environment("APP_", variables)
    expected = {"max_restarts": 3, "clean_exit": "stop", "tool_timeout_s": 90.5}
    assert vars(config) == {**vars(SupervisorConfig()), **expected}


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf"])
def test_what_the_server_will_refuse_counts_as_nothing(text: str) -> None:
    assert SupervisorConfig.from_environment("", {"TOOL_TIMEOUT_S": text}).tool_timeout_s == 25.0
