"""The workflow as a graph: its checks, and the questions asked of it.

Slurm looks only ten dependencies deep for circles (`max_depend_depth`) and accepts longer ones silently, so
circles are found here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from difflib import get_close_matches

import networkx as nx

from broker.errors import Problem
from broker.spec.codes import Code
from broker.spec.models import PipelineSpec
from broker.spec.text import pointer, printable, shown

Graph = nx.DiGraph


def check(names: Sequence[str | None], edges: Sequence[tuple[str | None, str | None]]) -> list[Problem]:
    """Find everything wrong with a graph given as names and edges, in the order of the spec's lists.

    None stands for what could not be read; it is complained about elsewhere and passed over here.
    """
    return [*_duplicate_names(names), *_edge_problems(set(names) - {None}, edges), *_cycles(edges)]


def _duplicate_names(names: Sequence[str | None]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if name is not None and first.setdefault(name, index) != index:
            yield Problem(
                pointer(("components", index, "name")),
                Code.DUPLICATE_NAME,
                f"the name {shown(name)} is that of component {first[name] + 1} already; choose another",
            )


def _edge_problems(
    known: Collection[str | None], edges: Sequence[tuple[str | None, str | None]]
) -> Iterator[Problem]:
    first: dict[tuple[str, str], int] = {}
    for index, (source, target) in enumerate(edges):
        for field, end in (("from", source), ("to", target)):
            if end is not None and end not in known:
                yield Problem(
                    pointer(("workflow", index, field)),
                    Code.UNKNOWN_COMPONENT,
                    f"no component is named {shown(end)}{did_you_mean(end, known)}",
                )
        if source is None or target is None:
            continue
        if source == target:
            yield Problem(
                pointer(("workflow", index)),
                Code.SELF_LOOP,
                f"the edge leads from {shown(source)} to itself; remove it",
            )
        elif first.setdefault((source, target), index) != index:
            yield Problem(
                pointer(("workflow", index)),
                Code.DUPLICATE_EDGE,
                f"{shown(source)} → {shown(target)} is edge {first[source, target] + 1} already; remove one",
            )


def _cycles(edges: Sequence[tuple[str | None, str | None]]) -> Iterator[Problem]:
    """One problem for each knot of components that wait for each other, with one path through it."""
    places: dict[tuple[str, str], int] = {}
    for index, (source, target) in enumerate(edges):
        if source is not None and target is not None and source != target:
            places.setdefault((source, target), index)
    graph: Graph[str] = nx.DiGraph(places.keys())
    for knot in sorted(map(sorted, nx.strongly_connected_components(graph))):
        if len(knot) > 1:
            circle = [(edge[0], edge[1]) for edge in nx.find_cycle(graph.subgraph(knot), knot[0])]
            last = max(range(len(circle)), key=lambda index: places[circle[index]])  # written last, so blamed
            path = [target for _, target in circle[last:] + circle[:last]]
            yield Problem(
                pointer(("workflow", places[circle[last]])),
                Code.CYCLE,
                f"components wait for each other: {_route([*path, path[0]])}; remove one of these edges",
            )


def _route(path: list[str]) -> str:
    if len(path) > 12:
        path = [*path[:6], "…", *path[-5:]]
    return " → ".join(shown(name).strip('"') for name in path)


def did_you_mean(word: str, known: Iterable[str | None]) -> str:
    """End an error sentence with the nearest known word, or with what is known."""
    words = sorted(name for name in known if name)
    near = get_close_matches(word[:64], words, n=1) if len(words) <= 1_000 else []
    if near:
        return f"; did you mean {shown(near[0])}?"
    listed = ", ".join(printable(name[:64]) for name in words[:12])
    return f"; known are {listed}{', …' if len(words) > 12 else ''}" if words else ""


def graph_of(spec: PipelineSpec) -> Graph[str]:
    """Give the spec's graph; nodes are component names with their `order`."""
    graph: Graph[str] = nx.DiGraph()
    for component in spec.components:
        graph.add_node(component.name, order=component.order)
    graph.add_edges_from((edge.source, edge.target) for edge in spec.workflow)
    return graph


def topological(spec: PipelineSpec) -> tuple[str, ...]:
    """Give the names so that every component comes after its parents; ties by order, then name."""
    graph = graph_of(spec)
    return tuple(
        nx.lexicographical_topological_sort(graph, key=lambda name: (graph.nodes[name]["order"], name))
    )


def parents(spec: PipelineSpec) -> dict[str, tuple[str, ...]]:
    """Give for each component the names of those it waits for; keys and names in topological order."""
    graph = graph_of(spec)
    rank = {name: index for index, name in enumerate(topological(spec))}
    return {name: tuple(sorted(graph.predecessors(name), key=rank.__getitem__)) for name in rank}


def descendants(spec: PipelineSpec, names: Iterable[str]) -> set[str]:
    """Give every component downstream of `names`, directly or not; not `names` themselves unless so."""
    graph = graph_of(spec)
    found: set[str] = set()
    for name in names:
        if name not in found:
            found |= nx.descendants(graph, name)
    return found
