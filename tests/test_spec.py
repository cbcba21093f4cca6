"""Specs: strict keywords, overrides, JSON round trips, and nothing outside trusted packages."""

import json
from fractions import Fraction

import pytest

from big_mm import spec as specs
from big_mm.mesh import MeshConfig
from big_mm.spec import UserError, build, from_json, load_config, override, resolve, spec, to_json
from big_mm.training import optimizer, schedules


def test_builds_what_it_names():
    assert build(spec(MeshConfig, fsdp=2)) == MeshConfig(fsdp=2)


def test_dicts_and_sequences_of_specs_are_built():
    built = build({"a": [spec(MeshConfig, fsdp=2), 3], "b": {"c": spec(MeshConfig)}})
    assert built == {"a": (MeshConfig(fsdp=2), 3), "b": {"c": MeshConfig()}}


@pytest.mark.parametrize("when", ["write", "override", "read", "build"])
def test_a_misspelt_keyword_names_key_component_and_nearest(when):
    config = spec(MeshConfig)
    with pytest.raises(UserError, match=r"MeshConfig has no keyword 'fspd'; did you mean 'fsdp'"):
        if when == "write":
            spec(MeshConfig, fspd=2)
        elif when == "override":
            override(config, ["--config.fspd=2"])
        elif when == "read":
            from_json(json.dumps({"_class_": "big_mm.mesh.MeshConfig", "fspd": 2}))
        else:
            build({"_class_": "big_mm.mesh.MeshConfig", "fspd": 2})


def test_json_round_trip_keeps_every_default():
    config = resolve(spec(MeshConfig, rules=((".*kernel", (None, "fsdp")),)))
    again = from_json(to_json(config))
    assert build(again) == build(config) == MeshConfig(rules=((".*kernel", (None, "fsdp")),))
    assert again["data"] == -1 and to_json(again) == to_json(config)


def test_overrides_reach_nested_components_sequences_and_unwritten_defaults():
    config = specs.ml_collections.ConfigDict(
        {"meshes": (spec(MeshConfig),), "rate": 1.0, "n": None}
    )
    override(config, ["--config.meshes.0.fsdp=4", "--config.rate=2", "--config.n=text"])
    assert build(config) == {"meshes": (MeshConfig(fsdp=4),), "rate": 2.0, "n": "text"}
    assert isinstance(config.rate, float)


def test_a_component_may_be_added_to_a_plain_dict_and_nothing_else():
    config = specs.ml_collections.ConfigDict({"meshes": {}})
    override(config, ["--config.meshes.a=big_mm.mesh.MeshConfig", "--config.meshes.a.fsdp=2"])
    assert build(config) == {"meshes": {"a": MeshConfig(fsdp=2)}}
    for argument in ("--config.meshes.b=3", "--config.meshes.b.fsdp=3"):
        with pytest.raises(UserError, match="no key 'b'"):
            override(config, [argument])


def test_overrides_reach_into_a_default_that_is_a_component():
    config = spec(optimizer.AdamW, learning_rate=1.0)
    override(config, ["--config.schedule.warmup=7"])
    assert build(config) == optimizer.AdamW(learning_rate=1.0, schedule=schedules.Constant(7))
    with pytest.raises(UserError, match="Constant has no keyword 'warmpu'; did you mean 'warmup'"):
        override(spec(optimizer.AdamW, learning_rate=1.0), ["--config.schedule.warmpu=7"])
    with pytest.raises(UserError, match="'often' is not int"):
        override(spec(optimizer.AdamW, learning_rate=1.0), ["--config.schedule.warmup=often"])
    written = json.loads(to_json(resolve(spec(optimizer.AdamW, learning_rate=1.0))))
    assert written["schedule"]["cooldown"] == 0 and build(written) == build(config).__class__(
        learning_rate=1.0
    )


def test_an_override_may_name_another_component():
    config = specs.ml_collections.ConfigDict({"mesh": None})
    override(config, ["--config.mesh=big_mm.mesh.MeshConfig", "--config.mesh.fsdp=2"])
    assert build(config) == {"mesh": MeshConfig(fsdp=2)}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.fsdp=many", "'many' is not int"),
        ("--config.fsdp=1.5", "1.5 is not int"),
        ("--config.fsdp.x=1", "nothing to set below"),
        ("--fsdp=1", "unknown argument"),
        ("--config.fsdp", "unknown argument"),
    ],
)
def test_bad_overrides_say_what_is_wrong(argument, message):
    with pytest.raises(UserError, match=message):
        override(spec(MeshConfig), [argument])


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "big_mm.spec.importlib.import_module", "subprocess.run"],
)
def test_stored_configs_cannot_name_foreign_callables(name):
    text = json.dumps({"model": [{"_class_": name}]})
    with pytest.raises(UserError, match="stored config names"):
        from_json(text)
    with pytest.raises(UserError, match="stored config names"):
        build(json.loads(text), trusted=specs.TRUSTED)


def test_missing_keywords_and_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"config.m \(.*needs components"):
        build({"m": spec(needs_one)})
    with pytest.raises(UserError, match="no config file nowhere.py"):
        load_config("nowhere.py:arg")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="has no get_config"):
        load_config(f"{tmp_path}/empty.py")


def test_a_config_file_takes_its_argument(tmp_path):
    (tmp_path / "c.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(arg='base'):\n    return ConfigDict({'size': arg}) if arg != 'x' else 3\n"
    )
    assert load_config(f"{tmp_path}/c.py").to_dict() == {"size": "base"}
    assert load_config(f"{tmp_path}/c.py:large").to_dict() == {"size": "large"}
    with pytest.raises(UserError, match="returns int"):
        load_config(f"{tmp_path}/c.py:x")


def needs_one(components):
    return components


def test_parts_of_a_config_need_nothing_else():
    known = spec(Fraction, numerator=1)
    text = to_json({"a": {"b": known, "c": {"_class_": "gone.Gone"}}, "d": 2})
    part = from_json(text, trusted=("fractions",), parts=("a.b",))
    assert part.to_dict() == {"a": {"b": known.to_dict()}}
    with pytest.raises(UserError, match="'gone.Gone'"):
        from_json(text, trusted=("fractions",), parts=("a",))
    with pytest.raises(UserError, match="the config has no 'e'; it has b, c"):
        from_json(text, parts=("a.e",))
