import pytest

from kbitlib.cli.runs import parse
from kbitlib.experiments.settings import check, parameters, read_profile, spell


def smoke(chapter: str, **changes: object) -> dict[str, object]:
    return parameters("smoke", chapter, {}) | changes


@pytest.mark.parametrize(
    ("chapter", "changes", "message"),
    [
        ("01_quantizer_theory", {"bits": 9}, r"bits = 9: .*less than or equal to 8"),
        ("01_quantizer_theory", {"bits": "3x"}, r"bits = '3x': .*integer"),
        ("01_quantizer_theory", {"elements": ["int", "imt"]}, r"elements = .*imt"),
        ("02_quantization_runs", {"bit_widths": [2, 0]}, r"bit_widths.1 = 0: .*greater than or equal to 2"),
        ("02_quantization_runs", {"block": 0}, r"block = 0: .*greater than or equal to 1"),
        ("02_quantization_runs", {"swept_blocks": [-32]}, r"not -32"),
        ("00_start_here", {"widths": [16, 24]}, r"2 widths, 6 depths and 6 numbers of seeds"),
        ("00_start_here", {"depths": [1] * 6, "widths": [16] * 6}, r"each model size may be named once"),
        ("00_start_here", {"tokens": [100]}, r"tokens begins with 100; .* 3072 in all"),
        ("00_start_here", {"tokens": [65536, 65536]}, r"must increase; they are \[65536, 65536\]"),
        ("00_start_here", {"accumulate": 3}, r"16 sequences does not divide into accumulate = 3"),
        ("00_start_here", {"widths": [16, 18, 20, 24, 28, 32]}, r"widths.1 = 18: .*multiple of 4"),
        ("00_start_here", {"device": "tpu"}, r"device = 'tpu'"),
        ("00_start_here", {"bitts": 3}, r"bitts = 3: unknown parameter; 00_start_here takes profile, corpus"),
        ("00_start_here", {"learning_rate": -1}, r"learning_rate = -1: .*greater than 0"),
        ("00_start_here", {"profile": "../x"}, r"profile = '../x'"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence_naming_it(chapter: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        check(chapter, smoke(chapter, **changes))
    assert "\n" not in str(refusal.value)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ValueError, match="corpus: Field required"):
        check("00_start_here", {name: value for name, value in smoke("00_start_here").items() if name != "corpus"})


def test_an_unknown_profile_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="no profile 'huge'; there are gpu, laptop, smoke"):
        read_profile("huge")


def test_every_data_type_stands_at_every_width_and_some_at_every_block() -> None:
    formats = check("02_quantization_runs", parameters("laptop", "02_quantization_runs", {})).formats()
    assert {"int", "nf", "fp", "pot", "log", "quantile", "kmeans", "binary", "ternary"} == set(formats)
    assert formats["binary"] == ("binary-b64",) or len(formats["binary"]) == 1
    assert {spell("int", k, 64) for k in range(2, 9)} <= set(formats["int"])
    assert {spell("nf", k, block) for k in (2, 3, 4) for block in (0, 32, 64)} <= set(formats["nf"])
    assert all(len(set(names)) == len(names) for names in formats.values())


def test_a_chapter_gets_its_own_section_over_the_common_one_and_what_is_given_over_both() -> None:
    assert parameters("smoke", "01_quantizer_theory", {})["bits"] == 4
    assert parameters("smoke", "01_quantizer_theory", {"bits": 3})["bits"] == 3
    assert "bits" not in parameters("smoke", "00_start_here", {"bits": 3})


def test_a_value_from_the_command_line_is_json_or_a_string(tmp_path, monkeypatch) -> None:
    assert parse("bits", "3") == 3
    assert parse("widths", "[16, 24]") == [16, 24]
    assert parse("dtype", "float32") == "float32"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    assert parse("corpus", "text") == str(tmp_path / "text")
    assert parse("corpus", "installed") == "installed"
    assert parse("models", '["text"]') == parse("models", "text") == [str(tmp_path / "text")]
