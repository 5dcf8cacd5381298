"""The life of a run: request, submission, tracking, collection, retry, recovery.

A run is one execution of one version of a pipeline. It consists of jobs, one per component and attempt.
What happens to it is told by three columns, each written by one part of the worker:

    phase       requested by            left when
    ─────────── ─────────────────────── ────────────────────────────────────────────────────────────
    preparing   POST /runs, retry       images are on the cluster and the plan is stored
    submitting  the stored plan         every component has its Slurm job id (all or nothing)
    releasing   the last stored id      the set of holds is empty and Slurm confirmed the release
    active      the release             every job has ended
    storing     the last job's end      every ended job's logs and outputs lie verified in S3
    done

`state` (what people see) is a pure function of the jobs' states: `states.derive_run_state`. Cancelling is a
wish (`cancel_requested_at`) that the worker pursues from any phase.
"""
