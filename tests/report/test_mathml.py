import re
from xml.etree import ElementTree

import pytest

from kbitlib.report.mathml import convert_html, convert_text, keep_together, mathml

FORMULAS = [
    r"L(N, D) = E + \frac{A}{N^{\alpha}} + \frac{B}{D^{\beta}}",
    r"\hat w = s\,\operatorname{round}\left(\frac{w}{s}\right)",
    r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
    r"\begin{cases} 1 & x < 2 \\ 0 & \text{otherwise} \end{cases}",
    r"\arg\min_\theta \sum_{i=1}^n \lVert w_i - \hat w_i \rVert_2^2",
    r"N_\text{eff} = N \left(1 - e^{-k/\gamma}\right) \pm 2\,\%",
    r"\left\lfloor x \right\rceil \in \{-1, 0, 1\}",
]


@pytest.mark.parametrize("latex", FORMULAS)
@pytest.mark.parametrize("display", ["inline", "block"])
def test_formulas_become_well_formed_mathml(latex, display):
    element = mathml(latex, display)
    root = ElementTree.fromstring(element)
    assert root.tag == ("span" if display == "block" else "math")
    assert "\\" not in "".join(root.itertext())
    assert "&" not in "".join(root.itertext())


@pytest.mark.parametrize(
    ("latex", "reason"),
    [
        (r"\foo{x}", r"\\foo is not known"),
        (r"\frac{a}{b", "braces"),
        ("}a{", "braces"),
        ("a_b_c", "DoubleSubscripts"),
        (r"\left( a", "ExtraLeft"),
        ("  ", "empty"),
        (r"a \& b", "& is not known"),
        (r"\operatorname{arg\,min}_x", "holds more than letters"),
        (r"\operatorname*{argmin}_x", "not supported"),
        (r"x \tag{1}", "not supported"),
    ],
)
def test_what_does_not_convert_is_named(latex, reason):
    with pytest.raises(ValueError, match=f"math did not convert.*{reason}") as caught:
        mathml(latex)
    assert latex.strip() in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_formula_is_shortened_in_the_message():
    with pytest.raises(ValueError, match=r"\.\.\.$") as caught:
        mathml(r"\foo " + "x + " * 200)
    assert len(str(caught.value)) < 220


def attributes(latex, text):
    return next(part for part in ElementTree.fromstring(mathml(latex)).iter() if part.text == text).attrib


def test_functions_get_space_before_a_variable_and_none_before_a_bracket():
    assert attributes(r"2\log x", "log") == {"lspace": "0.167em", "rspace": "0.167em"}
    assert attributes(r"\log (x)", "log") == {"lspace": "0", "rspace": "0"}
    assert attributes(r"\log \left(x\right)", "log")["rspace"] == "0"


def test_a_minus_sign_is_a_sign_or_an_operation():
    assert attributes(r"x \in [-1, 1]", "−")["form"] == "prefix"
    assert attributes(r"-x", "−")["form"] == "prefix"
    assert "form" not in attributes(r"a - b", "−")
    assert "form" not in attributes(r"(a) - b", "−")


def test_bars_are_brackets_in_pairs_and_a_separator_alone():
    forms = re.findall(r'form="(\w+)"[^>]*>\|', mathml("|x| + |y|"))
    assert forms == ["prefix", "postfix"] * 2
    assert "form" not in mathml("P(x | y)")


def test_operators_that_the_converter_takes_for_variables():
    assert "<mo>±</mo>" in mathml(r"a \pm b")
    assert "<mo>∼</mo>" in mathml(r"x \sim y")
    assert "<mi>∞</mi>" in mathml(r"n \to \infty")
    assert "<munder>" in mathml(r"\min_x f", "block")


def test_math_in_html_is_converted_and_code_is_left_alone():
    text = convert_html("<p class='$a'>If $a &lt; b$ then <code>$HOME</code> costs \\$5.</p><pre>$x$</pre>")
    assert text.startswith("<p class='$a'>If <math")
    assert "<mo>&lt;</mo>" in text
    assert text.endswith(" then <code>$HOME</code> costs $5.</p><pre>$x$</pre>")
    assert 'class="display"' in convert_html("<div>$$x$$</div>")


def test_a_dollar_sign_without_partner_is_refused():
    with pytest.raises(ValueError, match=r"no partner.*price is \$5"):
        convert_html("<p>the price is $5</p>")


def test_text_between_formulas_is_escaped():
    assert convert_text("a < $b$ & c", lambda text: text.replace("<", "&lt;")).startswith("a &lt; <math")


def test_punctuation_stays_with_its_formula():
    assert re.fullmatch(
        r'see <span class="whole">\(<math.*</math>\),</span> or <math.*</math> not',
        keep_together(f"see ({mathml('x')}), or {mathml('y')} not"),
    )
