"""What a server and whoever starts it must agree on. Imports nothing, because the supervisor is small."""

from __future__ import annotations

EXIT_CONFIGURATION = 2
"""The settings are wrong: starting again will not help."""
EXIT_MEMORY = 75
"""The process asks to be started again, because it has become too large (EX_TEMPFAIL: "try again")."""
HANG_FD = "MCP_SUPERVISOR_HANG_FD"
"""Environment variable: the supervisor's descriptor for the stacks of a hang, which tell it from a crash."""
RESTART_REQUEST = b"restart\n"
"""What a server writes there that has become too large: it is to be ended when nobody waits for it."""
