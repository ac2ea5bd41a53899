"""Configs: composition, types, and the sentence that each mistake gets."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ewald_jax.checked import Sources, construct, flatten, plain
from ewald_jax.typing import InputError


@dataclasses.dataclass(frozen=True)
class Inner:
    """A nested section."""

    scheme: Literal["lattice", "voxel"] = "voxel"
    num_k: tuple[int, int, int] = (1, 1, 3)
    rank: int = 8


@dataclasses.dataclass(frozen=True)
class Outer:
    """One field of every kind that configs have."""

    rate: float
    steps: int = 10
    label: str = "energy"
    on: bool = False
    limit: int | None = None
    either: float | tuple[float, ...] = 0.0
    milestones: tuple[int, ...] = ()
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    path: Path | None = None
    inner: Inner | None = None

    def __post_init__(self):
        if self.rate <= 0:
            raise InputError(f"rate must be positive, not {self.rate}")


def outer(**values):
    sources = Sources({f"o.{key}": "some.yaml" for key in flatten(values)})
    return construct(Outer, {"rate": 1.0} | values, "o", sources.knowing({"o": Outer}))


@pytest.mark.parametrize(
    ("key", "given", "wanted"),
    [
        ("rate", 1, 1.0),
        ("rate", "1e-4", 1e-4),
        ("steps", 3, 3),
        ("limit", None, None),
        ("limit", 5, 5),
        ("either", 2, 2.0),
        ("either", [1, 2.5], (1.0, 2.5)),
        ("milestones", [1, 2], (1, 2)),
        ("milestones", [], ()),
        ("values", {"a": 1}, {"a": 1.0}),
        ("path", "a/b", Path("a/b")),
        ("inner", None, None),
        ("inner", {}, Inner()),
        ("inner", {"num_k": [2, 2, 5]}, Inner(num_k=(2, 2, 5))),
    ],
)
def test_values_take_the_type_of_the_annotation(key, given, wanted):
    value = getattr(outer(**{key: given}), key)
    assert value == wanted
    assert type(value) is type(wanted)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"rate": "fast"}, "some.yaml: 'o.rate': expected a number, got 'fast'"),
        ({"rate": True}, "some.yaml: 'o.rate': expected a number, got True"),
        ({"rate": float("nan")}, "some.yaml: 'o.rate': expected a number, got nan"),
        ({"rate": -1.0}, "some.yaml: 'o': rate must be positive, not -1.0"),
        ({"steps": 1.5}, "some.yaml: 'o.steps': expected an integer, got 1.5"),
        ({"steps": 1e5}, "'o.steps': expected an integer, got 100000.0 (write 100000)"),
        ({"steps": True}, "'o.steps': expected an integer, got True"),
        ({"steps": "3"}, "'o.steps': expected an integer, got '3'"),
        ({"label": False}, "'o.label': expected text, got False (put it in quotes)"),
        ({"on": 1}, "'o.on': expected true or false, got 1"),
        ({"limit": "none"}, "'o.limit': expected an integer or null, got 'none'"),
        ({"milestones": 3}, "'o.milestones': expected a list of integers, got 3"),
        ({"milestones": [1, "b"]}, "'o.milestones[1]': expected an integer, got 'b'"),
        ({"values": [1]}, "'o.values': expected a mapping, got [1]"),
        ({"values": {"a": "b"}}, "'o.values.a': expected a number, got 'b'"),
        ({"inner": 3}, "'o.inner': expected a mapping or null, got 3"),
        (
            {"inner": {"num_k": [1, 2]}},
            "'o.inner.num_k': expected a list of 3 integers, got [1, 2]",
        ),
        (
            {"inner": {"scheme": "voxels"}},
            "'o.inner.scheme': expected one of 'lattice', 'voxel', got 'voxels'; did you "
            "mean 'voxel'?",
        ),
        ({"step": 3}, "some.yaml: 'o.step': unknown key; did you mean 'o.steps'?"),
        (
            {"inner": {"rnak": 3}},
            "'o.inner.rnak': unknown key; did you mean 'o.inner.rank'?",
        ),
        ({"num_k": [1, 1, 1]}, "'o.num_k': unknown key; did you mean 'o.inner.num_k'?"),
    ],
)
def test_misfits_are_refused_in_one_sentence(values, sentence):
    with pytest.raises(InputError) as caught:
        outer(**values)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_key():
    with pytest.raises(InputError, match="'o.rate': is missing; expected a number"):
        construct(Outer, {}, "o", Sources({}).knowing({"o": Outer}))


@given(
    st.builds(
        Outer,
        rate=st.floats(1e-9, 1e9),
        steps=st.integers(),
        label=st.text(),
        limit=st.none() | st.integers(),
        either=st.floats(allow_nan=False) | st.lists(st.floats(0, 1)).map(tuple),
        milestones=st.lists(st.integers()).map(tuple),
        values=st.dictionaries(st.text(), st.floats(allow_nan=False)),
        path=st.none() | st.just(Path("a/b.yaml")),
        inner=st.none() | st.builds(Inner),
    )
)
def test_plain_values_are_json_and_come_back(value):
    written = json.loads(json.dumps(plain(value)))
    sources = Sources({}).knowing({"o": Outer})
    assert construct(Outer, written, "o", sources) == value
