"""The documented parameters: what is allowed, what is refused, and in which words."""

from __future__ import annotations

import json
import math
import traceback
from collections import UserDict
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_sd_client.parameters import (
    DOCUMENTED_SIZES,
    DRAWN_SEEDS,
    MAX_PROMPT_CHARACTERS,
    ImageFormat,
    InvalidParameter,
    Parameters,
    Scheduler,
    allowed_values,
    parse,
)

# Written down a second time on purpose: what the documentation of the API promises.
SCHEDULERS = [
    "DDIM", "DPM Multi", "DPM Single", "Euler a", "Euler", "Heun", "DPM2 a Karras", "DPM2 Karras", "LMS", "PNDM",
    "DDPM", "UniPC", "dpmpp_2m", "dpmpp_sde_ancestral",
]  # fmt: skip
DEFAULTS = {
    "negative_prompt": "",
    "scheduler": "UniPC",
    "num_inference_steps": 20,
    "guidance_scale": 7.5,
    "samples": 1,
    "seed": -1,
    "img_width": 512,
    "img_height": 512,
    "base64": True,
    "image_format": "jpeg",
}
LIMITS = {
    "num_inference_steps": (20, 100),
    "guidance_scale": (0.1, 25.0),
    "samples": (1, 4),
    "seed": (-1, 2**63 - 4),
}
INTEGERS = ["num_inference_steps", "samples", "seed", "img_width", "img_height"]


def refusal(**values: object) -> str:
    """The message for a request that must be refused because of the last of ``values``."""
    with pytest.raises(InvalidParameter) as caught:
        parse({"prompt": "a cat", **values})
    assert caught.value.parameter == list(values)[-1]
    return str(caught.value)


def test_a_prompt_alone_gets_the_documented_defaults() -> None:
    assert parse({"prompt": "a cat"}).model_dump(mode="json") == {"prompt": "a cat", **DEFAULTS}


def test_the_names_are_the_documented_ones() -> None:
    assert list(Parameters.model_fields) == ["prompt", *DEFAULTS]


def test_a_prompt_is_required() -> None:
    with pytest.raises(InvalidParameter, match=r"^prompt: is required; allowed: text ") as caught:
        parse({"samples": 2})
    assert caught.value.parameter == "prompt"


@pytest.mark.parametrize("name", LIMITS)
def test_both_limits_are_allowed(name: str) -> None:
    for limit in LIMITS[name]:
        assert getattr(parse({"prompt": "a cat", name: limit}), name) == limit


@pytest.mark.parametrize("name", LIMITS)
def test_what_lies_just_outside_the_limits_is_refused(name: str) -> None:
    least, most = LIMITS[name]
    outside = (math.nextafter(0.1, 0), math.nextafter(25.0, 26)) if isinstance(least, float) else (least - 1, most + 1)
    noun = "a number" if isinstance(least, float) else "an integer"
    for value in outside:
        assert refusal(**{name: value}) == f"{name}: got {value!r}; allowed: {noun} from {least} to {most}"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 0, 1e300])
def test_guidance_is_a_finite_number(value: float) -> None:
    assert refusal(guidance_scale=value) == f"guidance_scale: got {value!r}; allowed: a number from 0.1 to 25.0"


def test_guidance_may_be_a_whole_number() -> None:
    guidance_scale = parse({"prompt": "a cat", "guidance_scale": 7}).guidance_scale
    assert isinstance(guidance_scale, float)
    assert guidance_scale == 7.0


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", ["20", 20.0, 20.5, True, None, [20], math.nan, b"20", {}])
def test_an_integer_is_nothing_else(name: str, value: object) -> None:
    message = refusal(**{name: value})
    assert message.startswith(f"{name}: got ")
    assert message.endswith(f"; allowed: {allowed_values(name)}")


