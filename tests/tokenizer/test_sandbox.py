"""The environment of chat templates: nothing leads out, nothing goes on for ever, texts stay tracked."""

import tracemalloc

import jinja2
import pytest
from jinja2.sandbox import SecurityError

from megalm.tokenizer.sandbox import GENERATION, TemplateEnvironment, TooMuchWork, render
from megalm.tokenizer.tracked import whole

CONTENT = " hi <x>\n"
SOURCE = 3


def rendered(source: str, **variables) -> str:
    variables.setdefault("content", whole(CONTENT, [SOURCE]))
    return render(TemplateEnvironment().from_string(source), variables)


def of_content(text: str) -> str:
    """The characters that came from the content, others as dots."""
    shown = ["."] * len(text)
    for start, stop, source in getattr(text, "spans", ()):
        if source == SOURCE:
            shown[start:stop] = text[start:stop]
    return "".join(shown)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__ }}",
        "{{ content|attr('__class__') }}",
        "{{ [content]|map(attribute='__class__')|join }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(content) }}",
        "{{ '{a.__class__}'.format_map({'a': content}) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__.os }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 'a' %}",
        "{{ namespace(__call__=1) }}",
        "{{ content.encode() }}",
        "{{ messages.append(1) }}",
        "{{ (content|first).spans.__len__ }}",
    ],
)
def test_nothing_leads_out_of_the_sandbox(source):
    with pytest.raises(SecurityError):
        rendered(source, messages=[])


DOUBLING = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) if i < 0 %}{% endfor %}" * 30,
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
        "{% for x in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 40 }}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 10 * [0] }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 'x'|center(10 ** 9) }}",
        "{{ 'x'.ljust(10 ** 9) }}",
        "{{ 'x'|indent(10 ** 9) }}",
        "{{ [1]|tojson(indent=10 ** 9) }}",
        "{{ [1]|batch(10 ** 9, 0)|list }}",
        "{{ 1.5|round(10 ** 9, 'ceil') }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10 ** 9, 1) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=10 ** 9) }}",
        "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
        "{{ ('a' * 99999)|replace('a', 'b' * 99999) }}",
        "{{ ('a' * 99999)|list|join('b' * 99999) }}",
        "{{ ('b' * 99999).join('a' * 99999) }}",
        DOUBLING.replace("START", "'ab'").replace("STEP", "ns.x + ns.x"),
        DOUBLING.replace("START", "'ab'").replace("STEP", "ns.x ~ ns.x"),
        DOUBLING.replace("START", "[1]").replace("STEP", "ns.x + ns.x"),
        DOUBLING.replace("START", "7").replace("STEP", "ns.x * ns.x"),
        DOUBLING.replace("START", "[1]").replace("STEP", "[ns.x, ns.x]") + "{{ ns.x }}",
        DOUBLING.replace("START", "[1]").replace("STEP", "[ns.x, ns.x]") + "{{ ns.x|tojson }}",
        DOUBLING.replace("START", "[1]").replace("STEP", "[ns.x, ns.x]") + "{{ 'a' ~ ns.x }}",
        DOUBLING.replace("START", "[1]").replace("STEP", "[ns.x, ns.x]") + "{{ '%s' % ns.x }}",
        DOUBLING.replace("START", "[1]").replace("STEP", "[ns.x, ns.x]") + "{{ '{}'.format(ns.x) }}",
    ],
)
def test_work_without_end_stops(source):
    with pytest.raises(TooMuchWork):
        rendered(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ '%50000000d' % 1 }}",
        "{{ '%50000000d'|format(1) }}",
        "{{ '{:50000000}'.format(1) }}",
        "{{ 'x'.ljust(50000000) }}",
        "{{ 'x'|center(50000000) }}",
        "{{ 'a' * 60000000 }}",
        "{{ ('a' * 9999).replace('a', 'b' * 9999) }}",
        "{{ ('a' * 9999)|replace('a', 'b' * 9999) }}",
        "{{ ('a' * 9999)|list|join('b' * 9999) }}",
        "{{ ('b' * 9999).join('a' * 9999) }}",
    ],
)
def test_too_large_a_text_is_refused_before_it_is_made(source):
    tracemalloc.start()
    try:
        with pytest.raises(TooMuchWork):
            rendered(source)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_macro_that_calls_itself_and_a_huge_range_stop():
    with pytest.raises(RecursionError):
        rendered("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")
    with pytest.raises(OverflowError, match="Range too big"):
        rendered("{{ range(10 ** 9) }}")


