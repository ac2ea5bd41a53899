"""The packaged sample sets: what the committed files hold, and that they can be remade."""

import hashlib
import json

import numpy as np
import pytest

from ewald_jax.data.samples import (
    SAMPLES,
    provenance_path,
    read_sample,
    sample_path,
    split_indices,
)

COULOMB = 14.3996  # eV Å / e^2


@pytest.fixture(scope="module")
def dimers():
    return read_sample("dimers")


@pytest.fixture(scope="module")
def slabs():
    return read_sample("slabs")


@pytest.fixture(scope="module")
def provenance():
    return json.loads(provenance_path().read_text())


def infos(frames):
    return [atoms.info for atoms in frames]


def test_a_missing_package_is_named_with_the_remedy(tmp_path, monkeypatch):
    from ewald_jax.data.samples import make, xtb

    monkeypatch.setattr(make, "PACKAGES", ("no_such_package",))
    sentence = r"no_such_package is not installed: pip install -e '\.\[samples\]' in a ch"
    with pytest.raises(xtb.XtbMissing, match=sentence):
        make.make_samples(tmp_path, ["dimers"], progress=False)


def test_unknown_names():
    with pytest.raises(ValueError, match="Unknown sample set"):
        sample_path("crystals")
    with pytest.raises(ValueError, match="Unknown sample set"):
        split_indices("crystals", "random", [])
    with pytest.raises(ValueError, match="no split"):
        split_indices("slabs", "far", [])


