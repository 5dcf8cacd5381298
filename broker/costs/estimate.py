"""What a run costs if each component runs once, to the end of its time limit, at today's prices. Pure.

Known before it is asked for. It ends earlier as a rule, and what is tried again costs again. Where the
cluster chooses partition, QOS or GPU type itself, prices that name one do not count: it may cost more.
"""

from __future__ import annotations

from datetime import date

from broker.compiler import ClusterProfile
from broker.compiler.sbatch_args import cpus_per_node, time_limit
from broker.costs.pricing import Fate, Item, Place, PriceBook, Resource, Use, itemized, where
from broker.spec.models import PipelineSpec


def estimated(book: PriceBook, spec: PipelineSpec, profile: ClusterProfile, today: date) -> list[Item] | None:
    """The items of the whole pipeline; None where Slurm's billing has a price: only Slurm knows its units."""
    uses = []
    for component in spec.components:
        wanted = component.resources
        seconds = time_limit(wanted)
        kind = profile.gres_type(wanted.gpu_type) if wanted.gpu_type and wanted.gpu_count else ""
        place = Place(profile.name, profile.partition or "", profile.qos or "", kind)
        if book.holding(Resource.BILLING, where(Resource.BILLING, place), today) is not None:
            return None
        sums = {
            Resource.CORE: cpus_per_node(wanted, profile) * wanted.nodes * seconds,
            Resource.GPU: wanted.gpu_count * seconds,
            Resource.MEMORY: wanted.memory.mib * seconds,
        }
        uses.append(Use((), place, today, Fate.OWN, sums))
    return itemized(book, uses)
