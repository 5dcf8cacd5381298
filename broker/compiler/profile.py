"""What the compiler is told: the cluster, the run, and what images and code were resolved to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from broker.errors import ConfigurationError

_SAFE_PATH = re.compile(r"/[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*/?", re.ASCII)
_SAFE_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_ENV = re.compile(r"[a-z0-9]{1,12}", re.ASCII)

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_TIME_S = 3600
DEFAULT_TENANT = "default"
"""The tenant of those who belong to none: it has no Slurm account of its own."""


@dataclass(frozen=True, slots=True)
class ClassProfile:
    """A priority class on one cluster: its QOS, and how long one start of a job may take (None: any time).

    A component that asks for longer goes on in further starts, from its checkpoint.
    """

    qos: str
    max_wall_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterProfile:
    """How jobs are asked for on one cluster. Sizes in seconds and CPUs; None leaves it to Slurm's default.

    `gpu_types` maps types in specs to GRES types (default: lower case). A component that names no CPUs gets
    `cpus_per_gpu` for each GPU where that is set, else `default_cpus`. A tenant's name is its Slurm account,
    but for the tenant `default`, whose jobs go to `account`. `classes` by priority class; without any, jobs
    go to `qos` whatever their class. Every `gpu_sample_s` a job writes down how busy its GPUs are (0: never).
    Paths hold only characters that need no quoting anywhere: not in Slurm's file name patterns, Apptainer's
    bind lists or JSON.
    """

    name: str
    env: str = "dev"
    base_path: str = "/cluster/ml-jobs"
    image_dir: str = "/cluster/images"
    registry_mirrors: Mapping[str, str] = field(default_factory=dict)
    gpu_types: Mapping[str, str] = field(default_factory=dict)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    classes: Mapping[str, ClassProfile] = field(default_factory=dict)
    max_wall_s: int | None = None
    max_time_s: int | None = None
    default_cpus: int = 1
    cpus_per_gpu: int = 0
    signal_before_s: int = 120
    gpu_sample_s: int = 0
    path: str = DEFAULT_PATH
    apptainer: str = "apptainer"

    def __post_init__(self) -> None:
        for setting in ("base_path", "image_dir"):
            _require(
                _SAFE_PATH, setting, getattr(self, setting), "an absolute path of letters, digits, . _ - /"
            )
        for setting in ("partition", "account", "qos"):
            if (value := getattr(self, setting)) is not None:
                _require(_SAFE_WORD, setting, value, "letters, digits, . _ -")
        for one in self.classes.values():
            _require(_SAFE_WORD, "classes", one.qos, "letters, digits, . _ -")
        for kind in self.gpu_types.values():
            _require(_SAFE_WORD, "gpu_types", kind, "letters, digits, . _ -")
        _require(_ENV, "env", self.env, "1 to 12 lower-case letters or digits")

    def for_run(self, tenant: str, priority_class: str) -> ClusterProfile:
        """The profile with the account, the QOS and the time limit of one start that a run has here."""
        account = self.account if tenant == DEFAULT_TENANT else tenant
        if not self.classes:
            return replace(self, account=account)
        if priority_class not in self.classes:
            known = ", ".join(self.classes)
            raise ConfigurationError(f"{self.name} has no priority class {priority_class!r}; it has: {known}")
        found = self.classes[priority_class]
        return replace(self, account=account, qos=found.qos, max_wall_s=found.max_wall_s)

    def gres_type(self, gpu_type: str) -> str:
        """Give Slurm's name of a GPU type."""
        return self.gpu_types.get(gpu_type, gpu_type.lower())


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Which run is compiled: its id, its number (in names people read), the attempt, whose it is and how
    much it hurries. `nice` (sbatch(1)) is no part of what is approved: an admin may move a run.
    """

    run_id: str
    number: int
    attempt: int
    tenant: str
    user: str
    kind: Literal["normal", "test"] = "normal"
    priority_class: str = "training"
    nice: int = 0

    def __post_init__(self) -> None:
        _require(_SAFE_WORD, "run_id", self.run_id, "letters, digits, . _ -")


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """An image as it lies on the cluster: absolute path of the SIF file, and the digest it was pulled by."""

    sif: str
    digest: str


@dataclass(frozen=True, slots=True)
class ResolvedCode:
    """What a component's code is, exactly.

    git: `location` is the URL, `digest` the commit (hex). upload: the archive's absolute path on the cluster
    and its `sha256:…`. path: the folder's real path and the `sha256:…` of its tree (`tree_digest_argv`).
    """

    source: Literal["git", "upload", "path"]
    location: str
    digest: str


def _require(pattern: re.Pattern[str], name: str, value: str, form: str) -> None:
    if not pattern.fullmatch(value):
        raise ConfigurationError(f"{name} can't be {value!r}; write {form}")
