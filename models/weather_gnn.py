"""weather-gnn: the next hour's weather from this hour's, 13 channels on a global grid of 32x64, by a graph network.

Grid to mesh to grid, in the style of GraphCast: every grid point is embedded and sends to the points around it of an
icosahedral mesh (level 3, 642 points); `steps` steps of message passing run on the mesh; every grid point then hears
from the corners of the mesh triangle that it lies in.  A linear layer gives the change, which is added to the state.
The graph is fixed (see `tsexport.models.icosphere`), so that its indices are constants.

Source: Lam et al. 2023, "Learning skillful medium-range global weather forecasting".  The sizes are ours: the documents
name a graph network without defining one.  Unlike GraphCast, one state goes in, the mesh has the edges of its finest
level alone, and there is no forcing.

Channels in order: temperature, dew point, U wind, V wind, sea-level pressure, precipitation, solar radiation, thermal
radiation, cloud cover, Z500, T850, RH700, W500; each standardised.  Rows are latitudes from north to south at the
centres of equal steps, columns longitudes from 0 eastwards.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from tsexport.errors import ConfigurationError
from tsexport.models.definition import SHAPES_NO_WEIGHT, require_positive
from tsexport.types import BATCH, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST_LEVEL = 6


@dataclass(frozen=True)
class Config:
    """Sizes; the mesh has 10 * 4^mesh_level + 2 points."""

    channels: int = 13
    latitudes: int = field(default=32, metadata=SHAPES_NO_WEIGHT)
    longitudes: int = field(default=64, metadata=SHAPES_NO_WEIGHT)
    mesh_level: int = field(default=3, metadata=SHAPES_NO_WEIGHT)
    width: int = 64
    steps: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "channels", "latitudes", "longitudes", "width", "steps")
        if not 0 <= self.mesh_level <= LARGEST_LEVEL:
            raise ConfigurationError(
                f"mesh_level is {self.mesh_level}; it must be 0 to {LARGEST_LEVEL} "
                f"({10 * 4**LARGEST_LEVEL + 2} mesh points)",
                next_step="Level 3 (642 points) suits a grid of 32x64; each level has four times as many points.",
            )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("state", "float32", (BATCH, self.channels, self.latitudes, self.longitudes)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("field", "float32", (BATCH, self.channels, self.latitudes, self.longitudes)),)


@cache
def network() -> "type[nn.Module]":
    """Return the class WeatherGNN (defined here so that reading a Config needs no torch)."""
    import torch
    from torch import nn

    from tsexport.models.icosphere import graph_of, place_features
    from tsexport.models.interaction import interaction, mlp

    class WeatherGNN(nn.Module):
        """state [batch, channels, latitudes, longitudes] -> field [batch, channels, latitudes, longitudes]."""

        grid_places: "Tensor"
        mesh_places: "Tensor"
        up_features: "Tensor"
        mesh_features: "Tensor"
        down_features: "Tensor"

        def __init__(self, config: Config) -> None:
            super().__init__()
            width, self.channels = config.width, config.channels
            self.latitudes, self.longitudes = config.latitudes, config.longitudes
            graph = graph_of(config.mesh_level, config.latitudes, config.longitudes)
            constants = {
                "grid_places": place_features(graph.grid),
                "mesh_places": place_features(graph.mesh.points),
                "up_features": graph.up.features,
                "mesh_features": graph.across.features,
                "down_features": graph.down.features,
            }
            for name, array in constants.items():
                self.register_buffer(name, torch.tensor(array)[None], persistent=False)  # [1, points or edges, n]
            self.embed_state = mlp(config.channels, width)
            self.embed_grid = nn.Linear(3, width)
            self.embed_mesh = mlp(3, width)
            self.embed_up, self.embed_across, self.embed_down = (mlp(4, width) for _ in range(3))
            self.encode = interaction()(width, graph.up)
            self.process = nn.ModuleList(interaction()(width, graph.across) for _ in range(config.steps))
            self.decode = interaction()(width, graph.down)
            self.head = nn.Linear(width, config.channels)

        def forward(self, state: "Tensor") -> "Tensor":
            rows = state.flatten(2).transpose(1, 2)  # [batch, grid, channels]
            grid = self.embed_state(rows) + self.embed_grid(self.grid_places)  # [batch, grid, width]
            mesh = self.embed_mesh(self.mesh_places)  # [1, mesh, width]
            mesh, _ = self.encode(grid, mesh, self.embed_up(self.up_features))  # [batch, mesh, width]
            edges = self.embed_across(self.mesh_features)
            for step in self.process:
                mesh, edges = step(mesh, mesh, edges)
            grid, _ = self.decode(mesh, grid, self.embed_down(self.down_features))
            change = self.head(grid).transpose(1, 2)  # [batch, channels, grid]
            return state + change.reshape(-1, self.channels, self.latitudes, self.longitudes)  # type: ignore[no-any-return]

    return WeatherGNN


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)
