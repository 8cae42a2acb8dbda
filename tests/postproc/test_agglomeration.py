"""Agglomeration against the greedy definition, and in parts against the whole."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.postproc.agglomeration import affinity_floor, agglomerate
from fgnet.postproc.agglomeration_local import MOST, merge_graph
from fgnet.postproc.contact_records import precedes
from fgnet.postproc.merge_tree import components, gather
from fgnet.postproc.region_graph import RegionGraph, merge_graphs
from fgnet.volumes.errors import DecodingError


def rows(graph):
    return list(zip(*(column.tolist() for column in graph.columns), strict=True))


def by_definition(graph, threshold):
    """Always the best of all contacts, by exact fractions; the segment of each node."""
    contacts = {(a, b): (total, count, face) for a, b, total, count, face in rows(graph)}
    segment = list(range(graph.nodes))
    while contacts:
        best = max(contacts, key=lambda pair: (Fraction(*contacts[pair][:2]), -contacts[pair][2]))
        if Fraction(*contacts[best][:2]) * 65536 <= affinity_floor(threshold):
            break
        kept, gone = best
        segment = [kept if node == gone else node for node in segment]
        joined = {}
        for pair, values in contacts.items():
            a, b = sorted(kept if node == gone else node for node in pair)
            if a == b:
                continue
            old = joined.get((a, b))
            joined[a, b] = (old[0] + values[0], old[1] + values[1], min(old[2], values[2])) if old else values
        contacts = joined
    return np.array(segment)


def same_partition(a, b):
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))


@st.composite
def graphs(draw, nodes=24, contacts=70):
    """Random graphs, most with very many equal means."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, m = draw(st.integers(1, nodes)), draw(st.integers(0, contacts))
    levels = draw(st.sampled_from([2, 3, 6, 256]))
    counts = rng.integers(1, draw(st.sampled_from([2, 4, 1000])), m)
    sums = counts * rng.integers(0, levels, m) * (255 // (levels - 1))
    return merge_graphs(n, [(rng.integers(0, n, m), rng.integers(0, n, m), sums, counts, rng.permutation(m))])


thresholds = st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0])


@settings(deadline=None, max_examples=400)
@given(graphs(), thresholds)
def test_segments_follow_their_definition(graph, threshold):
    result = agglomerate(graph, threshold)
    assert same_partition(result.roots, by_definition(graph, threshold))
    np.testing.assert_array_equal(result.roots[result.roots], result.roots)
    assert not result.frozen.any()
    assert result.graph.contacts == 0


