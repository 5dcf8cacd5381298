"""How large a spec and its parts may be, and what outside the broker sets each bound."""

from __future__ import annotations

from typing import Final

MAX_DOCUMENT_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32
MAX_PROBLEMS: Final = 100

MAX_COMPONENTS: Final = 5_000
"""Half of Slurm's default `MaxJobCount` (10,000). A join of all of them fits Slurm's dependency string:
`afterok` and `:` + 10 digits for each parent stay below `MAX_DEPENDENCY_BYTES`."""
MAX_EDGES: Final = 50_000
MAX_DEPENDENCY_BYTES: Final = 128 << 10
"""Of one `--dependency`: Slurm's limit, and Linux's for one argument (`MAX_ARG_STRLEN`)."""
MAX_SCRIPT_BYTES: Final = 4_000_000
"""Slurm's `max_script_size` (slurm.conf(5), SchedulerParameters) is 4 MB unless a site lowers it."""

MAX_TEXT_BYTES: Final = 64 << 10
"""Of any one text, as UTF-8: environment variables and arguments end at 128 KiB (`MAX_ARG_STRLEN`)."""
MAX_ENV_BYTES: Final = 256 << 10
MAX_PARAMS_BYTES: Final = 256 << 10
MAX_ARGUMENTS_BYTES: Final = 256 << 10
"""Environment, params and arguments together stay below Linux's 2 MiB for one `execve(2)`."""
MAX_ENV_VARS: Final = 1_000
MAX_PARAMS: Final = 1_000
MAX_ARGUMENTS: Final = 1_000

MAX_NAME_CHARS: Final = 128
MAX_PATH_CHARS: Final = 1_024
MAX_GPUS: Final = 4_096
MAX_CPUS: Final = 1_000_000
MAX_NODES: Final = 1_024
MAX_MEMORY_MIB: Final = 1 << 30
MAX_TIME_S: Final = 366 * 86_400
