"""The command line of ``slurm-dev/cluster``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence

from slurmdev import layout
from slurmdev.lifecycle import Cluster
from slurmdev.state import ClusterError

_PAUSABLE = ("slurmctld", "slurmdbd", "sshd", "mariadb", "registry", "munge", *layout.NODES)

_EXAMPLES = """\
examples:
  cluster up                                  start (the first time builds it: a few minutes)
  cluster status                              how every daemon and node is
  cluster exec sinfo                          run a command inside, as root
  cluster exec --user kim sbatch --wrap=date  … or as one of its people (broker, kim, park, lee)
  cluster logs slurmctld -f                   watch a daemon's log
  cluster fail node a100-2                    a power cut; `cluster recover node a100-2` mends it
  cluster pause slurmctld                     freeze a daemon; `cluster resume slurmctld` lets it go on
  cluster up --name old --suite bookworm      a second cluster beside the first, with Slurm 22.05
  cluster down --purge                        end it and forget everything

Programs read STATE/NAME/cluster.json, where STATE is $SLURM_DEV_HOME (~/.local/state/slurm-dev).
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cluster",
        description="A real Slurm cluster on this machine, for development, tests and demonstration.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default="dev", help="which cluster (default: dev)")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    up = add("up", "start the cluster and wait until it is ready")
    up.add_argument("--suite", choices=tuple(layout.SUITES), help="Debian suite: Slurm 22.05, 24.11 or 26.05")
    up.add_argument(
        "--via", choices=("compose", "namespaces"), help="how (default: as before, else compose if it can)"
    )
    up.add_argument("--no-images", action="store_true", help="don't build and push the sample images")
    up.add_argument(
        "--die-with-parent", action="store_true", help="stay in the foreground; end with the caller"
    )
    down = add("down", "end the cluster; what it stored stays for the next `up`")
    down.add_argument("--purge", action="store_true", help="delete what it stored as well")
    add("status", "how the cluster is").add_argument("--json", action="store_true", help="for programs")
    execute = add("exec", "run a command inside")
    execute.add_argument(
        "--user", default="root", choices=("root", *layout.USERS), help="as whom (default: root)"
    )
    execute.add_argument(
        "argv", nargs=argparse.REMAINDER, metavar="CMD", help="the command and its arguments"
    )
    logs = add("logs", "show a daemon's log, or PID 1's")
    logs.add_argument(
        "daemon", nargs="?", default="init", help="slurmctld, slurmdbd, a100-1, … (default: init)"
    )
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it grows")
    reset = add(
        "reset", "end the cluster, forget jobs, accounting and files (ports and keys stay), start it anew"
    )
    reset.add_argument("--suite", choices=tuple(layout.SUITES), help="go on with another suite")
    reset.add_argument("--no-images", action="store_true", help="don't build and push the sample images")
    add("images", "build the sample images if needed and push them to the registry")
    for name, text in (
        ("fail", "kill a compute node, jobs and all"),
        ("recover", "start a failed node again"),
    ):
        node = add(name, text)
        node.add_argument("what", choices=("node",))
        node.add_argument("target", choices=layout.NODES, metavar="NODE", help=", ".join(layout.NODES))
    for name, text in (
        ("pause", "freeze a daemon (SIGSTOP)"),
        ("resume", "let a frozen daemon go on (SIGCONT)"),
        ("restart", "stop a daemon and start it again"),
    ):
        add(name, text).add_argument("target", choices=_PAUSABLE, metavar="DAEMON", help=", ".join(_PAUSABLE))
    return parser


def _show_status(cluster: Cluster, *, as_json: bool) -> None:
    info = cluster.status()
    if as_json:
        print(json.dumps(info, indent=2))
        return
    print(
        f"cluster {info['name']}: {info['state']}, "
        f"Debian {info['suite']}, Slurm {info['slurm_version'] or '(version unknown yet)'}"
    )
    if info["state"] != "up":
        return
    ssh = info["ssh"]
    print(
        f"  ssh       ssh -p {ssh['port']} -i {ssh['key']} -o UserKnownHostsFile={ssh['known_hosts']} "
        f"{ssh['user']}@{ssh['host']}"
    )
    print(f"  registry  {info['registry'] or 'none: this suite only schedules'}")
    print(f"  shared    {info['shared']} = {info['host_shared']}")
    answers = {True: "answers", False: "is silent"}
    print(f"  scheduler {answers[info['scheduler']]}, accounting {answers[info['accounting']]}")
    for name, daemon in info["daemons"].items():
        node = info["node_states"].get(name, "")
        print(f"  {name:<10}{daemon['state']:<9}{node:<12}{daemon.get('reason', '')}".rstrip())


def _show_logs(cluster: Cluster, daemon: str, *, follow: bool) -> int:
    path = cluster.state.init_log if daemon == "init" else cluster.way.log_folder() / f"{daemon}.log"
    if not path.exists():
        known = sorted(entry.stem for entry in cluster.way.log_folder().glob("*.log"))
        raise ClusterError(f"no log of {daemon!r}; there are: init {' '.join(known)}")
    return subprocess.call(
        ["tail", "-n", "+1" if not follow else "100", *(["-F"] if follow else []), str(path)]
    )


def _run(options: argparse.Namespace) -> int:
    cluster = Cluster(options.name)
    match options.command:
        case "up":
            with_images = not options.no_images
            cluster.up(
                options.suite, via=options.via, with_images=with_images, with_parent=options.die_with_parent
            )
        case "down":
            cluster.down(purge=options.purge)
        case "reset":
            cluster.reset(options.suite)
            cluster.up(options.suite, with_images=not options.no_images)
        case "status":
            _show_status(cluster, as_json=options.json)
        case "exec":
            command = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
            argv = cluster.way.argv(command or ["bash"], options.user)
            os.execvp(argv[0], argv)
        case "logs":
            return _show_logs(cluster, options.daemon, follow=options.follow)
        case "images":
            cluster.publish_images()
        case _:
            cluster.control(options.command, options.target)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 done, 1 not possible (one line says why), 130 interrupted."""
    try:
        return _run(_parser().parse_args(arguments))
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
