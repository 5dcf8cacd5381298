"""From a spec to what will be submitted: one job for each component, in topological order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Final

from broker.compiler.names import (
    CONTROL,
    GPU_SAMPLE_FIELDS,
    GPU_SAMPLES_BYTES,
    control_dir,
    job_name,
    run_dir,
)
from broker.compiler.profile import ClusterProfile, ResolvedCode, ResolvedImage, RunIdentity
from broker.compiler.render import as_argument, render
from broker.compiler.sbatch_args import WARNED_EARLY_S, cpus_per_node, job_args, start_limit, time_limit
from broker.errors import Problem
from broker.spec.canonical import canonical_json, digest
from broker.spec.codes import Code
from broker.spec.graph import parents as parents_of
from broker.spec.limits import MAX_SCRIPT_BYTES
from broker.spec.models import Component, PipelineSpec
from broker.spec.parse import invalid
from broker.spec.quantities import format_time
from broker.spec.text import pointer
from broker.spec.warnings import GPU_VARIABLES, is_reserved

SETUP_FAILED: Final = 125
"""Exit code of a job whose program was never started (its inputs, code or directories could not be had), or
whose good end could not be written down."""

_PASSED_ON: Final = (
    *(name for name in GPU_VARIABLES if name != "NVIDIA_VISIBLE_DEVICES"),
    "SLURM_CPUS_PER_TASK",
    "SLURM_GPUS_ON_NODE",
    "SLURM_JOB_GPUS",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_LOCALID",
    "SLURM_MEM_PER_NODE",
    "SLURM_NNODES",
    "SLURM_NODEID",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_STEP_GPUS",
)
"""What a container learns of Slurm: which GPUs it has and which of how many tasks it is."""

_INTERPRETERS: Final = {".py": "python3", ".sh": "bash"}
_WITH_REQUIREMENTS: Final = (
    "if [ -f requirements.txt ]; then"
    " python3 -m pip install --user --no-input --disable-pip-version-check -r requirements.txt || exit; "
    'fi; exec "$@"'
)
"""Run inside the container, in the code's folder. pip's user site lies in the container's home, which is the
attempt's scratch: packages of the image are used where they suffice, and nothing outlives the attempt."""


@dataclass(frozen=True)
class CompiledJob:
    """One component, ready to submit.

    `depends_on`: components of this plan it waits for. `satisfied`: (component, directory of its outputs) of
    those that are not run again. `sbatch_args`: all of them but `--hold`, `--dependency` and the script.
    `files`: what to stage, by path relative to the run directory.
    """

    component: str
    name: str
    depends_on: tuple[str, ...]
    satisfied: tuple[tuple[str, str], ...]
    sbatch_args: tuple[str, ...]
    script: str
    script_path: str
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def attempt(self) -> int:
        """The attempt this was compiled for."""
        return int(PurePosixPath(self.script_path).parent.name)


@dataclass(frozen=True)
class Plan:
    """All jobs of one attempt, parents first; `plan_hash` is of what they do, whichever run it is for."""

    run_dir: str
    jobs: tuple[CompiledJob, ...]
    plan_hash: str

    @cached_property
    def attempt(self) -> int:
        """The attempt this was compiled for."""
        return self.jobs[0].attempt


def compile_run(
    spec: PipelineSpec,
    profile: ClusterProfile,
    identity: RunIdentity,
    images: Mapping[str, ResolvedImage],
    only: Set[str] | None = None,
    upstream_outputs: Mapping[str, str] | None = None,
    code: Mapping[str, ResolvedCode] | None = None,
) -> Plan:
    """Compile a run, or the components `only` of it for a retry.

    `images` by the spec's `image.reference`, `code` by component. Edges from components outside `only` are
    satisfied: `upstream_outputs` says where their outputs lie. The hash is always that of the whole pipeline,
    so that a retry's equals its run's; pass the images of all components for that.
    Raises `InvalidSpec` for what the cluster can't run, or what was not resolved.
    """
    compiler = _Compiler(spec, profile, identity, images, upstream_outputs or {}, code or {})
    wanted = {component.name for component in spec.components} if only is None else set(only)
    return compiler.plan(wanted)


