"""One step of message passing on a fixed graph, as graph networks are written and trained.

For an edge from sender s to receiver r, with x the senders' states, y the receivers' and e the edges',

    m = MLP_e([e, x_s, y_r])          y' = y + MLP_n([y, sum of m over the edges into r])          e' = e + m

Each MLP is Linear, SiLU, Linear, LayerNorm.  A sender may have several edges to one receiver, and a receiver none.

Source: Battaglia et al. 2018, "Relational inductive biases, deep learning, and graph networks", with the MLPs of Lam et
al. 2023, GraphCast.  `exporters/rewrites/message_passing.py` is the same step in the form that is exported.
"""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tsexport.models.icosphere import Edges


@cache
def interaction() -> "type[nn.Module]":
    """Return the class Interaction (defined here so that reading a Config needs no torch)."""
    import torch
    from torch import nn

    class Interaction(nn.Module):
        """source [batch, senders, width], target [batch, receivers, width], edges [batch, edges, width] -> (target,
        edges).  The batch of `target` and `edges` may be 1: they then stand for every row alike."""

        senders: "Tensor"
        receivers: "Tensor"

        def __init__(self, width: int, edges: "Edges") -> None:
            super().__init__()
            self.width = width
            self.register_buffer("senders", torch.tensor(edges.senders), persistent=False)
            self.register_buffer("receivers", torch.tensor(edges.receivers), persistent=False)
            self.edge_mlp = mlp(3 * width, width)
            self.node_mlp = mlp(2 * width, width)

        def forward(self, source: "Tensor", target: "Tensor", edges: "Tensor") -> "tuple[Tensor, Tensor]":
            sent = source.index_select(1, self.senders)
            seen = target.index_select(1, self.receivers)
            edges, sent, seen = torch.broadcast_tensors(edges, sent, seen)  # type: ignore[no-untyped-call]
            message: Tensor = self.edge_mlp(torch.cat([edges, sent, seen], dim=-1))  # [batch, edges, width]
            heard = message.new_zeros(message.shape[0], target.shape[1], self.width)
            # Not index_add: torch's exporter to ONNX drops its sum, and the last edge into a receiver would win.
            heard = heard.scatter_add(1, self.receivers[None, :, None].expand_as(message), message)
            target = target.expand_as(heard)
            return target + self.node_mlp(torch.cat([target, heard], dim=-1)), edges + message

    return Interaction


def mlp(inputs: int, width: int) -> "nn.Sequential":
    """Return [..., inputs] -> [..., width]: Linear, SiLU, Linear, LayerNorm."""
    from torch import nn

    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.LayerNorm(width))
