"""The table of models: one row each.  Third parties add theirs through the entry point group `tsexport.models`.

An entry point is named as its model and loads to a `ModelEntry`.  Listing imports no model's file, and no torch.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import cast

from tsexport.errors import ConfigurationError, UsageError, did_you_mean
from tsexport.models.definition import Definition, ModelConfig
from tsexport.models.settings import SIZE, configure
from tsexport.types import Task

CHECKPOINTS = Path(__file__).parent / "checkpoints"
ENTRY_POINT_GROUP = "tsexport.models"

FLAT_TRANSFORM = "the Fourier transform of a regional patch is flat and periodic, not spherical"


@dataclass(frozen=True)
class ModelEntry:
    """A registered model.

    `module` is the dotted name of the file that defines it (see `tsexport.models.definition`), imported on first use.
    `parameters` is their number in the default configuration; `published_parameters` is the number that the source
    claims, where it claims one and it is not ours, and `published_note` says why they differ.  `checkpoint` is the
    reference checkpoint that comes with the model, or None: then weights are initialised from a seed.  It belongs to
    the named size `checkpoint_size`, or to the default configuration where that is None.
    """

    name: str
    family: str
    task: Task
    summary: str
    source: str
    module: str
    parameters: int
    checkpoint: Path | None = None
    caveats: tuple[str, ...] = ()
    published_parameters: int | None = None
    published_note: str = ""
    checkpoint_size: str | None = None

    def definition(self) -> Definition:
        """Import and return the model's module: its `Config` and `build`."""
        return cast(Definition, import_module(self.module))

    def checkpoint_config(self) -> ModelConfig:
        """Return the configuration that the reference checkpoint belongs to."""
        settings = {} if self.checkpoint_size is None else {SIZE: self.checkpoint_size}
        return configure(self.definition().Config, settings, model=self.name)


_TABLE = (
    ModelEntry(
        name="patchtst-cpu",
        family="transformer",
        task="forecast",
        summary="one value from 128 bars of 8 market features",
        source="PatchTST-CPU document",
        module="tsexport.models.patchtst_cpu",
        parameters=611_713,
        checkpoint=CHECKPOINTS / "patchtst-cpu.safetensors",
        caveats=("without positional_encoding the model cannot tell the order of its patches, as published",),
    ),
    ModelEntry(
        name="patchtst",
        family="transformer",
        task="forecast",
        summary="each channel forecast from overlapping patches of its past (336 -> 96 steps, 7 channels)",
        source="Nie et al. 2023, A Time Series is Worth 64 Words",
        module="tsexport.models.patchtst",
        parameters=81_731,
    ),
    ModelEntry(
        name="dlinear",
        family="linear",
        task="forecast",
        summary="trend and remainder, each mapped linearly to the future (336 -> 96 steps, 7 channels)",
        source="Zeng et al. 2023, Are Transformers Effective for Time Series Forecasting?",
        module="tsexport.models.dlinear",
        parameters=64_704,
    ),
    ModelEntry(
        name="linear",
        family="linear",
        task="forecast",
        summary="the past mapped linearly to the future (336 -> 96 steps, 7 channels)",
        source="Zeng et al. 2023, Are Transformers Effective for Time Series Forecasting?",
        module="tsexport.models.linear",
        parameters=32_352,
    ),
    ModelEntry(
        name="lstm",
        family="recurrent",
        task="classification",
        summary="3 classes from 60 bars of 26 features, by two LSTM layers",
        source="Hochreiter and Schmidhuber 1997, Long Short-Term Memory; sizes of the Model Infrastructure Guide",
        module="tsexport.models.lstm",
        parameters=212_355,
        checkpoint=CHECKPOINTS / "lstm.safetensors",
    ),
    ModelEntry(
        name="gru",
        family="recurrent",
        task="classification",
        summary="3 classes from 60 bars of 26 features, by two GRU layers",
        source="Cho et al. 2014, RNN Encoder-Decoder; sizes of the Model Infrastructure Guide",
        module="tsexport.models.gru",
        parameters=159_363,
        checkpoint=CHECKPOINTS / "gru.safetensors",
    ),
    ModelEntry(
        name="tcn",
        family="recurrent",  # the published tables count it there
        task="classification",
        summary="3 classes from 60 bars of 26 features, by dilated causal convolutions",
        source="Bai et al. 2018, An Empirical Evaluation of Generic Convolutional and Recurrent Networks",
        module="tsexport.models.tcn",
        parameters=142_851,
        checkpoint=CHECKPOINTS / "tcn.safetensors",
    ),
    ModelEntry(
        name="inception-time",
        family="cnn",
        task="classification",
        summary="3 classes from 60 bars of 5 features, by convolutions of several lengths side by side",
        source="Fawaz et al. 2020, InceptionTime; sizes of the Model Infrastructure Guide",
        module="tsexport.models.inception_time",
        parameters=1_121_795,
        checkpoint=CHECKPOINTS / "inception-time.safetensors",
        checkpoint_size="small",
    ),
    ModelEntry(
        name="resnet1d",
        family="cnn",
        task="classification",
        summary="3 classes from 60 bars of 5 features, by residual blocks of 1-D convolutions",
        source="Wang et al. 2017, Time Series Classification from Scratch with Deep Neural Networks",
        module="tsexport.models.resnet1d",
        parameters=505_539,
        checkpoint=CHECKPOINTS / "resnet1d.safetensors",
    ),
    ModelEntry(
        name="unet",
        family="unet",  # the published rows of "cnn" are for classifiers of 60 bars
        task="forecast",
        summary="the next hour's weather, 13 channels on 64x64, by 2-D convolutions on three levels",
        source="Ronneberger et al. 2015, U-Net; sizes are this project's",
        module="tsexport.models.unet",
        parameters=470_445,
        checkpoint=CHECKPOINTS / "unet.safetensors",
    ),
    ModelEntry(
        name="itransformer",
        family="transformer",
        task="forecast",
        summary="attention over channels, each one token (96 -> 96 steps, 7 channels)",
        source="Liu et al. 2024, iTransformer",
        module="tsexport.models.itransformer",
        parameters=841_568,
    ),
    ModelEntry(
        name="tft",
        family="transformer",
        task="quantiles",
        summary="3 quantiles of 24 steps from 168 steps of 5 observed and 4 known variables",
        source="Lim et al. 2021, Temporal Fusion Transformers",
        module="tsexport.models.tft",
        parameters=425_156,
        caveats=("quantiles may cross, as published",),
    ),
    ModelEntry(
        name="nhits",
        family="mlp",
        task="forecast",
        summary="MLPs that see and answer at several rates (480 -> 96 steps, 7 channels)",
        source="Challu et al. 2023, N-HiTS",
        module="tsexport.models.nhits",
        parameters=2_105_928,
    ),
    ModelEntry(
        name="migt-tvdt",
        family="transformer",
        task="quantiles",
        summary="7 quantiles at 5 horizons from 288 bars of 24 market variables, padding masked",
        source="MIGT-TVDT document; feed-forward, gate and horizons are this project's",
        module="tsexport.models.migt_tvdt",
        parameters=4_786_251,
    ),
    ModelEntry(
        name="hrm-27m",
        family="hrm",
        task="forecast",
        summary="3 values for each of a day's 390 minutes, read under the state of the 64 days before",
        source="HRM-27M document (Latency and Memory Plan); shapes are this project's",
        module="tsexport.models.hrm_27m",
        parameters=28_135_877,
        published_parameters=27_300_000,
        published_note="that is H and L alone, here 27.5 M; FiLM and heads add 0.6 M",
    ),
    ModelEntry(
        name="weather-gnn",
        family="gnn",
        task="forecast",
        summary="the next hour's weather, 13 channels on a global 32x64 grid, by messages on an icosahedral mesh",
        source="Lam et al. 2023, GraphCast; sizes are this project's",
        module="tsexport.models.weather_gnn",
        parameters=316_493,
        checkpoint=CHECKPOINTS / "weather-gnn.safetensors",
    ),
    ModelEntry(
        name="sfno-hybrid",
        family="spectral",
        task="forecast",
        summary="the next hour's weather, 13 channels on 256x256, by a spectral U-Net with a transformer at its bottom",
        source="SFNO-Hybrid document; Li et al. 2021, Fourier Neural Operator",
        module="tsexport.models.sfno_hybrid",
        parameters=481_657_101,
        published_parameters=487_523_597,
        published_note="its published code cannot run, and its layers sum to 7,985,230,093",
        caveats=(FLAT_TRANSFORM,),
    ),
    ModelEntry(
        name="sfno-edge",
        family="spectral",
        task="forecast",
        summary="the next hour's weather, 13 channels on 256x256, by a small spectral U-Net",
        source="named in the SFNO-Hybrid document as the Lightweight Edge Model; its sizes are this project's",
        module="tsexport.models.sfno_edge",
        parameters=3_072_621,
        checkpoint=CHECKPOINTS / "sfno-edge.safetensors",
        checkpoint_size="test",
        caveats=(FLAT_TRANSFORM,),
    ),
)
_BUILT_IN = {entry.name: entry for entry in _TABLE}


