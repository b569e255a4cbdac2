"""weather-gnn: the geometry of its graph, its formula, its count, and its settings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tsexport.errors import ConfigurationError
from tsexport.models import weather_gnn
from tsexport.models.icosphere import (
    Edges,
    grid_points,
    grid_to_mesh_edges,
    icosphere,
    longest_edge,
    mesh_edges,
    mesh_to_grid_edges,
    place_features,
)
from tsexport.models.interaction import interaction
from tsexport.models.registry import get_entry

SMALL = weather_gnn.Config(channels=3, latitudes=6, longitudes=12, mesh_level=1, width=16, steps=2)
ATOL = 1e-5
"""Between torch and a loop in float64: fp32 rounding over some ten terms of about unit size."""
PUBLISHED_NODES = 642
"""Of the mesh of level 3, in the documents."""


def build(config=SMALL):
    torch.manual_seed(0)
    return weather_gnn.build(config).eval().requires_grad_(False)


def states(config=SMALL, batch=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.channels, config.latitudes, config.longitudes, generator=generator)


# ---------------------------------------------------------------- the graph


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_mesh_is_a_closed_sphere_of_triangles(level):
    mesh = icosphere(level)
    points, faces = len(mesh.points), len(mesh.triangles)
    assert (points, faces) == (10 * 4**level + 2, 20 * 4**level)
    assert np.allclose(np.linalg.norm(mesh.points, axis=1), 1, rtol=0, atol=1e-12)
    edges = mesh_edges(mesh)
    assert points - len(edges.senders) // 2 + faces == 2  # Euler
    degrees = np.bincount(edges.receivers)
    assert sorted(np.unique(degrees)) == ([5] if level == 0 else [5, 6])
    assert np.flatnonzero(degrees == 5).tolist() == list(range(12))
    assert np.linalg.det(mesh.points[mesh.triangles]).min() > 0  # all seen from outside


def test_the_mesh_of_the_default_has_the_published_nodes():
    assert len(icosphere(weather_gnn.Config().mesh_level).points) == PUBLISHED_NODES


@pytest.mark.parametrize(("level", "latitudes", "longitudes"), [(3, 32, 64), (1, 6, 12), (2, 3, 5), (0, 1, 1)])
def test_no_grid_point_is_lost_on_the_way_up_or_down(level, latitudes, longitudes):
    mesh, grid = icosphere(level), grid_points(latitudes, longitudes)
    up, down = grid_to_mesh_edges(mesh, grid), mesh_to_grid_edges(mesh, grid)
    assert set(up.senders) == set(range(len(grid)))
    assert np.bincount(down.receivers).tolist() == [3] * len(grid)
    for edges in (up, down, mesh_edges(mesh)):
        assert (np.diff(edges.receivers) >= 0).all()
        assert len(set(zip(edges.senders, edges.receivers, strict=True))) == len(edges.senders)
    # each grid point lies inside its triangle: it is a combination of the corners with no negative weight
    corners = mesh.points[down.senders.reshape(-1, 3)]
    weights = np.linalg.solve(corners.transpose(0, 2, 1), grid[..., None])
    assert weights.min() > -1e-9


def test_edges_say_how_far_and_where_the_sender_is_from_the_receiver():
    """On the equator at longitude 0, x is up, y east and z north."""
    mesh = icosphere(2)
    grid = grid_points(1, 4)
    edges = mesh_to_grid_edges(mesh, grid)
    away = (mesh.points[edges.senders[:3]] - [1, 0, 0]) / longest_edge(mesh)
    assert np.allclose(edges.features[:3, 1:], away[:, [1, 2, 0]], rtol=0, atol=1e-6)
    assert np.allclose(edges.features[:, 0], np.linalg.norm(edges.features[:, 1:], axis=1), rtol=0, atol=1e-6)
    # turning the sphere by a right angle changes nothing of what a receiver sees: the grid's four points do
    turned = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]) @ mesh.points[edges.senders[:3]].T
    seen = (turned.T - grid[1]) / longest_edge(mesh)
    assert np.allclose(
        np.stack([-seen[:, 0], seen[:, 2], seen[:, 1]], axis=1), edges.features[:3, 1:], rtol=0, atol=1e-6
    )


def test_rows_go_from_north_to_south_and_columns_eastwards():
    grid = grid_points(2, 4).reshape(2, 4, 3)
    assert (grid[0, :, 2] > 0).all()
    assert (grid[1, :, 2] < 0).all()
    assert grid[0, 1, 1] > 0.7
    features = place_features(grid.reshape(-1, 3)).reshape(2, 4, 3)
    assert np.allclose(features[0, :, 1], [0, 1, 0, -1], rtol=0, atol=1e-6)
    assert np.allclose(features[:, 0, 0], [2**-0.5, -(2**-0.5)], rtol=0, atol=1e-6)


# ---------------------------------------------------------------- one step


def loop(step, source, target, edges):
    """The formula of `models/interaction.py`, edge by edge."""
    message = []
    heard = torch.zeros(source.shape[0], target.shape[1], step.width)
    for number, (sender, receiver) in enumerate(zip(step.senders.tolist(), step.receivers.tolist(), strict=True)):
        parts = [edges[:, number], source[:, sender], target[:, receiver]]
        message.append(step.edge_mlp(torch.cat([part.expand(source.shape[0], -1) for part in parts], dim=1)))
        heard[:, receiver] += message[-1]
    target = target.expand_as(heard)
    return target + step.node_mlp(torch.cat([target, heard], dim=2)), edges + torch.stack(message, dim=1)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=12),
    batches=st.sampled_from([(1, 1, 1), (3, 3, 3), (3, 1, 1), (2, 2, 1)]),
)
def test_a_step_is_its_formula_with_repeated_edges_and_isolated_nodes(pairs, batches):
    senders, receivers = (np.array(side, dtype=np.int64) for side in zip(*pairs, strict=True))
    torch.manual_seed(len(pairs))
    step = interaction()(8, Edges(senders, receivers, np.zeros((len(pairs), 4), np.float32))).requires_grad_(False)
    source, target, edges = (
        torch.randn(batch, count, 8) for batch, count in zip(batches, (5, 4, len(pairs)), strict=True)
    )
    for actual, expected in zip(step(source, target, edges), loop(step, source, target, edges), strict=True):
        assert torch.allclose(actual, expected, rtol=0, atol=ATOL)


# ---------------------------------------------------------------- the model


def test_the_default_has_the_parameters_that_the_table_says():
    entry, config = get_entry("weather-gnn"), weather_gnn.Config()
    width, channels, steps = config.width, config.channels, config.steps

    def mlp(inputs):
        return inputs * width + width + width * width + width + 2 * width

    embeddings = mlp(channels) + 3 * width + width + mlp(3) + 3 * mlp(4)
    counted = embeddings + (steps + 2) * (mlp(3 * width) + mlp(2 * width)) + width * channels + channels
    assert sum(value.numel() for value in build(config).parameters()) == counted == entry.parameters


def test_the_graph_is_no_part_of_a_checkpoint():
    module = build()
    assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}


def test_shapes_and_rows_that_do_not_see_each_other():
    module, x = build(), states()
    whole = module(x)
    assert whole.shape == x.shape
    for row in range(len(x)):
        assert torch.allclose(module(x[row : row + 1]), whole[row : row + 1], rtol=0, atol=ATOL)


def test_the_answer_is_the_state_and_a_change():
    module, x = build(), states()
    torch.nn.init.zeros_(module.head.weight)
    torch.nn.init.zeros_(module.head.bias)
    assert torch.equal(module(x), x)


def test_a_step_carries_a_change_one_mesh_edge_further():
    """What is changed at one grid point reaches only as far as the steps carry it."""
    config = replace(SMALL, mesh_level=2, latitudes=16, longitudes=32, steps=1)
    x = states(config, batch=1)
    other = x.clone()
    other[0, :, 8, 0] += 1
    reached = []
    for steps in (1, 2, 4):
        module = build(replace(config, steps=steps))
        reached.append(int(((module(other) - module(x)).abs().amax(dim=1) > 0).sum()))
    assert 1 < reached[0] < reached[1] < reached[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mesh_level": 7}, r"mesh_level is 7; it must be 0 to 6 \(40962 mesh points\)"),
        ({"mesh_level": -1}, "mesh_level is -1; it must be 0 to 6"),
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"width": -1}, "width is -1; it must be 1 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        weather_gnn.Config(**settings)