class _Compiler:
    """The state of one compilation: what all components share is worked out once."""

    def __init__(
        self,
        spec: PipelineSpec,
        profile: ClusterProfile,
        identity: RunIdentity,
        images: Mapping[str, ResolvedImage],
        outputs: Mapping[str, str],
        code: Mapping[str, ResolvedCode],
    ) -> None:
        self._spec, self._identity = spec, identity
        self._profile = profile = profile.for_run(identity.tenant, identity.priority_class)
        self._images, self._outputs, self._code = images, outputs, code
        self._run_dir = run_dir(profile, identity.run_id)
        self._parents = parents_of(spec)
        self._env = [(name, value) for name, value in sorted(spec.env_vars.items()) if not is_reserved(name)]

    def plan(self, wanted: set[str]) -> Plan:
        problems = list(self._problems(wanted))
        if problems:
            raise invalid(problems)
        components = {component.name: component for component in self._spec.components}
        bodies = {name: self._body(component) for name, component in components.items()}
        jobs = [self._job(components[name], bodies[name], wanted) for name in self._parents if name in wanted]
        too_large = [job for job in jobs if len(job.script.encode()) > MAX_SCRIPT_BYTES]
        if too_large:
            raise invalid(
                [self._problem(components[job.component], Code.SCRIPT_TOO_LARGE) for job in too_large]
            )
        return Plan(self._run_dir, tuple(jobs), self._hash(bodies))

    def _problems(self, wanted: set[str]) -> Iterator[Problem]:
        limit = self._profile.max_time_s
        for component in self._spec.components:
            if component.name not in wanted:
                continue
            if limit is not None and time_limit(component.resources) > limit:
                yield self._problem(component, Code.TIME_OVER_LIMIT)
            if component.image.reference not in self._images:
                yield self._problem(component, Code.IMAGE_NOT_RESOLVED)
            if component.code is not None and component.name not in self._code:
                yield self._problem(component, Code.CODE_NOT_RESOLVED)

    def _problem(self, component: Component, code: Code) -> Problem:
        name, limit = component.name, format_time(self._profile.max_time_s or 0)
        field_name, detail = {
            Code.TIME_OVER_LIMIT: (
                "resources/time",
                f"{name} asks for more than the cluster's {limit}; ask for less",
            ),
            Code.IMAGE_NOT_RESOLVED: (
                "image",
                f"the image of {name} was not found on the cluster; try again",
            ),
            Code.CODE_NOT_RESOLVED: ("code", f"the code of {name} was not resolved to a commit or checksum"),
            Code.SCRIPT_TOO_LARGE: (
                "",
                f"the script of {name} is too large for Slurm; keep params and env small",
            ),
        }[code]
        index = next(i for i, other in enumerate(self._spec.components) if other.name == name)
        return Problem(pointer(("components", index, *filter(None, field_name.split("/")))), code, detail)

    def _body(self, component: Component) -> str:
        """The script without what differs between runs."""
        code = self._code.get(component.name)
        image = self._images.get(component.image.reference)
        program = _program(component)
        return render(
            "job/body.sh.j2",
            path=self._profile.path,
            setup_failed=SETUP_FAILED,
            start_limit_s=start_limit(component.resources, self._profile),
            time_limit_s=time_limit(component.resources),
            warned_s=self._profile.signal_before_s + WARNED_EARLY_S,
            params_json=json.dumps(component.params, ensure_ascii=False, allow_nan=False),
            code=code,
            code_archive=code and archive_name(code),
            upstream=self._parents[component.name],
            env=self._env,
            passed_on=_PASSED_ON,
            gpus=component.resources.gpu_count,
            sample_s=self._profile.gpu_sample_s if component.resources.gpu_count else 0,
            sample_fields=GPU_SAMPLE_FIELDS,
            sample_bytes=GPU_SAMPLES_BYTES,
            apptainer=self._profile.apptainer,
            sif=image.sif if image else component.image.reference,
            program=program,
            arguments=_arguments(component),
            args=component.args,
            nodes=component.resources.nodes,
            cpus=cpus_per_node(component.resources, self._profile),
        )

    def _job(self, component: Component, body: str, wanted: set[str]) -> CompiledJob:
        name, identity = component.name, self._identity
        control = control_dir(self._profile, identity.run_id, name, identity.attempt)
        relative = f"{CONTROL}/{name}/{identity.attempt}"
        satisfied = tuple((up, self._outputs[up]) for up in self._parents[name] if up not in wanted)
        script = render(
            "job.sh.j2",
            component=name,
            identity=identity,
            run_dir=self._run_dir,
            satisfied=satisfied,
            body=body,
        )
        files = {f"{relative}/job.sh": script.encode()}
        if code := self._code.get(name):
            files[f"{relative}/{FETCH}"] = self._fetch(name, code).encode()
        called = job_name(self._profile, identity, name)
        return CompiledJob(
            component=name,
            name=called,
            depends_on=tuple(up for up in self._parents[name] if up in wanted),
            satisfied=satisfied,
            sbatch_args=(
                f"--job-name={called}",
                f"--chdir={self._run_dir}",
                f"--output={control}/slurm.log",
                *((f"--nice={identity.nice}",) if identity.nice else ()),
                *job_args(component, self._profile),
            ),
            script=script,
            script_path=f"{control}/job.sh",
            files=files,
        )

    def _fetch(self, name: str, code: ResolvedCode) -> str:
        return render(
            "fetch_code.sh.j2",
            component=name,
            directory=f"{self._run_dir}/{CONTROL}/{name}",
            code_archive=archive_name(code),
            code=code,
            tar_tree=TAR_TREE,
        )

    def _hash(self, bodies: Mapping[str, str]) -> str:
        """Hash what will run: scripts, resources, edges, digests; without run, attempt, key or job ids."""
        parts: list[dict[str, Any]] = []
        for component in sorted(self._spec.components, key=lambda component: component.name):
            image = self._images.get(component.image.reference)
            parts.append(
                {
                    "component": component.name,
                    "parents": sorted(self._parents[component.name]),
                    "image": image.digest if image else f"unresolved {component.image.reference}",
                    "sbatch_args": job_args(component, self._profile),
                    "script": digest(bodies[component.name].encode()),
                }
            )
        return digest(canonical_json(parts))