def list_entries() -> tuple[ModelEntry, ...]:
    """Return every registered model: the table's in its order, then third parties' by name.

    Raises:
        ConfigurationError: a third party's entry point cannot be used.
    """
    foreign = sorted(_entry_points(), key=lambda point: point.name)
    return (*_TABLE, *(_load(point) for point in foreign))


def get_entry(name: str) -> ModelEntry:
    """Return the model registered as `name`.

    Raises:
        UsageError: there is none of that name.
        ConfigurationError: it is a third party's, and its entry point cannot be used.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    foreign = {point.name: point for point in _entry_points()}
    if name in foreign:
        return _load(foreign[name])
    if name.lower().replace("-", "").replace("_", "").startswith("timegpt"):
        raise UsageError(
            "TimeGPT is a closed API: it has no weights, so there is nothing to convert",
            next_step="Choose a model with public weights; `tsexport models` lists those registered here.",
        )
    names = [*_BUILT_IN, *sorted(foreign)]
    raise UsageError(
        f"there is no model {name!r}{did_you_mean(name, names)}; registered are {', '.join(names)}",
        next_step="Name a registered model, a factory as module:factory, or an .onnx, TorchScript or .pt2 file.",
    )


def is_registered(name: str) -> bool:
    """Return whether `get_entry` knows `name`, without loading a third party's code."""
    return name in _BUILT_IN or any(point.name == name for point in _entry_points())


def _entry_points() -> list[EntryPoint]:
    return [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name not in _BUILT_IN]


def _load(point: EntryPoint) -> ModelEntry:
    owner = point.dist.name if point.dist else "an unknown package"
    try:
        entry = point.load()
    except Exception as error:  # a third party's code may raise anything
        raise ConfigurationError(
            f"the model {point.name!r} of {owner} cannot be loaded from {point.value}: {error!r}",
            next_step=f"Repair or uninstall {owner}.",
        ) from error
    if not isinstance(entry, ModelEntry) or entry.name != point.name:
        raise ConfigurationError(
            f"the entry point {point.name!r} of {owner} gives {entry!r}, not a ModelEntry of that name",
            next_step=f"Repair or uninstall {owner}.",
        )
    return entry
