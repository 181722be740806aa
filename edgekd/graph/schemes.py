"""Which 8-bit scheme suits a kind of CPU: whose kernels give the exact products, and of those the fastest.

    x86-64 with VNNI, ARM   int8_u8s8   products of four pairs are added in 32 bits
    x86-64 without VNNI     int8_u8u8   `vpmaddubsw` adds two products of unsigned with signed numbers in 16 bits and
                                        saturates: 2 * 255 * 127 > 32767. Two unsigned ones take another, exact way;
                                        7-bit weights (int8_u8s7) fit, 2 * 255 * 64 <= 32767
    WebAssembly             int8_u8u8   runs on any CPU

Signed activations are no way out on x86: onnxruntime turns them into unsigned ones when it loads the file (seen in
1.31: qdq_s8_to_u8_zp_conversion), and the same kernel saturates.
"""

from __future__ import annotations

from edgekd.errors import UsageError, nearest
from edgekd.graph.quantization import VARIANTS, Config, Int8Dynamic, Int8Static, MixedPrecision
from edgekd.graph.targets import Target

# --config names that mean the target's own scheme.
SCHEME_OF_TARGET = "int8_static"


def saturates(config: Config, cpu_kind: str) -> bool:
    """Whether products of `config` may saturate on a CPU of this kind (`edgekd.device.machine.cpu_kind`)."""
    if isinstance(config, MixedPrecision):
        config = config.base
    if not cpu_kind.startswith("x86_64") or cpu_kind == "x86_64-vnni":
        return False
    if isinstance(config, Int8Static):
        return config.weight == "int8" and not config.reduce_range
    return isinstance(config, Int8Dynamic) and config.weight == "int8"


def static_scheme(target: Target, cpu_kind: str) -> str:
    """The static int8 variant for `target` on `cpu_kind`: the first that the target prefers there, else the first of
    its variants, as long as it does not saturate. Raises `UsageError` when there is none."""
    for name in (*target.preference(cpu_kind), *target.variants):
        config = VARIANTS.get(name)
        if isinstance(config, Int8Static) and not saturates(config, cpu_kind):
            return name
    raise UsageError(
        f"target {target.name} names no static int8 scheme that is exact on {cpu_kind}; choose one with --config. "
        f"{nearest('', VARIANTS)}"
    )
