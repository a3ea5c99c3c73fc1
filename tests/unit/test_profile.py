"""Profiles: what ships loads, what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvl.errors import UsageError
from qvl.profile import list_profiles, load_profile

TRAINING = ("demo-train", "2b-lora", "2b-full", "7b-lora", "7b-full", "72b-lora")
SHIPPED = ("demo", "2b", "2b-base", "7b", "7b-base", "72b", "72b-base", *TRAINING)
# parameters in thousand millions, KV KiB a token: the published shapes.
SIZES = {"2b": (2.209, 28), "7b": (8.291, 56), "72b": (73.41, 320)}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty configuration folder, so that the machine's own profiles play no part."""
    monkeypatch.setenv("QVL_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "profiles"
    folder.mkdir()
    return folder


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_profiles_are_those_documented() -> None:
    infos = list_profiles()
    assert sorted(info.name for info in infos) == sorted(SHIPPED)
    assert all(info.usable and info.source == "shipped" for info in infos)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_says_what_it_is_and_which_command_it_is_for(name: str) -> None:
    profile = load_profile(name)
    text = (Path(__file__).parents[2] / "profiles" / f"{name}.yaml").read_text(encoding="utf-8")
    assert (profile.name, profile.command) == (name, "finetune" if name in TRAINING else "infer")
    assert f"command: {profile.command}\n" in text
    assert text.startswith(f"# qvl {profile.command} --profile {name} ")
    assert profile.description
    assert profile.template == ("none" if name.endswith("-base") else "chat")
    assert profile.model == "demo" or profile.model.endswith("-Instruct") != name.endswith("-base")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ending", ["", "-base"])
def test_the_memory_a_profile_names_is_weights_and_a_full_cache(size: str, ending: str) -> None:
    parameters, kv_kib = SIZES[size]
    need = load_profile(size + ending).memory_gib
    halves = parameters * 1e9 * 2 / 2**30 + kv_kib * 32768 / 2**20
    assert need.bfloat16 == pytest.approx(halves, abs=0.06)
    assert need.float32 == pytest.approx(2 * halves, abs=0.06)


def test_extends_takes_over_what_is_not_said_section_by_section(home: Path) -> None:
    write(home, "a", "extends: 2b\nmax_pixels: 501760\nvideo: {fps: 1}\n")
    write(home, "b", "extends: a\nvideo: {max_frames: 16}\n")
    profile = load_profile("b")
    assert (profile.model, profile.max_pixels) == ("Qwen/Qwen2-VL-2B-Instruct", 501760)
    assert (profile.video.fps, profile.video.max_frames, profile.video.min_frames) == (1.0, 16, 4)
    assert (profile.name, profile.description) == ("b", "")


def test_extends_by_path_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, "base", "max_context: 100\n")
    child = write(tmp_path / "sub", "child", "extends: ../base.yaml\n")
    assert load_profile(child).max_context == 100


def test_a_circle_of_extends_is_shown(home: Path) -> None:
    write(home, "a", "extends: b\n")
    write(home, "b", "extends: c\n")
    write(home, "c", "extends: a\n")
    with pytest.raises(UsageError, match="a -> b -> c -> a"):
        load_profile("a")
    write(home, "self", "extends: self\n")
    with pytest.raises(UsageError, match="self -> self"):
        load_profile("self")


def test_a_users_profile_hides_the_shipped_one_and_may_extend_it(home: Path) -> None:
    write(home, "2b", "extends: 2b\nmax_pixels: 401408\n")
    profile = load_profile("2b")
    assert (profile.max_pixels, profile.model) == (401408, "Qwen/Qwen2-VL-2B-Instruct")
    assert load_profile("7b").max_pixels == 1003520  # a shipped profile builds on shipped ones only
    assert [info.source for info in list_profiles() if info.name == "2b"] == [str((home / "2b.yaml").resolve())]