def test_long_messages_are_no_endless_work():
    content = whole("x" * 5_000_000, [SOURCE])
    text = rendered(
        "{% for i in range(200) %}{{ content|length }}{% endfor %}{{ '<' + content|trim + '>' }}",
        content=content,
    )
    assert len(text) == 5_000_002 + 200 * 7


def test_a_missing_variable_is_empty_but_cannot_be_written():
    assert (
        rendered("{% if tools %}a{% endif %}{% for t in tools %}{% endfor %}{{ tools is defined }}")
        == "False"
    )
    assert rendered("{{ tools|default('none') }}{{ 'a' if tools }}") == "none"
    for source in (
        "{{ tools }}",
        "{{ 'a' ~ tools }}",
        "{{ 'a' + tools }}",
        "{{ m.content }}",
        "{{ m['content']|trim }}",
    ):
        with pytest.raises(jinja2.UndefinedError, match="tools|content"):
            rendered(source, m={})


def test_functions_and_tags_of_hugging_face_are_there():
    assert (
        rendered(
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        )
        == "02"
    )
    assert rendered("{{ {'b': '<é>', 'a': none}|tojson }}") == '{"b": "<é>", "a": null}'
    assert rendered("{{ [1]|tojson(indent=2) }}") == "[\n  1\n]"
    assert len(rendered("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert rendered("{{ dict(a=1).a }}{{ namespace(b=2).b }}") == "12"
    assert rendered("  {% if true %}\nx\n  {% endif %}\ny\n") == "x\ny"
    with pytest.raises(jinja2.TemplateError, match="roles must alternate"):
        rendered("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<{{ content }}>", ". hi <x>\n."),
        ("<{{ content|trim }}>", ".hi <x>."),
        ("{{ '<' ~ content.strip() ~ '>' }}", ".hi <x>."),
        ("{{ '<' + content.strip() + '>' }}", ".hi <x>."),
        ("{{ ['<x>', content]|join('-') }}", ".... hi <x>\n"),
        ("{{ '-'.join(['<x>', content]) }}", ".... hi <x>\n"),
        ("{{ '<%s>' % content }}", ". hi <x>\n."),
        ("{{ '<%s>'|format(content) }}", ". hi <x>\n."),
        ("{{ '<{}>'.format(content) }}", ". hi <x>\n."),
        ("{% set x %}<{{ content }}>{% endset %}{{ x|trim }}", ". hi <x>\n."),
        ("{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(content) }}", ". hi <x>\n."),
        ("{% filter trim %} <{{ content }}>{% endfilter %}", ". hi <x>\n."),
        ("{{ {'<x>': content}|tojson }}", '{"<x>": " hi <x>\\n"}'),
        ("<x>{{ [content] }}", "...[' hi <x>\\n']"),
        ("<x>{{ {content: 1} }}", "...{' hi <x>\\n': 1}"),
        ("{{ content.split('<')[1] + '<x>' }}", "x>\n..."),
        ("{{ content[1:3] + '<x>' }}", "hi..."),
        ("<x>{% for c in content %}{{ c }}{% endfor %}", "... hi <x>\n"),
        ("<x>{{ content|list|join }}", "... hi <x>\n"),
        ("<x>{{ content|safe }}", "... hi <x>\n"),
        ("<x>{{ content|upper|lower }}", "... hi <x>\n"),
        ("<x>{{ 2 * content[1:3] }}", "...hihi"),
        ("{{ '<X>'.replace('X', content) }}", ". hi <x>\n."),
        ("{{ [{'c': content}]|map(attribute='c')|map('trim')|join('-') }}", "hi <x>"),
        ("<x>{{ content|first ~ content|last }}", "... \n"),
        ("<x>{{ missing|default(content) }}", "... hi <x>\n"),
        ("<x>{{ content or '<x>' }}{{ '' or '<x>' }}", "... hi <x>\n..."),
        ("<x>{{ content.ljust(10) }}", "... hi <x>\n  "),
        ("<x>{{ content.removeprefix(' ') }}", "...hi <x>\n"),
        ("<x>{{ strftime_now(content) }}", "... hi <x>\n"),
    ],
)
def test_content_is_known_through_whatever_a_template_does(source, expected):
    assert of_content(rendered(source)) == expected


def test_generation_blocks_are_marked_wherever_they_stand():
    block = "a{% generation %}b{{ content|trim }}{% endgeneration %}c"
    for source in (
        block,
        "{% macro m() %}" + block + "{% endmacro %}{{ m() }}",
        "{% set x %}" + block + "{% endset %}{{ x|trim }}",
    ):
        text = rendered(source)
        assert text == "abhi <x>c"
        assert [(a, b) for a, b, source in text.spans if source == GENERATION] == [(1, 8)]
        assert of_content(text) == "..hi <x>."
