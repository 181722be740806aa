"""TOML that is written reads back to the same value."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd import toml

scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.dates(),
)
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=12,
)


@given(st.dictionaries(keys, values, max_size=5))
def test_what_is_written_reads_back(value: dict[str, object]) -> None:
    assert toml.loads(toml.dumps(value)) == value


def test_tables_become_headers_and_lists_of_tables_with_options_become_blocks() -> None:
    text = toml.dumps(
        {"version": 1, "distill": {"epochs": 2, "terms": [{"loss": "kd", "options": {"temperature": 3.0}}]}}
    )
    assert text == (
        'version = 1\n\n[distill]\nepochs = 2\n\n[[distill.terms]]\nloss = "kd"\noptions = {temperature = 3.0}\n'
    )


def test_letters_that_toml_forbids_are_escaped() -> None:
    nasty = 'quote " backslash \\ newline \n tab \t bell \x07 delete \x7f emoji \U0001f600'
    assert toml.loads(toml.dumps({"a": nasty})) == {"a": nasty}


def test_a_value_without_a_form_in_toml_is_refused() -> None:
    with pytest.raises(TypeError, match="NoneType has no form in TOML"):
        toml.dumps({"a": None})
    assert toml.dumps({"t": datetime.time(1, 2, 3)}) == "t = 01:02:03\n"
