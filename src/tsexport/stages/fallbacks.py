"""Which layers of a graph may fall back to floating point, and in what order: records of the search."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tsexport.quantize.search import Layer


@dataclass(frozen=True)
class FoundLayers:
    """The layers of the fp32 graph, as a stage keeps them."""

    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class LayerError:
    """One layer's sensitivity, as a stage keeps it; None where the answers were not finite."""

    error: float | None


@dataclass(frozen=True)
class Order:
    """The layers in the order in which they fall back, with the sensitivities that were measured."""

    layers: tuple[Layer, ...]
    measured: Mapping[str, float]

    def only(self, kept: Collection[str]) -> "Order":
        """Return the order of those layers whose names are in `kept`."""
        layers = tuple(one for one in self.layers if one.name in kept)
        return Order(layers, {name: error for name, error in self.measured.items() if name in kept})

    def sensitivities(self) -> list[float]:
        """Return one value a layer, in order; what was not measured counts as the mean of what was."""
        finite = [one for one in self.measured.values() if one < float("inf")]
        mean = sum(finite) / len(finite) if finite else 1.0
        return [self.measured.get(layer.name, mean) for layer in self.layers]
