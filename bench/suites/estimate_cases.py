"""The reference models of the memory table: each configuration, and the batch sizes at which it is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A registered model in one configuration, and the batch sizes at which it is measured."""

    model: str
    batches: tuple[int, ...] = (1, 32)
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """How tables name it: the model, then what is not its default."""
        return " ".join((self.model, *(value if key == "size" else f"{key}={value}" for key, value in self.settings)))


CASES = (
    Case("patchtst-cpu", (1, 32, 128)),
    Case("lstm", (1, 32, 256)),
    Case("lstm", (256,), (("size", "small"),)),
    Case("lstm", (512,), (("size", "large"),)),
    Case("lstm", (1, 32), (("hidden", "1024"),)),
    Case("gru"),
    Case("gru", (1, 32), (("hidden", "1024"),)),
    Case("tcn"),
    Case("tcn", (1, 32), (("filters", "512"),)),
    Case("resnet1d"),
    Case("resnet1d", (1, 32), (("filters", "256,512,512"),)),
    Case("inception-time", (1, 64)),
    Case("inception-time", (64,), (("size", "small"),)),
    Case("inception-time", (1, 32, 128), (("size", "large"),)),
    Case("patchtst"),
    Case("patchtst", (1, 8), (("size", "large"),)),
    Case("itransformer"),
    Case("itransformer", (32,), (("size", "small"),)),
    Case("itransformer", (16,), (("size", "medium"),)),
    Case("itransformer", (1, 8), (("size", "large"),)),
    Case("nhits", (1, 128)),
    Case("nhits", (1, 32), (("width", "1536"),)),
    Case("tft"),
    Case("tft", (1, 8), (("width", "256"),)),
    Case("unet"),
    Case("unet", (1, 8), (("widths", "128,256,512"),)),
    Case("weather-gnn", (1, 4)),
    Case("dlinear"),
    Case("migt-tvdt", (1, 4)),
    Case("sfno-edge", (1, 4)),
    Case("hrm-27m", (1, 4)),
)
