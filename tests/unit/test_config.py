from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import (
    MAX_GROUPS,
    ExtractorConfig,
    ImageLimits,
    IndexConfig,
    Settings,
    digest,
)
from pipeline.errors import ConfigError, InputError, VantageError
from pipeline.opening import choose_extractor
from pipeline.request import SearchOptions, SearchRequest
from workers.environment import environment

CONFIGS: list[Any] = [ImageLimits, ExtractorConfig, IndexConfig, SearchRequest]


def from_env(**variables: str) -> Settings:
    return Settings.from_env({f"VANTAGE_{name}": value for name, value in variables.items()})


def test_everything_lies_under_one_home_by_default() -> None:
    settings = from_env(HOME="/data/vantage")
    assert settings.store == "/data/vantage/store"
    assert settings.local == Path("/data/vantage/local")
    assert settings.database_url == "sqlite:////data/vantage/vantage.sqlite"
    assert settings.redis_url is None
    assert settings.image_roots == ("/",)
    assert settings.serve_groups == tuple(range(MAX_GROUPS))
    assert settings.extractor == ExtractorConfig()
    assert settings.index == IndexConfig()
    assert settings.image_limits == ImageLimits()


def test_variables_set_what_their_names_say() -> None:
    settings = from_env(
        HOME="~/v",
        STORE="s3://bucket/v",
        LOCAL="/fast",
        IMAGE_ROOTS="/a:~/b:",
        SERVE_GROUPS="3,1,1",
        BATCH_SIZE="7",
        HEARTBEAT_S="0.5",
        MAX_PIXELS="1000",
        MAX_FEATURES="100",
        GROUP_COUNT="8",
        VANTAGE_POINTS="spread",
        FLOWER_PASSWORD="pass word",
    )
    assert settings.home == Path.home() / "v"
    assert (settings.store, settings.local) == ("s3://bucket/v", Path("/fast"))
    assert settings.image_roots == ("/a", str(Path.home() / "b"))
    assert settings.serve_groups == (1, 3)
    assert (settings.batch_size, settings.heartbeat_s) == (7, 0.5)
    assert settings.image_limits.max_pixels == 1000
    assert settings.extractor.max_features == 100
    assert (settings.index.groups, settings.index.vantage) == (8, "spread")
    assert settings.flower_password == "pass word"


def test_the_extractor_of_new_collections_has_a_name_and_may_have_a_file() -> None:
    assert from_env(EXTRACTOR="surf").extractor == ExtractorConfig(name="surf")
    assert from_env(EXTRACTOR="surf").extractor_text == ""
    assert from_env(EXTRACTOR="surf").extractor_spec == "surf"
    settings = from_env(EXTRACTOR="cnn:~/net.onnx")
    assert settings.extractor_spec == f"cnn:{Path.home() / 'net.onnx'}"
    assert settings.extractor_spec == f"cnn:{Path.home()}/net.onnx"
    # Processes are started in another folder: a path is one of here.
    assert from_env(EXTRACTOR="cnn:net.onnx").extractor_spec == f"cnn:{Path.cwd() / 'net.onnx'}"
    assert from_env(EXTRACTOR="surf:upright=true").extractor_spec == "surf:upright=true"


@pytest.mark.parametrize("text", ["si ft", "cnn:", "sfit"])
def test_a_misspelt_extractor_is_kept_as_written_until_a_new_collection_needs_it(text: str) -> None:
    settings = from_env(EXTRACTOR=text)
    assert settings.extractor_spec == text
    with pytest.raises(VantageError, match=re.escape(repr(text))):
        choose_extractor(settings, settings.extractor_spec)