@pytest.mark.parametrize("value", ["7.5", True, None, [7.5], b"7.5"])
def test_guidance_is_nothing_but_a_number(value: object) -> None:
    assert refusal(guidance_scale=value).endswith("; allowed: a number from 0.1 to 25.0")


@pytest.mark.parametrize("value", [0, 1, 1.0, "true", "", None, []])
def test_base64_is_nothing_but_a_boolean(value: object) -> None:
    assert refusal(base64=value).endswith("; allowed: true or false")


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("value", [None, 5, True, b"a cat", ["a cat"], {"text": "a cat"}, "lone surrogate \ud800"])
def test_a_prompt_is_nothing_but_text(name: str, value: object) -> None:
    assert refusal(**{name: value}).endswith(f"; allowed: {allowed_values(name)}")


@pytest.mark.parametrize("value", [None, 5, True, b"DDIM", ["DDIM"], "", "DDIM2", " DDIM", "DPM++"])
def test_an_unknown_scheduler_is_refused_with_all_that_are_known(value: object) -> None:
    assert refusal(scheduler=value).endswith(f"; allowed: {', '.join(SCHEDULERS)}")


@pytest.mark.parametrize("value", [None, 5, True, b"png", "", "gif", ".png"])
def test_an_unknown_image_format_is_refused_with_all_that_are_known(value: object) -> None:
    assert refusal(image_format=value).endswith("; allowed: jpeg, png, webp")


def test_a_scheduler_is_no_image_format_and_the_other_way_round() -> None:
    assert refusal(scheduler="png").startswith("scheduler: got 'png'; allowed: DDIM,")
    assert refusal(image_format="euler") == "image_format: got 'euler'; allowed: jpeg, png, webp"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_are_known_in_any_case(name: str) -> None:
    for spelling in (name, name.lower(), name.upper(), name.swapcase()):
        scheduler = parse({"prompt": "a cat", "scheduler": spelling}).scheduler
        assert isinstance(scheduler, Scheduler)
        assert scheduler.value == name


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("euler", "Euler"),
        ("euler_a", "Euler a"),
        ("ddim", "DDIM"),
        ("dmpp_2m", "dpmpp_2m"),
        ("EULER_A", "Euler a"),
        ("DMPP_2M", "dpmpp_2m"),
    ],
)
def test_the_spellings_of_published_clients_are_known(alias: str, name: str) -> None:
    assert parse({"prompt": "a cat", "scheduler": alias}).scheduler.value == name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("jpeg", "jpeg"), ("JPG", "jpeg"), ("jpg", "jpeg"), ("PNG", "png"), ("png", "png"), ("WebP", "webp")],
)
def test_image_formats_are_known_in_any_case_and_jpeg_by_its_short_name(spelling: str, name: str) -> None:
    assert parse({"prompt": "a cat", "image_format": spelling}).image_format is ImageFormat(name)


def test_members_are_taken_as_well_as_names() -> None:
    parameters = parse({"prompt": "a cat", "scheduler": Scheduler.HEUN, "image_format": ImageFormat.PNG})
    assert (parameters.scheduler, parameters.image_format) == (Scheduler.HEUN, ImageFormat.PNG)


@pytest.mark.parametrize("blank", ["", " ", "\n", "\t \r\n", "\u00a0\u2003"])
def test_a_blank_prompt_is_refused_and_a_blank_negative_prompt_is_not(blank: str) -> None:
    assert refusal(prompt=blank) == (
        f"prompt: got {blank!r}; allowed: text with a visible character, of at most 4000 characters, "
        "without control characters"
    )
    assert parse({"prompt": "a cat", "negative_prompt": blank}).negative_prompt == blank


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("character", ["a", "é", "猫", "🐈"])
def test_a_prompt_has_at_most_4000_characters(name: str, character: str) -> None:
    assert MAX_PROMPT_CHARACTERS == 4000
    longest = character * 4000
    assert getattr(parse({"prompt": "a cat", name: longest}), name) == longest
    assert refusal(**{name: longest + character}).startswith(f"{name}: got text of 4001 characters; allowed: ")


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_control_characters_are_refused_but_for_tab_and_line_breaks(name: str) -> None:
    for code in [*range(32), 127]:
        text = f"a{chr(code)}b"
        if chr(code) in "\t\n\r":
            assert getattr(parse({"prompt": "a cat", name: text}), name) == text
        else:
            for place in (text, text[1:], text[:-1]):
                assert refusal(**{name: place}) == f"{name}: got {place!r}; allowed: {allowed_values(name)}"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])).map("a{}".format))
