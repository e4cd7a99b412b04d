import math

import pytest

from kbitlib.report import numbers

CASES = [
    (numbers.significant, (0.0123456,), "0.0123"),
    (numbers.significant, (123456,), "123,000"),
    (numbers.significant, (9.996,), "10.0"),
    (numbers.significant, (0.9996,), "1.00"),
    (numbers.significant, (1e-7,), "1.00e-07"),
    (numbers.significant, (0,), "0.00"),
    (numbers.significant, (-2.5, 2), "−2.5"),
    (numbers.significant, (math.inf,), "inf"),
    (numbers.plus_minus, (1.38213, 0.0042), "1.3821 ± 0.0042"),
    (numbers.plus_minus, (12345, 230), "12,345 ± 230"),
    (numbers.plus_minus, (-1.5, 0.0), "−1.50 ± 0"),
    (numbers.interval, (0.3171, 0.3734), "0.317 to 0.373"),
    (numbers.count, (2_345_678,), "2.3 million"),
    (numbers.count, (999_999,), "1 million"),
    (numbers.count, (812,), "812"),
    (numbers.count, (9_812,), "9,812"),
    (numbers.short, (300_000,), "300 k"),
    (numbers.short, (1.5e6,), "1.5 M"),
    (numbers.short, (0.25,), "0.25"),
    (numbers.bits, (4.25,), "4.25 bits"),
    (numbers.bits, (1,), "1 bit"),
    (numbers.file_size, (1_500_000,), "1.43 MiB"),
    (numbers.file_size, (700,), "700 bytes"),
    (numbers.percent, (0.782,), "78 %"),
    (numbers.duration, (0.42,), "0.4 s"),
    (numbers.duration, (75,), "1 min 15 s"),
    (numbers.duration, (59.9,), "1 min 0 s"),
    (numbers.duration, (5000,), "1 h 23 min"),
    (numbers.moment, ("2026-03-01T14:05:09+00:00",), "1 March 2026, 14:05 UTC"),
    (numbers.moment, ("2026-03-01",), "1 March 2026"),
]


@pytest.mark.parametrize(("function", "values", "expected"), CASES)
def test_numbers_as_prose_wants_them(function, values, expected):
    assert function(*values).replace("\u00a0", " ") == expected


def test_no_line_ends_between_a_number_and_its_unit():
    texts = [
        numbers.bits(4.25),
        numbers.percent(0.5),
        numbers.count(2e6),
        numbers.duration(75),
        numbers.file_size(5000),
    ]
    assert all(" " not in text for text in texts)


@pytest.mark.parametrize("call", [lambda: numbers.significant(1, 0), lambda: numbers.plus_minus(1, -0.1)])
def test_senseless_input_is_refused(call):
    with pytest.raises(ValueError, match=r"is (0|-0\.1): it must"):
        call()
