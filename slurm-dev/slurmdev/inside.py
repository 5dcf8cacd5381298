"""How a command becomes somebody's inside a cluster, whichever way it was entered."""

from __future__ import annotations

import os

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def as_person(user: str) -> list[str]:
    """The words before a command that run it as ``user``, in their home folder, with a clean environment."""
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--reset-env", "--"]
    # The caller's PATH may lack the cluster's folders; --reset-env sets a good one, setpriv is found by ours.
    term = [f"TERM={os.environ['TERM']}"] if "TERM" in os.environ else []
    at_home = ["env", PATH, "LANG=C.UTF-8", *term, "sh", "-c", 'cd; exec "$@"', "sh"]
    return ["env", "-i", PATH, *become, *at_home]
