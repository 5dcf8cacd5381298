"""What must be true before anyone trusts a cluster, an object store or a database with their work.

Facts are gathered by few commands (`login`, `probes`), and judged by pure functions: facts in, `Check` out
(`rules` for Slurm's configuration). `examine` puts it together.
"""

from broker.doctor.examine import Report, examine

__all__ = ["Report", "examine"]