def test_secrets_are_not_shown() -> None:
    settings = from_env(REDIS_URL="redis://:geheim@host", FLOWER_PASSWORD="geheim")
    assert "geheim" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BATCH_SIZE", "many"),
        ("BATCH_SIZE", "0"),
        ("BATCH_SIZE", "1.5"),
        ("EXTRACT_PROCESSES", "-1"),
        ("SEARCH_DEADLINE_S", "soon"),
        ("SEARCH_DEADLINE_S", "nan"),
        ("SEARCH_DEADLINE_S", "inf"),
        ("HEARTBEAT_S", "0"),
        ("SERVE_GROUPS", "0,16"),
        ("SERVE_GROUPS", "one"),
        ("SERVE_GROUPS", "-1"),
        ("GROUP_COUNT", "3"),
        ("GROUP_COUNT", "four"),
        ("GROUP_COUNT", "32"),
        ("VANTAGE_POINTS", "best"),
        ("MAX_FEATURES", "65536"),
        ("MAX_SIDE", "1"),
        ("CELL_SIZE", "1"),
        ("IMAGE_ROOTS", "photos"),
        ("IMAGE_ROOTS", ":"),
        ("MAX_BYTES", ""),
        ("FLOWER_PORT", "65536"),
    ],
)
def test_a_wrong_value_is_refused_with_its_variable(name: str, value: str) -> None:
    if value == "":
        assert from_env(**{name: value}) == from_env()
        return
    with pytest.raises(ConfigError) as caught:
        from_env(**{name: value})
    assert caught.value.args[:2] == (f"VANTAGE_{name}", value)
    assert f"VANTAGE_{name} is {value!r}: must be " in str(caught.value)


@pytest.mark.parametrize(
    "name", ["VANTAGE_REDIS_ULR", "VANTAGE_DATABASE", "VANTAGE_FLOWER_PASSWROD", "VANTAGE_X"]
)
def test_the_value_of_an_unknown_variable_is_not_shown(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({name: "redis://:geheim@host"})
    assert "geheim" not in str(caught.value)


VARIABLES = {*environment(Settings.from_env({}), {}), "VANTAGE_REDIS_URL", "VANTAGE_REDIS_LISTEN"}
VARIABLES |= {"VANTAGE_CACHE_URL", "VANTAGE_CACHE_LISTEN"}


@pytest.mark.parametrize("name", sorted(VARIABLES - {"PYTHONPATH"}))
def test_an_address_with_a_password_in_a_wrong_variable_is_not_shown(name: str) -> None:
    told = []
    for value in ("redis://:geheim@host", ":geheim@host:1", "postgresql://u@h?password=geheim"):
        try:
            Settings.from_env({name: value})
        except ConfigError as error:
            told.append(str(error))
    assert [text for text in told if "geheim" in text] == []


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"VANTAGE_BATCHSIZE is '\*\*\*': not a variable"):
        from_env(BATCHSIZE="4")
    assert Settings.from_env({"_VANTAGE_COMPLETE": "x", "PATH": "/bin"})


@pytest.mark.parametrize("config", CONFIGS)
def test_configurations_survive_json_and_refuse_unknown_keys(config: Any) -> None:
    values = json.loads(json.dumps(config().to_dict()))
    assert config.from_dict(values) == config()
    with pytest.raises(ConfigError, match=f"not a setting of {config.__name__}"):
        config.from_dict({**values, "max_fetures": 3})
    with pytest.raises(TypeError):
        config(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config(), next(iter(values)), 1)


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (ImageLimits, "max_bytes", 0),
        (ImageLimits, "max_pixels", -1),
        (ExtractorConfig, "max_side", 31),
        (ExtractorConfig, "max_features", 0),
        (ExtractorConfig, "query_max_features", 65536),
        (IndexConfig, "groups", 3),
        (IndexConfig, "groups", 32),
        (IndexConfig, "vantage", "best"),
        (ExtractorConfig, "name", "two words"),
        (ExtractorConfig, "name", "../up"),
        (ExtractorConfig, "model", "abc"),
        (ExtractorConfig, "options", {"a": float("nan")}),
        (ExtractorConfig, "options", {"a": {1, 2}}),
        (IndexConfig, "dimensions", 0),
        (IndexConfig, "dimensions", 100),
        (IndexConfig, "dimensions", 4160),
        (IndexConfig, "cell_size", 15),
        (IndexConfig, "sample_size", 0),
        (IndexConfig, "background_size", 1),
        (SearchRequest, "top", 0),
        (SearchRequest, "top", 10_001),
        (SearchRequest, "top", 2.5),
        (SearchRequest, "plan", "fast"),
        (SearchRequest, "effort", 0.0),
        (SearchRequest, "effort", 1.1),
        (SearchRequest, "effort", float("nan")),
        (SearchRequest, "deadline_s", 0.0),
    ],
)
def test_a_setting_out_of_range_is_refused(config: Any, name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**{name: value})
    assert caught.value.args[0] == name