def test_all_other_text_comes_through_as_it_is(text: str) -> None:
    assert parse({"prompt": text, "negative_prompt": text}).prompt == text


@pytest.mark.parametrize("name", ["steps", "Prompt", "style", "", "x" * 500, "model_config"])
def test_an_unknown_name_is_refused_with_all_that_are_known(name: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse({"prompt": "a cat", name: 1})
    assert str(caught.value) == f"{name[:64]}: unknown parameter; allowed: {', '.join(['prompt', *DEFAULTS])}"


@pytest.mark.parametrize("values", [{"\ud800": 1}, {"prompt": "a cat", "\ud800": 1}])
def test_an_unknown_name_that_is_no_text_is_refused_in_text(values: dict[str, object]) -> None:
    with pytest.raises(InvalidParameter, match="unknown parameter; allowed: prompt, ") as caught:
        parse(values)
    assert caught.value.parameter == r"'\ud800'"


@pytest.mark.parametrize("side", ["img_width", "img_height"])
def test_the_documented_sizes_are_allowed_independently(side: str) -> None:
    assert DOCUMENTED_SIZES == (512, 768, 1024)
    for size in (512, 768, 1024):
        parameters = parse({"prompt": "a cat", side: size})
        assert {"img_width": parameters.img_width, "img_height": parameters.img_height} == {
            "img_width": 512,
            "img_height": 512,
            side: size,
        }
    for size in (0, -512, 511, 513, 640, 1025, 10**30):
        assert refusal(**{side: size}) == f"{side}: got {size}; allowed: 512, 768, 1024"


def test_a_server_may_allow_other_sizes() -> None:
    sizes = (size for size in (640, 256))
    parameters = parse({"prompt": "a cat", "img_width": 640, "img_height": 256}, sizes)
    assert (parameters.img_width, parameters.img_height) == (640, 256)


@pytest.mark.parametrize("given", [512, "256", True, 256.0])
def test_a_refused_size_names_what_this_server_allows(given: object) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse({"prompt": "a cat", "img_width": 256, "img_height": given}, (640, 256))
    assert str(caught.value) == f"img_height: got {given!r}; allowed: 256, 640"


def test_sizes_may_be_left_to_the_server() -> None:
    parameters = parse({"prompt": "a cat", "img_width": 640, "img_height": 2**31 - 1}, sizes=None)
    assert (parameters.img_width, parameters.img_height) == (640, 2**31 - 1)
    for size in (0, -512, 2**31, "512", 512.0, None):
        with pytest.raises(InvalidParameter) as caught:
            parse({"prompt": "a cat", "img_width": size}, sizes=None)
        assert str(caught.value) == (
            f"img_width: got {size!r}; allowed: an integer that the server offers, usually 512, 768, 1024"
        )


def test_a_refusal_says_what_is_allowed_apart_from_its_message() -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse({"prompt": "a cat", "scheduler": "; allowed: all"})
    assert caught.value.allowed == ", ".join(SCHEDULERS)
    assert InvalidParameter("sequence_id", "not allowed").allowed is None


def test_a_missing_seed_is_drawn_and_stays_below_two_to_the_32() -> None:
    unseeded = parse({"prompt": "a cat"})
    drawn = [unseeded.resolved().seed for _ in range(200)]
    assert DRAWN_SEEDS == 2**32
    assert all(0 <= seed < 2**32 for seed in drawn)
    assert len(set(drawn)) > 190
    assert max(drawn) > 2**28, "the whole range is used"
    assert unseeded.seed == -1, "parameters do not change"


@pytest.mark.parametrize("seed", [0, 1, 98877465625, 2**63 - 4])
def test_a_given_seed_is_kept(seed: int) -> None:
    assert parse({"prompt": "a cat", "seed": seed}).resolved().seed == seed


def test_drawing_a_seed_changes_nothing_else() -> None:
    parameters = parse({"prompt": "a cat", "scheduler": "lms", "samples": 3, "base64": False})
    resolved = parameters.resolved()
    assert resolved.model_dump(exclude={"seed"}) == parameters.model_dump(exclude={"seed"})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_a_picture_carries_is_json_that_gives_the_same_parameters_again(name: str) -> None:
    parameters = parse(
        {
            "prompt": 'a "cat" \\ 猫 🐈\n',
            "negative_prompt": "(blurry:1.2)",
            "scheduler": name.lower(),
            "num_inference_steps": 31,
            "guidance_scale": 0.1,
            "samples": 4,
            "seed": 2**63 - 4,
            "img_width": 768,
            "img_height": 1024,
            "image_format": "jpg",
        }
    )
    picture = parameters.picture()
    assert parse(json.loads(json.dumps(picture))) == parameters
    assert picture["scheduler"] == name
    assert picture["image_format"] == "jpeg"
    assert set(picture) == {"prompt", *DEFAULTS} - {"base64"}, "how pictures travel is no part of them"


def test_parameters_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse({"prompt": "a cat"}).seed = 5  # type: ignore[misc]


@pytest.mark.parametrize("mapping", [MappingProxyType, UserDict])
def test_any_mapping_will_do(mapping: type) -> None:
    assert parse(mapping({"prompt": "a cat", "samples": 2})).samples == 2
    with pytest.raises(InvalidParameter, match=r"^samples: "):
        parse(mapping({"prompt": "a cat", "samples": 5}))


LONG = "a very secret prompt " * 300
WRONG = [
    *[(name, value) for name in DEFAULTS for value in (LONG, [LONG], {"text": LONG}, LONG.encode(), 10**5000)],
    *[("prompt", value) for value in (LONG, [LONG], {"text": LONG}, LONG.encode(), 10**5000, "\0" * 5000)],
    (LONG, 1),
    ("scheduler", Scheduler),
    ("samples", 1.0),
    ("base64", "yes"),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: repr(type(value)))
def test_a_message_is_short_and_in_the_callers_words(name: str, value: object) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse({"prompt": "a cat", name: value})
    message = str(caught.value)
    assert message.startswith(f"{name[:64]}: ")
    assert "allowed: " in message
    assert len(message) < 300
    assert "\n" not in message
    for jargon in ("pydantic", "http", "Input should", "type=", "validation", "ValidationError", "<", "loc", "strict"):
        assert jargon not in message
    assert "pydantic" not in "".join(traceback.format_exception(caught.value)), "the traceback shows no library either"


def test_a_float_for_an_integer_is_explained_like_any_other_value() -> None:
    assert refusal(samples=1.0) == "samples: got 1.0; allowed: an integer from 1 to 4"
    assert refusal(num_inference_steps=20.5) == "num_inference_steps: got 20.5; allowed: an integer from 20 to 100"
    assert refusal(seed=True) == "seed: got True; allowed: an integer from -1 to 9223372036854775804"


def test_the_first_of_several_mistakes_is_named() -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse({"prompt": "", "samples": 9, "img_width": 5})
    assert caught.value.parameter == "prompt"


@pytest.mark.parametrize("name", ["prompt", *DEFAULTS])
def test_every_parameter_says_what_it_may_be(name: str) -> None:
    words = allowed_values(name)
    assert words
    least_and_most = LIMITS.get(name, ())
    assert all(str(limit) in words for limit in least_and_most)