FETCH: Final = "fetch-code.sh"

TAR_TREE: Final = "tar --create --format=gnu --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner"
"""The archive of a folder that is the same whenever the folder is: names, modes, links and contents."""


def tree_digest_argv(path: str) -> list[str]:
    """Give the command whose first word of output is the SHA-256 of a folder on the cluster (`PathCode`).

    It fails where anything in the folder can't be read.
    """
    return ["bash", "-c", f'set -o pipefail; {TAR_TREE} --directory "$1" . | sha256sum', "bash", path]


def archive_name(code: ResolvedCode) -> str:
    """Give the file name of a component's code in its control directory."""
    return f"code-{code.digest.removeprefix('sha256:')[:40]}.tar"


def _program(component: Component) -> tuple[str, ...]:
    """What is executed in the container; nothing where the image's own entry point runs."""
    if component.command is not None:
        return component.command
    if component.code is None:
        return ()
    script = component.code.entry_script
    interpreter = _INTERPRETERS.get(PurePosixPath(script).suffix)
    start = (interpreter, script) if interpreter else (f"./{script}",)
    return ("sh", "-c", _WITH_REQUIREMENTS, "sh", *start)


def _arguments(component: Component) -> Iterable[tuple[str, str]]:
    """The generated arguments (DD-11); a plain command without params runs exactly as it was written."""
    if component.command is not None and not component.params:
        return []
    given = [(f"--{name}", as_argument(value)) for name, value in component.params.items()]
    return [("--output_dir", "/broker/outputs"), ("--log_dir", "/broker/logs"), *given]
