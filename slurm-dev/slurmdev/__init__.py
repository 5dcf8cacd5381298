"""The development cluster: what it looks like, how it is started, how it is driven.

Two halves, both the standard library only:

- on the host: ``cli`` → ``lifecycle`` → ``rootfs`` (builds the root file system), ``namespaces`` (enters it),
  ``state`` (what is kept on disk), ``images`` (fills the registry);
- inside the cluster, run by ``slurm-dev/init``: ``supervisor`` (PID 1), ``daemons`` (what runs, in which
  order), ``setup`` (files, mounts, accounts), ``control`` (the commands that the host sends in).

``layout`` and ``conf`` are shared and pure: the shape of the cluster and the text of its configuration files.
"""