def test_files_match_provenance(provenance):
    assert sum(sample_path(name).stat().st_size for name in SAMPLES) <= 5e6
    for name in SAMPLES:
        entry = provenance[name]
        content = sample_path(name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert entry["packages"]["tblite"] and entry["date_utc"] and entry["method"]
        assert entry["limit"] is None
        counts = entry["counts"]
        assert counts["tried"] == counts["kept"] + sum(counts["dropped"].values())


def test_dimer_contents(dimers, provenance):
    assert len(dimers) == provenance["dimers"]["counts"]["kept"] >= 2000
    pool = {info["pair"] for info in infos(dimers) if info["subset"] == "pool"}
    curves = {info["pair"] for info in infos(dimers) if info["subset"] == "curve"}
    assert len(pool) >= 12 and 4 <= len(curves) <= 6
    as_sets = {frozenset(pair.split("-")) for pair in pool}
    assert all(frozenset(pair.split("-")) not in as_sets for pair in curves)
    assert {name for pair in curves for name in pair.split("-")} <= {
        name for pair in pool for name in pair.split("-")
    }
    for atoms in dimers:
        assert 8 <= len(atoms) <= 40 and not atoms.pbc.any()
        info, results = atoms.info, atoms.calc.results
        labels = [results["energy"], info["interaction_energy"]]
        for values in (labels, results["forces"], results["charges"], atoms.positions):
            assert np.isfinite(values).all()
        assert 0 < info["num_a"] < len(atoms)
        assert info["charge"] == info["charge_a"] + info["charge_b"]
        assert abs(results["charges"][: info["num_a"]].sum() - info["charge_a"]) <= 0.151
        assert abs(results["charges"].sum() - info["charge"]) < 0.01
        assert np.abs(results["forces"].sum(axis=0)).max() < 1e-3
        assert -1.0 <= info["distance"] <= 15.0


def test_dimer_distances_cover_the_range(dimers):
    distance = np.array([i["distance"] for i in infos(dimers) if i["subset"] == "pool"])
    counts, _ = np.histogram(distance, bins=np.arange(0.0, 16.0, 1.0))
    assert counts.min() > 0.5 * counts.mean()


def test_stored_distance_is_the_surface_distance(dimers):
    from ewald_jax.data.samples.geometry import surface_distance

    for atoms in dimers[::200]:
        cut = atoms.info["num_a"]
        numbers = [atoms.numbers[:cut], atoms.numbers[cut:]]
        parts = [atoms.positions[:cut], atoms.positions[cut:]]
        distance = surface_distance(numbers, parts)
        assert distance == pytest.approx(atoms.info["distance"], abs=1e-3)


def test_far_ions_interact_like_point_charges(dimers):
    checked = 0
    for atoms in dimers:
        product = atoms.info["charge_a"] * atoms.info["charge_b"]
        if product == 0 or atoms.info["distance"] < 10.0:
            continue
        cut, charges = atoms.info["num_a"], atoms.calc.results["charges"]
        parts = atoms.positions[:cut], atoms.positions[cut:]
        clouds = charges[:cut], charges[cut:]
        separations = np.linalg.norm(parts[0][:, None] - parts[1][None], axis=-1)
        pairwise = COULOMB * (np.outer(*clouds) / separations).sum()
        centres = np.linalg.norm(parts[0].mean(axis=0) - parts[1].mean(axis=0))
        energy = atoms.info["interaction_energy"]
        assert energy == pytest.approx(product * COULOMB / centres, rel=0.35)
        if product > 0:
            assert energy == pytest.approx(pairwise, rel=0.08)
        checked += 1
    assert checked > 200


def test_slab_contents(slabs, provenance):
    assert len(slabs) == provenance["slabs"]["counts"]["kept"] >= 600
    systems = {info["system"] for info in infos(slabs)}
    for solid in ("NaCl", "LiF", "MgO"):
        assert f"{solid}-bulk" in systems
        for molecule in ("H2O", "CO", "CO2", "NH3", "HCl", "CH3OH"):
            assert f"{solid}-slab-{molecule}" in systems
    for atoms in slabs:
        assert 16 <= len(atoms) <= 80 and atoms.pbc.all()
        results = atoms.calc.results
        stress = atoms.get_stress(voigt=False)
        assert np.allclose(stress, stress.T)
        for values in (results["energy"], results["forces"], stress, atoms.positions):
            assert np.isfinite(values).all()
        assert np.abs(results["forces"].sum(axis=0)).max() < 2e-3
        tags = set(atoms.get_tags().tolist())
        assert tags == ({0, 1, 2} if "-slab-" in atoms.info["system"] else {0})


@pytest.mark.parametrize("split", ["random", "far"])
def test_dimer_splits(dimers, split):
    parts = split_indices("dimers", split, infos(dimers), seed=3)
    together = np.concatenate(list(parts.values()))
    assert np.array_equal(np.sort(together), np.arange(len(dimers)))
    assert all(dimers[i].info["subset"] == "curve" for i in parts["curve"])
    assert all(dimers[i].info["subset"] == "pool" for i in parts["test"])
    assert min(len(part) for part in parts.values()) >= 96
    if split == "far":
        distance = np.array([info["distance"] for info in infos(dimers)])
        assert distance[parts["test"]].min() >= 8.0
        assert distance[np.concatenate([parts["train"], parts["val"]])].max() < 8.0
    again = split_indices("dimers", split, infos(dimers), seed=3)
    other = split_indices("dimers", split, infos(dimers), seed=4)
    assert all(np.array_equal(parts[key], again[key]) for key in parts)
    assert not np.array_equal(parts["train"], other["train"])


@pytest.mark.parametrize("split", ["random", "system"])
def test_slab_splits(slabs, split):
    parts = split_indices("slabs", split, infos(slabs))
    together = np.concatenate(list(parts.values()))
    assert np.array_equal(np.sort(together), np.arange(len(slabs)))
    assert len(parts["curve"]) == 0 and min(len(parts["val"]), len(parts["test"])) >= 50
    if split == "system":
        tested = {slabs[i].info["system"] for i in parts["test"]}
        seen = np.concatenate([parts["train"], parts["val"]])
        assert tested.isdisjoint({slabs[i].info["system"] for i in seen})


def test_labels_can_be_recomputed(dimers, slabs):
    pytest.importorskip("tblite")
    from ewald_jax.data.samples.xtb import single_point

    small = min(slabs, key=len)
    charges = [atoms.info["charge"] for atoms in (dimers[0], dimers[-1])] + [0]
    methods = ["GFN2-xTB", "GFN2-xTB", "GFN1-xTB"]
    for atoms, charge, method in zip(
        (dimers[0], dimers[-1], small), charges, methods, strict=True
    ):
        labels = single_point(atoms, method, charge=charge)
        assert labels.energy == pytest.approx(atoms.calc.results["energy"], abs=1e-4)
        assert np.allclose(labels.forces, atoms.calc.results["forces"], atol=1e-3)
    assert np.allclose(labels.stress, small.get_stress(voigt=False), atol=1e-5)


def test_unconverged_is_an_error_of_its_own(dimers):
    pytest.importorskip("tblite")
    from ewald_jax.data.samples.xtb import XtbNotConverged, single_point

    with pytest.raises(XtbNotConverged):
        single_point(dimers[0], attempts=[{"max-iter": 2}])
    with pytest.raises(ValueError, match="method"):
        single_point(dimers[0], "PM6")


def test_making_again_gives_the_same(tmp_path, dimers):
    pytest.importorskip("tblite")
    pytest.importorskip("rdkit")
    from ewald_jax.data.samples.make import make_samples

    entry = make_samples(tmp_path, ["dimers"], workers=1, limit=3, progress=False)
    assert entry["dimers"]["counts"]["tried"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "dimers.extxyz.xz",
        "provenance.json",
    ]
    for new, old in zip(
        read_sample("dimers", tmp_path / "dimers.extxyz.xz"), dimers, strict=False
    ):
        assert new.info["pair"] == old.info["pair"]
        assert np.allclose(new.positions, old.positions, atol=1e-3)
        assert new.get_potential_energy() == pytest.approx(
            old.get_potential_energy(), abs=1e-2
        )


def test_interrupted_run_leaves_no_file_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("tblite")
    pytest.importorskip("rdkit")
    from ewald_jax.data.samples import dimers as module
    from ewald_jax.data.samples.make import make_samples

    monkeypatch.setattr(module, "CHUNK", 2)
    compute, calls = module.compute, []

    def interrupted(task, seed):
        calls.append(task["index"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return compute(task, seed)

    monkeypatch.setattr(module, "compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_samples(tmp_path, ["dimers"], workers=1, limit=6, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [".unfinished"]
    entry = make_samples(tmp_path, ["dimers"], workers=1, limit=6, progress=False)
    assert entry["dimers"]["counts"]["tried"] == 6
    assert calls == [0, 1, 2, 3, 2, 3, 4, 5]
    assert not (tmp_path / ".unfinished").exists()
