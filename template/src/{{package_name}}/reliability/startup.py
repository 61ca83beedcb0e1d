"""What happens between the start of the process and the first request."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from .configuration import ConfigurationError, EnvironmentSettings, load_settings, unknown_variables
from .hang_detection import report_crashes
from .logs import configure_logging
from .memory import freeze_startup_objects, return_memory_to_system
from .process_contract import EXIT_CONFIGURATION
from .shutdown import end_process

SettingsT = TypeVar("SettingsT", bound=EnvironmentSettings)
logger = logging.getLogger(__name__)


def prepare(name: str, settings_class: type[SettingsT]) -> SettingsT:
    """Read the settings and set up logging; `settings_class` has a field `log_level`.

    Ends the process with exit code 2 and one line per wrong setting on stderr.
    """
    report_crashes()
    return_memory_to_system()
    _detach_stdin()
    try:
        settings = load_settings(settings_class)
    except ConfigurationError as error:
        for line in str(error).splitlines():
            print(f"{name}: {line}", file=sys.stderr)  # noqa: T201 - for a person, before logging is set up
        raise SystemExit(EXIT_CONFIGURATION) from None
    configure_logging(getattr(settings, "log_level", "info"))
    for variable, nearest in unknown_variables(settings_class).items():
        logger.warning("unknown setting ignored", extra={"variable": variable, "did_you_mean": nearest})
    return settings


def _detach_stdin() -> None:
    """Child processes must not wait for what somebody types into a service's terminal (R8)."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


@contextmanager
def assembling() -> Iterator[None]:
    """Around the import and creation of the server: a failure is logged, and ends the process.

    The exit code is 2 for what the settings name and what is not as it should be, and 1 for everything else.
    """
    try:
        yield
    except ConfigurationError as error:
        logger.error("refused: %s", error)  # noqa: TRY400 - nobody needs the traceback
        end_process(EXIT_CONFIGURATION)
    except Exception:
        logger.exception("the server cannot start")
        end_process(1)
    freeze_startup_objects()
    gc.enable()
