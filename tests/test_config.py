"""Configs: composition, types, and the sentence that each mistake gets."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ewald_jax import EwaldConfig, build_model
from ewald_jax.checked import Sources, construct, flatten, plain
from ewald_jax.config import Config, load_config, load_section
from ewald_jax.models import SchNet
from ewald_jax.train import LossConfig
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


DATA = "data: {name: dimers}\n"
MODEL = """
model: {name: schnet, hidden_channels: 8, cutoff: 4}
optim: {lr: 1e-4, milestones: [10, 20]}
"""
VOXEL = "model: {ewald: {scheme: voxel, k_cutoff: 0.4}}\n"


@pytest.fixture
def files(tmp_path):
    """Writes YAML files and gives their paths."""

    def write(**texts):
        paths = []
        for name, text in texts.items():
            paths.append(tmp_path / f"{name}.yaml")
            paths[-1].write_text(text)
        return paths

    return write


def test_files_compose_from_left_to_right(files):
    paths = files(data=DATA, model=MODEL, variant=VOXEL, last="optim: {lr: 3e-4}")
    config = load_config(paths, ["train.epochs=7", "model.ewald.bottleneck=4"])
    assert config.data.name == "dimers"
    assert (type(config.model), config.model.hidden_channels) == (SchNet, 8)
    assert config.model.cutoff == 4.0
    assert config.model.ewald == EwaldConfig(scheme="voxel", k_cutoff=0.4, bottleneck=4)
    assert config.optim.lr == 3e-4
    assert config.optim.milestones == (10, 20)
    assert config.train.epochs == 7
    assert config.loss == LossConfig()


def test_null_takes_a_section_back(files):
    paths = files(data=DATA, model=MODEL, variant=VOXEL, none="model: {ewald: null}")
    assert load_config(paths).model.ewald is None


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", ".0001", "0.0001", "'1e-4'"])
def test_numbers_as_people_write_them(files, text):
    paths = files(data=DATA, model=MODEL, lr=f"optim: {{lr: {text}}}")
    assert load_config(paths).optim.lr == 1e-4
    assert load_config(paths[:2], [f"optim.lr={text}"]).optim.lr == 1e-4


def test_interpolation(files):
    paths = files(data=DATA, model=MODEL, more="train: {seed: 3}\ndata: {split_seed: 4}")
    config = load_config(paths, ["data.split_seed=${train.seed}"])
    assert config.data.split_seed == 3


def test_plain_values_rebuild_the_config(files):
    config = load_config(files(data=DATA, model=MODEL, variant=VOXEL))
    written = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert Config.from_dict(written) == config
    assert build_model(**written["model"]) == config.model


def test_summary_names_what_is_not_the_default(files):
    changed = load_config(files(data=DATA, model=MODEL)).changed()
    assert changed["data"] == "name=dimers"
    assert changed["model"] == "schnet hidden_channels=8 cutoff=4.0"
    assert changed["optim"] == "lr=0.0001 milestones=[10,20]"
    assert changed["train"] == "the defaults"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optm: {lr: 1.0}", "'optm': unknown key; did you mean 'optim'?"),
        ("lr: 1.0", "'lr': unknown key; did you mean 'optim.lr'?"),
        ("optim: {learning_rate: 1}", "'optim.learning_rate': unknown key; did you mean"),
        ("model: {hiden_channels: 8}", "did you mean 'model.hidden_channels'?"),
        ("model: {ewald: {k_cut: 1}}", "did you mean 'model.ewald.k_cutoff'?"),
        ("model: {k_cutoff: 1}", "did you mean 'model.ewald.k_cutoff'?"),
        ("model: {name: shcnet}", "'model.name': unknown model 'shcnet'; did you mean"),
        ("model: {name: no.such.Model}", "'model.name': cannot import the model"),
        ("model: {cutoff: far}", "'model.cutoff': expected a number, got 'far'"),
        ("model: 3", "'model': expected a mapping of keys, got 3"),
        ("train: {epochs: 1.5}", "'train.epochs': expected an integer, got 1.5"),
        ("train: {epochs: 0}", "train.epochs must be at least 1"),
        ("data: {statistics: {scale: -1}}", "statistics.scale is -1.0"),
        ("optim: [1, 2]", "'optim': expected a mapping of keys, got [1, 2]"),
        ("[optim, train]", "expected a mapping of sections, found a list"),
        ("optim: {lr: 1}\noptim: {lr: 2}", "line 2: not valid YAML (found duplicate key"),
        ("optim: {lr: 1", ": not valid YAML ("),
        (
            "optim: !!python/object/apply:os.getcwd []",
            "not valid YAML (could not determine",
        ),
        ("optim: {lr: '${train.x}'}", "'optim.lr': Interpolation key 'train.x' not found"),
    ],
)
def test_mistakes_name_file_and_key(files, text, sentence):
    paths = files(data=DATA, model=MODEL, wrong=text)
    with pytest.raises(InputError) as caught:
        load_config(paths)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(str(paths[-1]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["optim.lr", "=3", "optim.=3", ".lr=3", "optim.lr=[1"])
def test_malformed_overrides(files, override):
    with pytest.raises(InputError, match="^override "):
        load_config(files(data=DATA, model=MODEL), [override])


def test_a_wrong_override_is_of_the_command_line(files):
    with pytest.raises(InputError, match=r"^the command line: 'optim.lrr': unknown key"):
        load_config(files(data=DATA, model=MODEL), ["optim.lrr=1"])


def test_files_that_cannot_be_read(files, tmp_path):
    (path,) = files(data=DATA)
    with pytest.raises(InputError, match="no config file .*dta.yaml; near it: .*data.yaml"):
        load_config([path.with_name("dta.yaml")])
    with pytest.raises(InputError, match="no config file .*/there.yaml$"):
        load_config([tmp_path / "not" / "there.yaml"])
    with pytest.raises(InputError, match="cannot be read as a config"):
        load_config([tmp_path])
    path.write_bytes(b"data: \xff\xfe")
    with pytest.raises(InputError, match="it is not UTF-8 text"):
        load_config([path])
    with pytest.raises(InputError, match="the configs name no model: set 'model.name' to"):
        load_config([])


def test_one_section_alone(files):
    paths = files(data=DATA + "other: {not: checked}", model=MODEL)
    assert load_section(paths[0], "data", ["data.limit=3"]).limit == 3
    assert load_section({"name": "slabs"}, "data").name == "slabs"
    with pytest.raises(InputError, match="has no section 'data'"):
        load_section(paths[1], "data")
    with pytest.raises(InputError, match="did you mean 'data.limit'"):
        load_section(paths[0], "data", ["data.limt=3"])