@settings(deadline=None, max_examples=400)
@given(graphs(), thresholds, st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_parts_put_together_give_the_segments_of_the_whole(graph, threshold, parts, seed):
    part = np.random.default_rng(seed).integers(0, parts, graph.nodes)
    inner = part[graph.lower] == part[graph.higher]
    touching = np.zeros(graph.nodes, bool)
    touching[graph.lower[~inner]] = touching[graph.higher[~inner]] = True
    roots, pieces = np.arange(graph.nodes), [graph.select(~inner).columns]
    for number in range(parts):
        own = graph.select(inner & (part[graph.lower] == number))
        result = agglomerate(own, threshold, frozen=touching)
        assert result.frozen[touching].all()
        assert (result.roots[touching] == np.flatnonzero(touching)).all(), "frozen nodes do not merge"
        roots = np.where(part == number, result.roots, roots)
        pieces.append(result.graph.columns)
    result = agglomerate(merge_graphs(graph.nodes, pieces), threshold)
    assert same_partition(result.roots[roots], by_definition(graph, threshold))


def require_same_merges(graph, threshold, frozen, most=MOST):
    results = []
    # With none to be looked at, all contacts go through the queue.
    for looked_at in (0, most):
        ends = np.stack([graph.lower, graph.higher], axis=1).astype(np.int32)
        scores, held = np.stack(graph.columns[2:], axis=1), frozen.copy()
        roots, left, merged = merge_graph(ends, scores, affinity_floor(threshold), held, looked_at)
        left &= held[ends].all(axis=1)
        assert (ends[left] == roots[ends[left]]).all(), "what is left is between roots"
        results.append((roots, held[roots], sorted(map(tuple, scores[left])), sorted(map(tuple, scores[merged]))))
    assert same_partition(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert results[0][2:] == results[1][2:]


@settings(deadline=None, max_examples=300)
@given(graphs(), thresholds.filter(bool), st.sampled_from([1, 2, 3, 5, 8]), st.integers(0, 2**32 - 1))
def test_neighbours_merged_first_change_nothing_about_the_queue(graph, threshold, most, seed):
    require_same_merges(graph, threshold, np.random.default_rng(seed).random(graph.nodes) < 0.2, most)


def star(leaves):
    """Leaves around one node, each of which touches the next."""
    others = np.arange(1, leaves + 1)
    return np.concatenate([np.zeros(leaves, int), others[:-1]]), np.concatenate([others, others[1:]])


@pytest.mark.parametrize("levels", [1, 3, 255])
@pytest.mark.parametrize("ends", [star(2000), np.triu_indices(400, 1)], ids=["star", "clique"])
@pytest.mark.parametrize("share", [0.0, 0.01])
def test_nodes_with_too_many_contacts_to_look_at_merge_as_by_the_queue(ends, levels, share):
    rng = np.random.default_rng(levels)
    many, nodes = ends[0].size, int(ends[1].max()) + 1
    assert np.bincount(np.concatenate(ends)).max() > MOST
    counts = rng.integers(1, 5, many)
    sums = counts * rng.integers(1, levels + 1, many) * (255 // levels)
    graph = merge_graphs(nodes, [(*ends, sums, counts, rng.permutation(many))])
    require_same_merges(graph, 0.8, rng.random(nodes) < share)
    # The one by the queue alone, the other without it.
    require_same_merges(graph, 0.8, rng.random(nodes) < share, many)


@settings(deadline=None, max_examples=400)
@given(graphs(), thresholds, st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_a_tree_cut_at_a_threshold_is_what_merges_at_that_threshold(graph, highest, parts, seed):
    """Of the whole, and of parts put together, in which the same merges are found in another order."""
    part = np.random.default_rng(seed).integers(0, parts, graph.nodes)
    inner = part[graph.lower] == part[graph.higher]
    touching = np.zeros(graph.nodes, bool)
    touching[graph.lower[~inner]] = touching[graph.higher[~inner]] = True
    pieces, merges = [graph.select(~inner).columns], []
    for number in range(parts):
        result = agglomerate(graph.select(inner & (part[graph.lower] == number)), highest, frozen=touching)
        pieces.append(result.graph.columns)
        merges.append(result.merges)
    merges.append(agglomerate(merge_graphs(graph.nodes, pieces), highest).merges)
    whole = agglomerate(graph, highest).merges
    scores = [sorted(zip(m.sums.tolist(), m.counts.tolist(), strict=True)) for m in [whole, *merges]]
    assert scores[0] == sorted(score for found in scores[1:] for score in found)
    for threshold in {0.0, 0.1, 0.3, 0.42, 0.5, 0.8, highest}:
        if threshold > highest:
            continue
        floor = affinity_floor(threshold)
        expected = by_definition(graph, threshold)
        for found in ([whole], merges):
            pairs = np.concatenate([m.above(floor) for m in found], axis=1)
            assert same_partition(components(graph.nodes, pairs)[1], expected)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_components_are_numbered_by_their_first_nodes(nodes, pairs, seed):
    ends = np.random.default_rng(seed).integers(0, nodes, (2, pairs))
    count, found = components(nodes, ends)
    segment = list(range(nodes))
    for a, b in ends.T:
        segment = [segment[a] if own == segment[b] else own for own in segment]
    assert same_partition(found, np.array(segment))
    order = [found.tolist().index(number) for number in range(count)]
    assert order == sorted(order)


def test_parts_without_voxels_have_no_first_one():
    voxels, first = gather(np.array([1, 1, 0, 2]), 3, np.array([2, 3, 0, 1]), np.array([7, 5, 0, 9]))
    assert voxels.tolist() == [0, 5, 1]
    assert first.tolist() == [2**63 - 1, 5, 9]


def test_the_order_of_contacts_does_not_matter():
    rng = np.random.default_rng(0)
    ends, counts = rng.integers(0, 300, (2, 2000)), rng.integers(1, 9, 2000)
    graph = merge_graphs(300, [(*ends, counts * rng.choice([64, 128, 255], 2000), counts, rng.permutation(2000))])
    expected = agglomerate(graph, 0.6).roots
    for _ in range(3):
        order = rng.permutation(graph.contacts)
        assert same_partition(agglomerate(graph.select(order), 0.6).roots, expected)


def test_the_graph_is_not_modified():
    graph = merge_graphs(3, [tuple(np.array(c) for c in ([0, 1, 0], [1, 2, 2], [255, 200, 100], [1, 1, 1], [0, 1, 2]))])
    before = rows(graph)
    frozen = np.array([True, False, False])
    agglomerate(graph, 0.9, frozen=frozen)
    assert rows(graph) == before
    assert frozen.tolist() == [True, False, False]


fractions = st.tuples(st.integers(0, 2**41), st.integers(1, 2**33), st.integers(0, 9))


@settings(max_examples=300)
@given(fractions, fractions, st.integers(1, 2**20))
def test_means_are_compared_exactly_however_large(a, b, scale):
    for first, second in ((a, b), (a, (a[0] * scale, a[1] * scale, b[2])), (a, (a[0] + 1, a[1], b[2]))):
        difference = Fraction(*first[:2]) - Fraction(*second[:2])
        assert precedes(*first, *second) == (difference > 0 or (difference == 0 and first[2] < second[2]))


def test_a_mean_at_the_threshold_does_not_merge():
    for total, segments in ((1785, 2), (1786, 1)):
        graph = RegionGraph(2, *(np.array([value]) for value in (0, 1, total, 10, 0)))
        assert len(set(agglomerate(graph, 0.3).roots.tolist())) == segments


def test_a_hub_with_many_contacts_is_merged_in_reasonable_time():
    n = 200_000
    ends = np.arange(1, n)
    values = np.random.default_rng(0).integers(1, 256, 2 * n - 3)
    lower, higher = np.concatenate([np.zeros(n - 1, int), ends[:-1]]), np.concatenate([ends, ends[1:]])
    graph = RegionGraph(n, lower, higher, values, np.ones_like(values), np.arange(values.size))
    assert (agglomerate(graph, 1.0).roots == agglomerate(graph, 1.0).roots[0]).all()


def test_a_long_way_to_a_hub_is_merged_in_reasonable_time():
    # From each node the best contact leads on to the next, and at last to a node with too many contacts to look at.
    n, leaves = 100_000, 1000
    sums = np.concatenate([np.arange(n - 1) + n, np.ones(leaves, int)])
    lower = np.concatenate([np.arange(n - 1), np.full(leaves, n - 1)])
    higher = np.concatenate([np.arange(1, n), np.arange(n, n + leaves)])
    graph = RegionGraph(n + leaves, lower, higher, sums, np.full(sums.size, n), np.arange(sums.size))
    roots = agglomerate(graph, 1.0).roots
    assert (roots == roots[0]).all()


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_thresholds_out_of_range_are_refused(threshold):
    with pytest.raises(DecodingError, match="from 0 to 1"):
        agglomerate(merge_graphs(1, []), threshold)


def test_frozen_nodes_of_another_graph_are_refused():
    with pytest.raises(DecodingError, match="frozen"):
        agglomerate(merge_graphs(2, []), 0.5, frozen=np.zeros(3, bool))
