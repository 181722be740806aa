"""Static int8 of one ONNX file by another system, in its own documented setting for a CPU.

    python benchmarks/peers/quantize_with.py nncf student.onnx calibration.npz out.onnx

Runs in the interpreter that has that system; nothing of edgekd is imported. `calibration.npz` holds one array (N, ...)
per input. Exit code 4: the system is not installed there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


class Reader:
    """Calibration samples one by one, as onnxruntime's quantizer asks for them."""

    def __init__(self, arrays: Arrays) -> None:
        self.rows: Iterator[Arrays] = iter(rows(arrays))

    def get_next(self) -> Arrays | None:
        return next(self.rows, None)


def rows(arrays: Arrays) -> list[Arrays]:
    count = len(next(iter(arrays.values())))
    return [{name: array[index : index + 1] for name, array in arrays.items()} for index in range(count)]


def onnxruntime(model: Path, arrays: Arrays, out: Path) -> None:
    """quantize_static as it stands: QDQ, int8 activations and weights, per tensor, min-max; its own pre-processing."""
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = out.with_suffix(".ready.onnx")
    quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)
    quantize_static(str(ready), str(out), Reader(arrays))
    ready.unlink()


def optimum(model: Path, arrays: Arrays, out: Path) -> None:
    """ORTQuantizer with the configuration for AVX512-VNNI: static, per channel, min-max."""
    from datasets import Dataset
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig

    quantizer = ORTQuantizer.from_pretrained(model.parent, file_name=model.name)
    config = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=True)
    data = Dataset.from_list([{name: value[0] for name, value in row.items()} for row in rows(arrays)])
    ranges = quantizer.fit(
        data.with_format("numpy"),
        AutoCalibrationConfig.minmax(data),
        operators_to_quantize=config.operators_to_quantize,
    )
    folder = out.parent / f"{out.stem}-optimum"
    quantizer.quantize(save_dir=folder, quantization_config=config, calibration_tensors_range=ranges)
    next(folder.glob("*.onnx")).replace(out)


def olive(model: Path, arrays: Arrays, out: Path) -> None:
    """The pass OnnxStaticQuantization with its defaults."""
    from olive.data.component.dataset import BaseDataset
    from olive.data.config import DataComponentConfig, DataConfig
    from olive.data.registry import Registry
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.quantization import OnnxStaticQuantization

    samples = [({name: value[0] for name, value in row.items()}, 0) for row in rows(arrays)]

    @Registry.register_dataset(name="calibration_of_edgekd")
    def dataset(**_: Any) -> Any:
        return BaseDataset(samples)

    data = DataConfig(
        name="calibration",
        load_dataset_config=DataComponentConfig(type="calibration_of_edgekd"),
        pre_process_data_config=DataComponentConfig(type="skip_pre_process"),
        post_process_data_config=DataComponentConfig(type="skip_post_process"),
    )
    step = create_pass_from_dict(OnnxStaticQuantization, {"data_config": data}, disable_search=True)
    made = step.run(ONNXModelHandler(model_path=str(model)), str(out.parent / f"{out.stem}-olive"))
    Path(made.model_path).replace(out)


def neural_compressor(model: Path, arrays: Arrays, out: Path) -> None:
    """Post-training static quantization with its defaults."""
    from neural_compressor.config import PostTrainingQuantConfig
    from neural_compressor.quantization import fit

    class Loader:
        batch_size = 1

        def __iter__(self) -> Iterator[Any]:
            for row in rows(arrays):
                values = list(row.values())
                yield (values[0] if len(values) == 1 else row), 0

    made = fit(str(model), conf=PostTrainingQuantConfig(approach="static"), calib_dataloader=Loader())
    made.save(str(out))


def nncf(model: Path, arrays: Arrays, out: Path) -> None:
    """nncf.quantize with its defaults."""
    import nncf as system
    import onnx

    onnx.save(system.quantize(onnx.load(model), system.Dataset(rows(arrays))), out)


SYSTEMS: dict[str, Callable[[Path, Arrays, Path], None]] = {
    "onnxruntime": onnxruntime,
    "optimum": optimum,
    "olive": olive,
    "neural_compressor": neural_compressor,
    "nncf": nncf,
}


def main() -> None:
    """Quantize with the system that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    with np.load(args.calibration, allow_pickle=False) as arrays:
        feeds = {name: arrays[name] for name in arrays.files}
    try:
        SYSTEMS[args.system](args.model.absolute(), feeds, args.out.absolute())
    except ImportError as error:
        print(f"{args.system} is not installed: {error}", file=sys.stderr)
        sys.exit(4)


if __name__ == "__main__":
    main()