def test_one_broken_file_does_not_hide_the_other_profiles(home: Path) -> None:
    write(home, "broken", "max_pixel: 1\n")
    infos = {info.name: info for info in list_profiles()}
    assert not infos["broken"].usable
    assert "max_pixels" in infos["broken"].description
    assert infos["2b"].usable


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_pixel: 1003520", "unknown key 'max_pixel', did you mean 'max_pixels'?"),
        ("generation: {max_tokens: 5}", "unknown key 'generation.max_tokens', did you mean 'max_new_tokens'?"),
        ("max_pixels: many", "max_pixels is 'many'; expected a whole number of at least 1"),
        ("max_pixels: true", "max_pixels is true; expected a whole number"),
        ("max_pixels: 0", "max_pixels is 0; expected a whole number of at least 1"),
        ("raw_pixels: 1", "raw_pixels is 1; expected true or false"),
        ("video: {fps: -1}", "video.fps is -1; expected a number above 0"),
        ("video: 5", "video: keys with values were expected, not 5"),
        ("device: tpu", "device is 'tpu'; expected auto, cpu, gpu or gpu:N"),
        ("dtype: bf16", "expected one of auto, float32, bfloat16, float16"),
        ("quantize: wint8", "quantize is 'wint8'; expected one of auto, none, bf16, int8, int4"),
        ("cache_dtype: int4", "expected one of auto, float32, bfloat16, int8"),
        ("command: train", "command is 'train'; expected one of infer"),
        ("generation: {temperature: .nan}", "generation.temperature is nan; expected a number"),
        ("min_pixels: 5000\nmax_pixels: 4000", "min_pixels 5000 is over max_pixels 4000"),
        ("extends: [2b]", "extends is ['2b']"),
        ("extends: 22b", "no profile '22b'"),
        ("- a\n- b", "keys with values were expected"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_its_file(home: Path, text: str, words: str) -> None:
    path = write(home, "mine", text)
    with pytest.raises(UsageError) as caught:
        load_profile("mine")
    assert words in str(caught.value)
    assert str(path.resolve()) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_null_in_a_file_is_called_null(home: Path) -> None:
    write(home, "mine", "generation: null\n")
    with pytest.raises(UsageError, match="were expected, not null"):
        load_profile("mine")


def test_a_mistake_in_an_extended_file_names_that_file(home: Path) -> None:
    base = write(home, "base", "max_pixel: 1\n")
    write(home, "child", "extends: base\n")
    with pytest.raises(UsageError) as caught:
        load_profile("child")
    assert str(base.resolve()) in str(caught.value)


def test_numbers_that_yaml_reads_as_text_are_numbers(home: Path) -> None:
    write(home, "mine", "generation: {min_p: 1e-5, max_new_tokens: 1e3, temperature: 1}\n")
    generation = load_profile("mine").generation
    assert (generation.min_p, generation.max_new_tokens, generation.temperature) == (1e-5, 1000, 1.0)
    assert isinstance(generation.max_new_tokens, int)
    assert isinstance(generation.temperature, float)


def test_settings_are_laid_over_the_profile() -> None:
    profile = load_profile(
        "2b",
        [
            "generation.max_new_tokens=64",
            "video.fps=1e-1",
            "system=12",
            "raw_pixels=yes",
            "max_context=null",
            "generation.stop=[a, b]",
        ],
    )
    assert (profile.generation.max_new_tokens, profile.video.fps, profile.video.max_frames) == (64, 0.1, 768)
    assert (profile.system, profile.raw_pixels, profile.max_context) == ("12", True, None)
    assert profile.generation.stop == ("a", "b")
    assert load_profile("2b", ["system=Note: be brief"]).system == "Note: be brief"
    assert load_profile("2b", ["system=null"]).system is None
    assert load_profile("2b", ["generation.stop=END"]).generation.stop == ("END",)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("max_pixels", "expected key=value"),
        ("=5", "expected key=value"),
        ("max_pixel=5", "did you mean 'max_pixels'?"),
        ("generation=5", "keys with values were expected"),
        ("max_pixels.x=5", "max_pixels is {'x': 5}"),
        ("max_pixels=yes", "max_pixels is 'yes'"),
        ("max_pixels=1e999", "max_pixels is '1e999'"),
        ("generation=null", "not 'null'"),
        ("generation.temperature=1e-300", "expected a number of at least 0.001 and at most 100, or 0"),
        ("generation.temperature=1e300", "expected a number of at least 0.001"),
        ("generation.repetition_penalty=1e-300", "expected a number of at least 0.01 and at most 100"),
        ("generation.repetition_penalty=1e300", "expected a number of at least 0.01 and at most 100"),
        ("max_pixels=10", "min_pixels 3136 is over max_pixels 10"),
    ],
)
def test_a_bad_setting_is_a_usage_error(setting: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_profile("2b", [setting])
    assert words in str(caught.value)
    assert "--set" in str(caught.value)


def test_a_temperature_of_0_is_within_its_bounds() -> None:
    assert load_profile("2b", ["generation.temperature=0"]).generation.temperature == 0


def test_a_profile_named_in_capitals_is_suggested() -> None:
    with pytest.raises(UsageError, match="no profile '2B', did you mean '2b'"):
        load_profile("2B")


def test_an_unknown_profile_names_the_nearest_and_a_missing_file_its_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no profile '7b-bas', did you mean '7b-base'"):
        load_profile("7b-bas")
    with pytest.raises(UsageError, match="no such profile file"):
        load_profile(str(tmp_path / "none.yaml"))
