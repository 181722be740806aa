"""Energy: what the kernel's counters say, told per call, and absent where they cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.device import energy


def counters(root: Path, **values: tuple[str, int]) -> Path:
    """Domains of /sys/class/powercap: name -> (what it is, microjoules)."""
    for domain, (what, microjoules) in values.items():
        folder = root / "sys/class/powercap" / domain.replace("_", ":")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{what}\n")
        (folder / "energy_uj").write_text(f"{microjoules}\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")
    return root


def read(root: Path, **values: tuple[str, int]) -> energy.Counters | None:
    return energy.read(root=counters(root, **{f"intel-rapl_{key}": value for key, value in values.items()}))


def test_packages_are_added_and_their_parts_and_the_board_are_not(tmp_path: Path) -> None:
    before = read(
        tmp_path,
        **{"0": ("package-0", 1_000), "0_0": ("core", 500), "1": ("package-1", 7_000), "2": ("psys", 90_000)},
    )
    after = read(
        tmp_path,
        **{"0": ("package-0", 4_000), "0_0": ("core", 2_500), "1": ("package-1", 7_500), "2": ("psys", 190_000)},
    )
    assert energy.used_mj(before, after) == pytest.approx(3.5)


def test_a_counter_that_began_again_is_put_right(tmp_path: Path) -> None:
    before, after = (read(tmp_path, **{"0": ("package-0", value)}) for value in (262_143_328_000, 150))
    assert energy.used_mj(before, after) == pytest.approx(1.0)


def test_what_cannot_be_read_is_absent(tmp_path: Path) -> None:
    assert energy.read(root=tmp_path) is None
    known = read(tmp_path, **{"0": ("package-0", 1)})
    assert known is not None
    assert energy.used_mj(None, known) is energy.used_mj(known, None) is None
    assert energy.used_mj(known, {**known, "another": (1, 2)}) is None
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    assert energy.read(root=tmp_path) is None