@pytest.mark.parametrize(
    ("options", "plan", "effort"),
    [
        ({}, "auto", None),
        ({"exact": True}, "exhaustive", None),
        ({"exact": True, "plan": "exhaustive"}, "exhaustive", None),
        ({"effort": 0.2}, "probed", 0.2),
        ({"effort": 0.2, "plan": "probed"}, "probed", 0.2),
        ({"plan": "probed"}, "probed", None),
    ],
)
def test_a_request_decides_the_plan(options: Any, plan: str, effort: float | None) -> None:
    request = SearchRequest(**options, top=3, deadline_s=2.0)
    assert (request.kind, request.effort, request.top) == (plan, effort, 3)
    assert SearchRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    assert (request.seconds(5.0), SearchRequest().seconds(5.0)) == (2.0, 5.0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"exact": True, "effort": 0.1}, "exact compares with every row, an effort of 0.1"),
        ({"exact": True, "plan": "probed"}, "the plan asked for is probed"),
        ({"effort": 0.1, "plan": "exhaustive"}, r"takes no effort \(of 0.1\)"),
    ],
)
def test_requests_that_contradict_each_other_are_refused(options: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        SearchRequest(**options)


def test_an_effort_out_of_range_is_refused() -> None:
    for effort in (0.0, -1.0, 1.01):
        with pytest.raises(ConfigError, match="effort"):
            SearchRequest(effort=effort)


@given(st.integers(32, 5000), st.integers(1, 5000), st.integers(1, 5000))
def test_the_config_id_changes_with_every_setting(side: int, count: int, query: int) -> None:
    config = ExtractorConfig(max_side=side, max_features=count, query_max_features=query)
    name = config.config_id()
    assert name.startswith(f"sift-n{count}-s{side}-")
    assert name == ExtractorConfig.from_dict(config.to_dict()).config_id()
    for setting in ("max_side", "max_features", "query_max_features"):
        other = dataclasses.replace(config, **{setting: getattr(config, setting) + 1})
        assert other.config_id() != name


def test_model_and_options_are_part_of_the_identity() -> None:
    plain = ExtractorConfig()
    model = dataclasses.replace(plain, model="ab" * 32)
    small = dataclasses.replace(model, options={"input": [224, 224]})
    large = dataclasses.replace(model, options={"input": [512, 512]})
    configs = [plain, model, small, large]
    assert len({config.config_id() for config in configs}) == 4
    assert len(set(configs)) == 4
    assert not any(
        one.same_extractor(other) for one in configs for other in configs if one != other
    )
    # What an environment changes makes no other extractor of it.
    assert plain.same_extractor(dataclasses.replace(plain, max_side=99, max_features=9))
    assert ExtractorConfig.from_dict(json.loads(json.dumps(small.to_dict()))) == small


def test_options_are_kept_as_json_gives_them_back() -> None:
    given = {"size": (3, 4)}
    config = ExtractorConfig(options=given)
    given["size"] = (5, 6)
    assert config.options == {"size": [3, 4]}


def test_an_extractor_is_named_for_people() -> None:
    assert ExtractorConfig().describe() == "sift"
    assert ExtractorConfig(name="surf", options={"a": 1}).describe() == 'surf {"a":1}'
    assert ExtractorConfig(name="cnn", model="0f" * 32, options={"a": 1}).describe() == (
        "cnn (model 0f0f0f0f0f0f)"
    )


@pytest.mark.parametrize("dimensions", [64, 128, 448, 4096])
def test_rows_have_any_multiple_of_64_bytes(dimensions: int) -> None:
    assert IndexConfig(dimensions=dimensions).dimensions == dimensions


def test_a_digest_tells_values_apart_and_not_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert len({digest("ab"), digest("a", "b"), digest(["a", "b"]), digest(1), digest("1")}) == 5
    assert len(digest()) == 32


def test_the_options_of_a_search_are_the_fields_of_its_request() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(SearchRequest)}
    assert {
        name: hint.__forward_arg__ for name, hint in SearchOptions.__annotations__.items()
    } == fields
