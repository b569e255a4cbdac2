"""The geometry of a graph network on the sphere: an icosahedral mesh, and the edges between it and a grid.

An icosahedron's 20 triangles are each divided into four, `level` times, and the new points are moved out to the unit
sphere: 10 * 4^level + 2 points.  The 12 first have five neighbours, all others six.  A grid of cells has its points at
the cells' centres: row i of n lies at latitude 90 - (i + 1/2) 180 / n degrees, column j of m at longitude 360 j / m.

Edges go from a sender to a receiver and are sorted by receiver.  An edge's features are its length and the place of the
sender as the receiver sees it (east, north, up), all in units of the longest edge of the mesh.

Limits: memory grows with (grid points) x (mesh triangles).  Source: Lam et al. 2023, GraphCast, without its merging of
the edges of coarser levels.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tsexport.types import Array

REACH = 0.6
"""A grid point sends to the mesh points within this share of the longest mesh edge, as in GraphCast."""


@dataclass(frozen=True)
class Mesh:
    """points [nodes, 3] on the unit sphere, triangles [faces, 3] of point numbers."""

    points: Array
    triangles: Array


@dataclass(frozen=True)
class Edges:
    """senders and receivers [edges] as point numbers (int64), features [edges, 4] (float32), sorted by receiver."""

    senders: Array
    receivers: Array
    features: Array


@dataclass(frozen=True)
class Graph:
    """A mesh and a grid, and the edges from grid to mesh, within the mesh, and from mesh to grid."""

    mesh: Mesh
    grid: Array
    up: Edges
    across: Edges
    down: Edges


@lru_cache(maxsize=1)
def graph_of(level: int, latitudes: int, longitudes: int) -> Graph:
    """Return the graph of a mesh and a grid; kept, since a misfit of a checkpoint is explained by building hundreds.

    Its arrays are shared: copy before you write.
    """
    mesh, grid = icosphere(level), grid_points(latitudes, longitudes)
    return Graph(mesh, grid, grid_to_mesh_edges(mesh, grid), mesh_edges(mesh), mesh_to_grid_edges(mesh, grid))


def icosphere(level: int) -> Mesh:
    """Return the icosahedral mesh of a level; 0 is the icosahedron itself."""
    golden = (1 + 5**0.5) / 2
    corners = [(0, one, two * golden) for one in (-1, 1) for two in (-1, 1)]
    points = np.array([np.roll(corner, turn) for turn in range(3) for corner in corners], dtype=np.float64)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    triangles = _faces(points)
    for _ in range(level):
        points, triangles = _divide(points, triangles)
    return Mesh(points, triangles)


def _faces(points: Array) -> Array:
    """Return the triples of points that lie at the smallest distance from each other, seen from outside."""
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    near = np.isclose(distance, distance[distance > 0].min(), rtol=1e-6, atol=0.0)
    count = len(points)
    triples = [
        (a, b, c)
        for a in range(count)
        for b in range(a + 1, count)
        for c in range(b + 1, count)
        if near[a, b] and near[b, c] and near[a, c]
    ]
    outward = [np.linalg.det(points[list(triple)]) > 0 for triple in triples]
    return np.array([(a, b, c) if out else (a, c, b) for (a, b, c), out in zip(triples, outward, strict=True)])


def _divide(points: Array, triangles: Array) -> tuple[Array, Array]:
    """Divide every triangle into four; new points follow the old ones."""
    sides = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]], axis=2)  # [faces, 3, 2]
    unique, where = np.unique(sides.reshape(-1, 2), axis=0, return_inverse=True)
    middles = points[unique].sum(axis=1)
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    ab, bc, ca = (len(points) + where.reshape(-1, 3)).T
    a, b, c = triangles.T
    quarters = [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    return np.concatenate([points, middles]), np.concatenate([np.stack(quarter, axis=1) for quarter in quarters])


def grid_points(latitudes: int, longitudes: int) -> Array:
    """Return the grid's points [latitudes * longitudes, 3] on the unit sphere, row by row from the north."""
    latitude = np.pi / 2 - (np.arange(latitudes) + 0.5) * np.pi / latitudes
    longitude = np.arange(longitudes) * 2 * np.pi / longitudes
    lat, lon = (axis.ravel() for axis in np.meshgrid(latitude, longitude, indexing="ij"))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def longest_edge(mesh: Mesh) -> float:
    """Return the length of the longest side of a triangle."""
    sides = mesh.points[mesh.triangles] - mesh.points[np.roll(mesh.triangles, 1, axis=1)]
    return float(np.linalg.norm(sides, axis=2).max())


def mesh_edges(mesh: Mesh) -> Edges:
    """Return every side of the triangles, in both directions."""
    pairs = mesh.triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    both = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    return _edges(both[:, 0], both[:, 1], mesh.points, mesh.points, longest_edge(mesh))


def grid_to_mesh_edges(mesh: Mesh, grid: Array) -> Edges:
    """Return the edges to every mesh point from the grid points around it, within REACH of the longest mesh edge.

    A grid point that reaches no mesh point sends to the nearest, so that nothing is lost.
    """
    longest = longest_edge(mesh)
    distance = np.linalg.norm(grid[:, None] - mesh.points[None], axis=2)  # [grid, mesh]
    near = distance <= REACH * longest
    near[np.arange(len(grid)), distance.argmin(axis=1)] = True
    senders, receivers = np.nonzero(near)
    return _edges(senders, receivers, grid, mesh.points, longest)


def mesh_to_grid_edges(mesh: Mesh, grid: Array) -> Edges:
    """Return three edges to every grid point, from the corners of the mesh triangle that it lies in."""
    corners = mesh.points[mesh.triangles]  # [faces, 3 corners, 3]
    weights = np.einsum("gx,fxc->gfc", grid, np.linalg.inv(corners))  # of the corners, all positive inside
    inside = weights.min(axis=2).argmax(axis=1)
    senders = mesh.triangles[inside].ravel()
    receivers = np.repeat(np.arange(len(grid)), 3)
    return _edges(senders, receivers, mesh.points, grid, longest_edge(mesh))


def _edges(senders: Array, receivers: Array, sending: Array, receiving: Array, unit: float) -> Edges:
    order = np.lexsort((senders, receivers))
    senders, receivers = senders[order], receivers[order]
    away = sending[senders] - receiving[receivers]
    frames = _local_frames(receiving)[receivers]  # [edges, 3 directions, 3]
    seen = np.einsum("edx,ex->ed", frames, away)
    features = np.concatenate([np.linalg.norm(away, axis=1, keepdims=True), seen], axis=1) / unit
    return Edges(senders.astype(np.int64), receivers.astype(np.int64), features.astype(np.float32))


def _local_frames(points: Array) -> Array:
    """Return [points, 3, 3]: the unit vectors to the east, the north and up; at a pole, east is that of longitude 0."""
    longitude = np.arctan2(points[:, 1], points[:, 0])
    east = np.stack([-np.sin(longitude), np.cos(longitude), np.zeros_like(longitude)], axis=1)
    return np.stack([east, np.cross(points, east), points], axis=1)


def place_features(points: Array) -> Array:
    """Return [points, 3] (float32): the sine of the latitude, and the sine and cosine of the longitude."""
    longitude = np.arctan2(points[:, 1], points[:, 0])
    return np.stack([points[:, 2], np.sin(longitude), np.cos(longitude)], axis=1).astype(np.float32)
