"""ONNX Runtime: on the CPU, with the settings of an app on a phone, or through one of its execution providers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.device.runtimes import OperatorTime, Session, check_feeds
from edgekd.errors import MissingExtra, MissingHere, ModelError, UsageError, nearest
from edgekd.spec import Array, TensorSpec

if TYPE_CHECKING:
    import onnxruntime

OPTIONS = ("session_config", "provider", "provider_options", "mobile", "profile")
CPU = "CPUExecutionProvider"
EXTENSIONS = "ai.onnx.contrib"  # the domain of onnxruntime-extensions' operators
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def open_model(model: Path | bytes, *, threads: int, options: Mapping[str, object]) -> Session:
    """Load an ONNX (or .ort) model, as a path or as bytes, for `threads` threads.

    `options` may hold
        session_config    {KEY: TEXT}, entries of ONNX Runtime's own session configuration
        provider          an execution provider; what it cannot run falls to the CPU. provider_options: its settings
        profile           a folder: every operator is timed from now on, which slows the calls; see `operator_times`
        mobile            true: the settings of an app, which shares its memory: no arena, no pattern, no spinning
    Raises `MissingExtra` without onnxruntime, `MissingHere` for a provider that this build or machine lacks,
    `ModelError` when the model cannot be loaded, `UsageError` for an unknown option.
    """
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError as error:
        raise MissingExtra("onnxruntime", "cpu", purpose="the runtime 'onnxruntime'") from error
    # onnxruntime's errors have no base class of their own; the list of them changes from version to version.
    refusals: tuple[type[Exception], ...] = (
        RuntimeError,
        ValueError,
        *(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    )
    # Its builds for some systems report usage; nothing that edgekd does goes over a network unasked.
    onnxruntime.disable_telemetry_events()
    settings = _settings(onnxruntime, threads, options)
    provider, providers = _providers(onnxruntime, options)
    name = "the model" if isinstance(model, bytes) else str(model)
    given = model if isinstance(model, bytes) else str(model)
    try:
        try:
            loaded = onnxruntime.InferenceSession(given, settings, providers=providers)
        except refusals as error:
            if EXTENSIONS not in str(error):
                raise
            _register_extensions(settings)
            loaded = onnxruntime.InferenceSession(given, settings, providers=providers)
    except refusals as error:
        raise ModelError(
            f"onnxruntime {onnxruntime.__version__} cannot load {name}: {_first_line(error)}. "
            "Expected an ONNX model of an opset that this version reads: 'edgekd inspect' shows it"
        ) from error
    # A provider that is not built in, or whose libraries are missing, falls back with only a warning.
    chosen = loaded.get_providers()
    if chosen[0] != provider or (provider == CPU and chosen != [CPU]):
        raise MissingHere(
            f"onnxruntime chose {chosen}, expected {provider} first; are the driver and the libraries of this "
            "provider installed?"
        )
    return _OnnxSession(loaded, refusals)


def _register_extensions(settings: onnxruntime.SessionOptions) -> None:
    """Let a session know the operators of onnxruntime-extensions."""
    try:
        from onnxruntime_extensions import get_library_path
    except ImportError as error:
        raise MissingExtra("onnxruntime-extensions", "extensions", purpose=f"a model with {EXTENSIONS}") from error
    settings.register_custom_ops_library(get_library_path())


class _OnnxSession:
    def __init__(self, loaded: onnxruntime.InferenceSession, refusals: tuple[type[Exception], ...]) -> None:
        self.inputs = tuple(_spec(value) for value in loaded.get_inputs())
        self.outputs = tuple(_spec(value) for value in loaded.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        self._loaded: onnxruntime.InferenceSession | None = loaded
        self._refusals = refusals

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        loaded = self._loaded
        if loaded is None:
            raise UsageError("this session is closed; open another one")
        try:
            return dict(zip(self._names, loaded.run(self._names, feeds)))
        except self._refusals as error:
            # onnxruntime checks every feed itself; ours comes after a refusal, to say it in words, because a small
            # model runs in microseconds.
            check_feeds(self.inputs, feeds)
            raise ModelError(
                f"the model failed while running: {_first_line(error)}; does it fit this input?"
            ) from error

    # What `prepare` gives holds whatever is prepared or run after it.
    prepares_several = True

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """Check the feeds now and give the bare call, for timing: around 10 microseconds every check would show."""
        loaded, names, bound = self._loaded, self._names, dict(feeds)
        if loaded is None:
            raise UsageError("this session is closed; open another one")
        check_feeds(self.inputs, bound)

        # A Python function, not functools.partial: going through C cost 100 ns more, 2 % of the smallest models.
        def call() -> object:
            return loaded.run(names, bound)

        return call

    def operator_times(self) -> list[OperatorTime]:
        """What each operator took in each call since the model was opened with "profile"; ends the profiling."""
        if self._loaded is None:
            raise UsageError("this session is closed; open another one")
        events = json.loads(Path(self._loaded.end_profiling()).read_text(encoding="utf-8"))
        found = []
        for event in events:
            name = str(event.get("name", ""))
            if event.get("cat") == "Node" and name.endswith("_kernel_time"):
                told = event["args"]
                # Nodes without a name would all be one.
                own = name.removesuffix("_kernel_time") or f"node {told.get('node_index', '?')}"
                found.append(OperatorTime(own, str(told["op_name"]), event["dur"] / 1e3))
        return found

    def close(self) -> None:
        self._loaded = None


def _providers(onnxruntime: Any, options: Mapping[str, object]) -> tuple[str, list[Any]]:
    """The provider that is asked for, and the list for the session."""
    provider, more = str(options.get("provider", CPU)), options.get("provider_options", {})
    if not isinstance(more, Mapping):
        raise UsageError(f"runtime 'onnxruntime': provider_options is {more!r}, expected a table of names and texts")
    built_in = onnxruntime.get_available_providers()
    if provider not in built_in:
        raise MissingHere(
            f"onnxruntime {onnxruntime.__version__} has no {provider} here, only {', '.join(built_in)}; install a "
            "build of onnxruntime that has it"
        )
    return provider, [(provider, {str(key): str(value) for key, value in more.items()})]


def _settings(onnxruntime: Any, threads: int, options: Mapping[str, object]) -> Any:
    for key in options:
        if key not in OPTIONS:
            raise UsageError(f"runtime 'onnxruntime': unknown option '{key}'. {nearest(key, OPTIONS)}")
    entries = options.get("session_config", {})
    if not isinstance(entries, Mapping):
        raise UsageError(f"runtime 'onnxruntime': session_config is {entries!r}, expected a table of names and texts")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = 4  # what fails comes as an exception, with its text
    if "profile" in options:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(str(options["profile"])) / "profile")
    mobile = bool(options.get("mobile", False))
    if mobile:
        settings.enable_cpu_mem_arena = False
        settings.enable_mem_pattern = False
    if threads > 1 or mobile:
        # Spinning threads of several sessions, or beside other work, slow each other down many times over.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in entries.items():
        settings.add_session_config_entry(str(key), str(value))
    return settings


def _spec(value: Any) -> TensorSpec:
    if value.type not in DTYPES:
        raise ModelError(
            f"'{value.name}' is {value.type}, expected a tensor of numbers or text; edgekd cannot run this model"
        )
    shape = tuple(
        size if isinstance(size, int) else (size or f"{value.name}_{axis}") for axis, size in enumerate(value.shape)
    )
    return TensorSpec(value.name, DTYPES[value.type], shape)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
