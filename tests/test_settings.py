"""Settings become objects, and a mistake is answered with the key and what would be right."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vae_astro.errors import InputError
from vae_astro.settings import build, check_bool, check_choice, check_int, check_number, plain


def telescope(*, n_mirrors: int, diameter_m: float, site: str = "Palomar") -> tuple:
    return ("telescope", n_mirrors, diameter_m, site)


def eye(*, n_mirrors: int) -> tuple:
    return ("eye", n_mirrors)


def blindfold() -> tuple:
    return ("blindfold",)


INSTRUMENTS = {"telescope": telescope, "eye": eye, "blindfold": blindfold}


def test_named_factory_is_called_with_the_other_settings():
    made = build("optics", INSTRUMENTS, {"name": "telescope", "n_mirrors": 2, "diameter_m": 1.2})
    assert made == ("telescope", 2, 1.2, "Palomar")


def test_given_arguments_reach_a_factory_that_takes_them():
    settings = {"name": "telescope", "diameter_m": 1.2}
    assert build("optics", INSTRUMENTS, settings, n_mirrors=3)[1] == 3


def test_given_arguments_pass_by_a_factory_that_does_not_take_them():
    assert build("optics", INSTRUMENTS, {"name": "blindfold"}, n_mirrors=3) == ("blindfold",)


def test_settings_are_left_as_they_were():
    settings = {"name": "telescope", "n_mirrors": 2, "diameter_m": 1.2}
    build("optics", INSTRUMENTS, settings)
    assert settings == {"name": "telescope", "n_mirrors": 2, "diameter_m": 1.2}


@pytest.mark.parametrize("name", ["binoculars", None, ["eye"]])
def test_unknown_name_is_answered_with_the_choices(name):
    with pytest.raises(InputError) as refused:
        build("optics", INSTRUMENTS, {"name": name})
    assert str(refused.value) == (
        f"optics.name is {name!r}; choose one of telescope, eye, blindfold"
    )


def test_settings_without_a_name_are_answered_with_the_choices():
    with pytest.raises(InputError, match=r"^optics\.name is None; choose one of telescope, eye,"):
        build("optics", INSTRUMENTS, {})


def test_unknown_key_is_answered_with_the_keys():
    with pytest.raises(InputError) as refused:
        build("optics", INSTRUMENTS, {"name": "telescope", "diameter": 1}, n_mirrors=1)
    assert str(refused.value) == (
        "optics=telescope has no setting optics.diameter; did you mean optics.diameter_m? it has "
        "diameter_m, site"
    )


def test_unknown_key_of_a_factory_without_keys_is_answered_with_none():
    with pytest.raises(InputError, match=r"has no setting optics\.color; it has none$"):
        build("optics", INSTRUMENTS, {"name": "blindfold", "color": "black"})


def test_user_cannot_set_what_comes_from_the_data():
    with pytest.raises(InputError, match=r"optics=eye has no setting optics\.n_mirrors"):
        build("optics", INSTRUMENTS, {"name": "eye", "n_mirrors": 7}, n_mirrors=1)


def test_missing_keys_are_all_named():
    with pytest.raises(InputError) as refused:
        build("optics", INSTRUMENTS, {"name": "telescope"})
    assert str(refused.value) == "optics=telescope needs optics.n_mirrors, optics.diameter_m"


@pytest.mark.parametrize("value", [1, 5, 10])
def test_whole_number_in_range_is_returned(value):
    assert check_int("run.n", value, minimum=1, maximum=10) == value


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0, {"minimum": 1}, "run.n must be at least 1, got 0"),
        (0, {"minimum": 1, "maximum": 3}, "run.n must be at least 1, got 0"),
        (4, {"minimum": 1, "maximum": 3}, "run.n must be at most 3, got 4"),
        (True, {"minimum": 0}, "run.n must be a whole number, got True"),
        (2.0, {"minimum": 0}, "run.n must be a whole number, got 2.0"),
        ("2", {"minimum": 0}, "run.n must be a whole number, got '2'"),
        (None, {"minimum": 0}, "run.n must be a whole number, got None"),
    ],
)
def test_whole_number_out_of_range_is_refused_by_its_key(value, bounds, message):
    with pytest.raises(InputError) as refused:
        check_int("run.n", value, **bounds)
    assert str(refused.value) == message


@pytest.mark.parametrize("value", [0, 1, 0.5, 1.0])
def test_number_in_range_is_returned_as_a_float(value):
    checked = check_number("run.x", value, minimum=0, maximum=1)
    assert type(checked) is float
    assert checked == value


def test_number_without_bounds_may_be_negative():
    assert check_number("run.x", -1e300) == -1e300


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0, {"above": 0}, "run.x must be greater than 0, got 0"),
        (-0.1, {"minimum": 0}, "run.x must be at least 0, got -0.1"),
        (1.5, {"maximum": 1}, "run.x must be at most 1, got 1.5"),
        (math.nan, {}, "run.x must be a finite number, got nan"),
        (-math.inf, {"maximum": 0}, "run.x must be a finite number, got -inf"),
        (False, {"minimum": 0}, "run.x must be a finite number, got False"),
        ("1e-3", {}, "run.x must be a finite number, got '1e-3'"),
        (None, {}, "run.x must be a finite number, got None"),
        ([1.0], {}, "run.x must be a finite number, got [1.0]"),
    ],
)
def test_number_out_of_range_is_refused_by_its_key(value, bounds, message):
    with pytest.raises(InputError) as refused:
        check_number("run.x", value, **bounds)
    assert str(refused.value) == message


def test_double_of_numpy_is_a_number_and_becomes_plain():
    assert type(check_number("run.x", np.float64(0.5), minimum=0)) is float


def test_choice_is_returned():
    assert check_choice("run.how", "fast", ("slow", "fast")) == "fast"


@pytest.mark.parametrize("value", ["quick", None, 1, ["fast"]])
def test_unknown_choice_is_answered_with_the_choices(value):
    with pytest.raises(InputError) as refused:
        check_choice("run.how", value, ("slow", "fast"))
    assert str(refused.value) == f"run.how must be one of slow, fast, got {value!r}"


def test_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize("value", [np.int64(3), np.uint8(3), np.array(3)])
def test_whole_numbers_of_numpy_become_pythons(value):
    assert type(check_int("n", value, minimum=1)) is int
    assert check_int("n", value, minimum=1) == 3


@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(0.5), np.float16(0.5)])
def test_numbers_of_numpy_become_pythons(value):
    assert type(check_number("x", value)) is float
    assert check_bool("b", np.bool_(True)) is True


@pytest.mark.parametrize("value", [np.bool_(True), np.float64(3.0), np.array([3]), np.str_("3")])
def test_what_is_no_whole_number_is_none_in_numpy_either(value):
    with pytest.raises(InputError, match="n must be a whole number"):
        check_int("n", value, minimum=1)
    with pytest.raises(InputError, match="x must be a finite number"):
        check_number("x", np.float32("nan"))


def test_settings_with_numbers_of_numpy_are_built_with_plain_ones():
    settings = {"name": "telescope", "n_mirrors": np.int64(2), "diameter_m": np.float64(1.5)}
    made = build("optics", INSTRUMENTS, settings)
    assert [type(part) for part in made[1:3]] == [int, float]
    given = {"a": [np.int32(1), (np.float64(2.0), None)], "b": np.arange(2), "c": "text"}
    assert plain(given) == {"a": [1, (2.0, None)], "b": [0, 1], "c": "text"}
    assert type(plain(given)["b"][0]) is int
