"""From a spec and a cluster's profile to batch scripts and one submission script.

Pure, but for the templates (`templates/` of the project), which are read once, at import.
"""

from broker.compiler.names import (
    MARKER,
    LogPaths,
    control_dir,
    home_dir,
    job_key,
    job_name,
    log_dir,
    log_paths,
    output_dir,
    run_dir,
    status_path,
)
from broker.compiler.plan import SETUP_FAILED, CompiledJob, Plan, compile_run, tree_digest_argv
from broker.compiler.preview import draft, preview
from broker.compiler.profile import ClassProfile, ClusterProfile, ResolvedCode, ResolvedImage, RunIdentity
from broker.compiler.render import TEMPLATES
from broker.compiler.submission import (
    SubmissionExit,
    claim_argv,
    fence_argv,
    stage_and_submit_argv,
    stage_argv,
    staging_archive,
    submission_script,
)

__all__ = [
    "MARKER",
    "SETUP_FAILED",
    "TEMPLATES",
    "ClassProfile",
    "ClusterProfile",
    "CompiledJob",
    "LogPaths",
    "Plan",
    "ResolvedCode",
    "ResolvedImage",
    "RunIdentity",
    "SubmissionExit",
    "claim_argv",
    "compile_run",
    "control_dir",
    "draft",
    "fence_argv",
    "home_dir",
    "job_key",
    "job_name",
    "log_dir",
    "log_paths",
    "output_dir",
    "preview",
    "run_dir",
    "stage_and_submit_argv",
    "stage_argv",
    "staging_archive",
    "status_path",
    "submission_script",
    "tree_digest_argv",
]
