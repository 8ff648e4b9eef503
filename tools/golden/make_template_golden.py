#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what jinja2 renders, in the environment that transformers sets up for chat templates, into
tests/golden/chat_templates/: renders.json (each *.jinja there, for several conversations) and features.json
(small templates, one feature each). A failure is recorded as an error without its text, since ours differ.

Needs transformers and jinja2 (versions are in the files). Run from the repository root:
python3 tools/golden/make_template_golden.py
"""

import datetime
import json
from importlib.metadata import version
from pathlib import Path

from transformers.utils import chat_template_utils

FOLDER = Path("tests/golden/chat_templates")
NOW = datetime.datetime(2026, 11, 24, 9, 5, 7)
VERSIONS = {name: version(name) for name in ("jinja2", "markupsafe", "transformers")}


class FixedDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(NOW.year, NOW.month, NOW.day, NOW.hour, NOW.minute, NOW.second)


def render(template, variables):
    try:
        text = chat_template_utils._compile_jinja_template(template).render(**variables)
        text.encode("utf-8")
        return {"text": text}
    except Exception:
        return {"error": True}


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather <now> & \"later\", l'été compris",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "days": {"type": ["integer", "null"]},
                "units": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
    },
}
CALL = {"id": "abcdef123", "type": "function",
        "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "x": [1.5, True, None]}}}
THOUGHT = "<think>\nSum them.\n</think>\n\n4"
CONVERSATIONS = [
    {"messages": [{"role": "user", "content": " What is 2+2?\n"}], "add_generation_prompt": True},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                  {"role": "assistant", "content": " Hello, you "}, {"role": "user", "content": "Où? 😀"}],
     "add_generation_prompt": True},
    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": THOUGHT}]},
    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": THOUGHT},
                  {"role": "user", "content": "3+3?"}, {"role": "assistant", "content": THOUGHT}],
     "add_generation_prompt": False},
    {"messages": [{"role": "user", "content": "2+2?"},
                  {"role": "assistant", "content": "4", "reasoning_content": "\nEasy.\n"}]},
    {"messages": [{"role": "user", "content": "Weather?"}], "tools": [TOOL], "add_generation_prompt": True},
    {"messages": [{"role": "system", "content": "Use tools."}, {"role": "user", "content": "Weather?"},
                  {"role": "assistant", "content": "", "tool_calls": [CALL]},
                  {"role": "tool", "content": "{\"celsius\": 20}"}, {"role": "tool", "content": "dry"},
                  {"role": "assistant", "content": "20 degrees, dry"}],
     "tools": [TOOL, TOOL], "add_generation_prompt": False},
    {"messages": [{"role": "user", "content": "Summarise."}], "add_generation_prompt": True,
     "documents": [{"title": "One", "text": "line\nline"}, {"text": "two", "Author": "A. B."}]},
    {"messages": [{"role": "user", "content": "No thinking."}], "add_generation_prompt": True,
     "enable_thinking": False},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": " Look: "}, {"type": "image"}]}],
     "add_generation_prompt": True},
    {"messages": [{"role": "assistant", "content": "I begin."}]},
    {"messages": []},
]
DEFAULTS = {"tools": None, "documents": None, "add_generation_prompt": False, "bos_token": "<s>",
            "eos_token": "</s>"}

VARIABLES = {
    "i": 7, "neg": -3, "big": 18446744073709551615, "f": 2.5, "tiny": 1e-7, "huge": 1e22, "yes": True, "no": False,
    "nil": None, "s": "Hello, World", "blank": "  two  words \n", "uni": "Größe ΑΣ ß ǆ İi ﬁ 😀", "empty": "",
    "html": "<a href=\"x\">&'</a>", "nums": [3, 1, 2], "mixed": [1, 2.0, "x", None, True, [1], {"k": "v"}],
    "words": ["pear", "Apple", "fig", "apple"], "d": {"b": 1, "a": "x", "C": None}, "nothing": {}, "none_list": [],
    "people": [{"name": "Ann", "age": 30, "tags": ["x", "y"]}, {"name": "bob", "age": 25, "tags": []},
               {"name": "Cy", "tags": ["z"]}, {"name": "ann", "age": 30, "tags": ["x"]}],
    "items_dict": {"items": "mine", "keys": 1, "get": 2, "values": 3},
    "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"},
                 {"role": "assistant", "content": "A"}],
}

EXPRESSIONS = r"""
i + 1|i - 10|i * 2|i / 2|i // 2|neg // 2|i % 3|neg % 3|i % neg|2 ** 10|2 ** -1|-2 ** 2|2 ** 3 ** 2|i * 1.5|7.0 // 2
-7.5 % 2|1 / 3|10 / 5|1e16|1e15 + 0.5|123456789012345678|big|big + 1|tiny|huge|f * f|0.1 + 0.2|1.0|100.0|1e100
1_000 + 0x1F + 0b11 + 0o17|1.5e3|-i|+neg|- - 3|i / 0|i // 0|i % 0|1.0 / 0|s + 1|s + nil|nil + 1|yes + 1|no * 3|s * 2
3 * s|nums * 2|nums + [4]|nums + (1,)|(1, 2) + (3,)|s ~ i ~ f ~ nil ~ yes ~ nums|i ~ ""|nil ~ undefined_thing
not i|not nil|i and s|nil or s|nil and s|empty or "x"|i == 7|i == 7.0|yes == 1|s == "Hello, World"|nums == [3, 1, 2]
d == {"C": none, "a": "x", "b": 1}|i != 7|1 < 2 < 3|1 < 3 < 2|3 > 2 >= 2|"a" < "b"|"a" < 1|[1, 2] < [1, 3]|nil < 1
1 in nums|5 not in nums|"ell" in s|1 in s|"b" in d|"z" in d|nil in mixed|not 1 in nums|1 in 5|undefined_thing in nums
s if i else "no"|s if nil else "no"|s if nil|(s if nil) is defined|i if yes else 1 / 0|1 if no else 2 if no else 3
nil|yes|no|True|false|None|mixed|d|nothing|none_list|()|(1,)|(1, 2)|{"a": [1, {"b": "c'd"}]}|["it's", 'say "x"', "both'\""]
["\n\t\r\\\x00\x7f\xa0é€😀"]|"a\x41\u00e9\U0001F600\101\q\é"|'single \'quoted\''|"con" "cat" 'ed'|"tab\there"
s[0]|s[-1]|s[1:4]|s[::-1]|s[::2]|s[-3:]|s[:100]|s[5:2]|s[100]|uni[2]|uni[-1]|uni[::-1]|uni[2:5]|nums[0]|nums[-1]|nums[1:]
nums[::-1]|nums[3]|nums[::0]|nums["x"]|nums.0|mixed[5][0]|(1, 2, 3)[1:]|d["a"]|d.a|d["zz"]|d.zz|d.zz.y|d["zz"]["y"]
people[0].name|people[2].age|people[2]["age"] is defined|people.0.tags.1|items_dict.items|items_dict["items"]|nil.x|i.x
items_dict.get is callable|items_dict["get"]|undefined_thing|undefined_thing.x|undefined_thing["x"]|undefined_thing()
undefined_thing + 1|undefined_thing == other_thing|undefined_thing is none|undefined_thing | length|undefined_thing < 1
undefined_thing | default("x")|nil | default("x")|nil | default("x", true)|empty | d("x", boolean=true)|d.zz | d("n")
s.upper()|s.lower()|s.title()|s.capitalize()|s.swapcase()|uni.upper()|uni.lower()|uni.title()|uni.capitalize()|uni.swapcase()|uni.casefold()
uni | upper|uni | lower|uni | capitalize|uni | title|uni | length|"hello-big (world) it's [x]" | title|"ΑΣ ΑΣΑ Σ".lower()
blank.strip()|blank.lstrip()|blank.rstrip()|"xxhixx".strip("x")|"xyhiyx".lstrip("xy")|"éaé".strip("é")|s.strip("Hd")
blank | trim|"--a--" | trim("-")|i | trim|s.split()|s.split(",")|s.split(", ")|blank.split()|"a,b,c".split(",", 1)|s.split("")
"a b c".rsplit(" ", 1)|"a,b,c".rsplit(",", maxsplit=1)|"a b  c".split(maxsplit=1)|"a b  c ".rsplit(none, 1)|"".split()
"".split(",")|"a\nb\r\nc\n".splitlines()|"a\nb\n".splitlines(true)|"a\x0bb\x1cc\u2028d".splitlines()|s.startswith("He")
s.startswith(("x", "H"))|s.endswith("ld")|s.endswith("x")|s.startswith("l", 2)|s.startswith("l", 2, 2)|s.startswith(1)
s.find("o")|s.find("o", 5)|s.find("zz")|s.rfind("o")|s.index("W")|s.index("zz")|s.count("l")|s.count("")|uni.find("😀")
s.replace("l", "L")|s.replace("l", "L", 1)|s.replace("", "-")|s | replace("l", "L")|s | replace("l", "L", 2)|i | replace(7, 8)
", ".join(words)|"".join([])|",".join(nums)|"-".join("abc")|s.partition(",")|s.rpartition("o")|s.partition("zz")
s.removeprefix("Hello")|s.removesuffix("World")|s.removeprefix("x")|"7".zfill(3)|"-7".zfill(4)|"x".center(4)|"x".center(5, "*")
"x".ljust(3) ~ "|"|"x".rjust(3, "0")|"ab12".isalnum()|"ab".isalpha()|"12".isdigit()|" ".isspace()|"Ab".istitle()|"AB".isupper()
"ab1".islower()|"".isalpha()|"a\tb".expandtabs(4)|s.nope|s.nope()|s.__class__|s.format()
"{} and {}".format(1, "x")|"{1} {0} {1}".format("a", "b")|"{n:>5}|{n:<5}|{n:^5}|".format(n=42)|"{:.2f} {:e} {:%}".format(f, f, f)
"{:,}".format(1234567)|"{:05d}".format(neg)|"{:x} {:#X} {:b} {:o}".format(255, 255, 5, 8)|"{!r:>6}".format("a")|"{{}}".format()
"{0[k]} {0.k}".format({"k": 1})|"{:{w}}|".format("a", w=4)|"{".format()|"{}".format()|"%s %d %5.2f %x" % ("a", 3, f, 255)
"%s" % nil|"%(a)s" % d|"%-5s|%05d|%+d" % ("ab", 42, 3)|"%r" % "x"|"%c%%" % "z"|"%s %s" % "a"|"%d" % "x"|"%s" % (1, 2)
"%s-%s" | format(1, 2)|"%(a)s" | format(a=1)|d.get("a")|d.get("zz")|d.get("zz", 0)|d.keys()|d.values()|d.items()|d.keys() | list
d.items() | list|d.copy()|d.update({"x": 1})|d.pop("a")|nums.append(4)|nums.index(1)|nums.count(1)|(1, 2, 1).count(1)|nums.pop()
nums.sort() is defined|nums.append is defined|d | items | list|nil | items | list|d | dictsort|d | dictsort(true)
d | dictsort(reverse=true)|{"a": 2, "b": 1} | dictsort(by="value")|d | dictsort(by="x")|d | length|nums | length|s | count
i | length|nums | first|nums | last|none_list | first|none_list | last|s | first|s | last|d | first|nums | sort|words | sort
words | sort(reverse=true)|words | sort(case_sensitive=true)|people | sort(attribute="name") | map(attribute="name") | list
people | sort(attribute="age")|people[:2] | sort(attribute="age,name") | map(attribute="name") | join|mixed | sort|nums | reverse
nums | reverse | list|s | reverse|d | reverse | list|nums | sum|people[:2] | sum(attribute="age")|[1.5, 2] | sum|words | sum
nums | sum(start=10)|nums | min|nums | max|words | min|words | max|none_list | min|people[:2] | max(attribute="age")
words | unique | list|words | unique(true) | list|[1, 1.0, true, "1"] | unique | list|nums | join|nums | join(", ")|words | join(d="-")
people | join(", ", attribute="name")|d | join(",")|nil | join(",")|nums | map("string") | list|nums | map("abs") | list
words | map("upper") | join(" ")|people | map(attribute="age") | list|people | map(attribute="age", default=0) | list
people | map(attribute="tags.0") | list|words | map("replace", "p", "q") | list|words | map("nope") | list|nil | map("upper") | list
5 | map("upper") | list|nums | map | list|nums | select("odd") | list|nums | select | list|[0, 1, ""] | select | list
[0, 1, ""] | reject | list|nums | reject("gt", 1) | list|nums | select("in", [1, 2]) | list|nums | select("nope") | list
people | selectattr("age") | map(attribute="name") | list|people | selectattr("age", "defined") | list | length
people | selectattr("name", "equalto", "bob") | list|people | rejectattr("age") | map(attribute="name") | list
people | rejectattr("tags") | map(attribute="name") | list|people | selectattr("age", "gt", 26) | list | length
messages | selectattr("role", "equalto", "user") | list | first|messages | map(attribute="content") | join("/")
nums | list|s | list|uni | list|d | list|5 | list|range(5) | list|range(2, 10, 3) | list|range(5, 0, -2) | list|range(3)
range(3)[::-1]|range(10)[2]|2 in range(3)|range(3) | length|range(0)|range(1000000)|range("x")|range(1, 2, 0)|range(0, 6, 2)[1:]
[1, 2, 3, 4, 5] | batch(2) | list|[1, 2, 3] | batch(2, "x") | list|[1, 2, 3, 4, 5] | slice(3) | list|[1, 2] | slice(3, "x") | list
people | groupby("age", default=0) | list | length|people | groupby("name") | map(attribute="grouper") | list
people | groupby("name") | first|"3" | int|"3.7" | int|"x" | int|"x" | int(5)|"0x1f" | int(0, 16)|"11" | int(base=2)|nil | int
3.9 | int|-3.9 | int|yes | int|" 42 " | int|"1_000" | int|"1e3" | int|nums | int|"3.5" | float|"x" | float|"x" | float(1.5)|i | float
nil | float|"inf" | float|"nan" | float|"-1e5" | float|neg | abs|-2.5 | abs|s | abs|2.5 | round|3.5 | round|2.567 | round(2)
2.675 | round(2)|1234.5 | round(-2)|i | round|2.1 | round(method="ceil")|2.9 | round(0, "floor")|2.345 | round(1, "ceil")|1250 | round(-2)
1150 | round(-2)|s | round|2.5 | round(method="x")|s | wordcount|uni | wordcount|"a b" | center(9) ~ "|"|"a\nb\n\nc" | indent
"a\nb" | indent(2, true)|"a\n\nb" | indent(2, blank=true)|"a\nb" | indent("> ")|"a\n" | indent|i | indent
"one two three four" | truncate(10)|"one two three four" | truncate(10, true)|"one two three four" | truncate(10, true, "!", 0)
"short" | truncate(4)|nums | truncate(5)|nums[nums[1:2][0]:][0]|s[s[1:2]]|html | escape|html | e | upper|html | safe|html | e | e|html | forceescape|html | safe ~ "<"|(html | safe) + "<"
"<" + (html | safe)|[html | safe]|(html | safe) == html|html | e is escaped|html is escaped|(html | safe).split("x")|"a b&c/é" | urlencode
{"a b": "c&d", "e": 1} | urlencode|1500 | filesizeformat|1 | filesizeformat|1536 | filesizeformat(true)|d | attr("items") is callable
d | attr("a")|s | attr("upper") is defined|s | nope|d | tojson|mixed | tojson|uni | tojson|uni | tojson(ensure_ascii=true)
html | tojson|d | tojson(indent=2)|mixed | tojson(indent=4)|d | tojson(sort_keys=true)|d | tojson(separators=(",", ":"))
d | tojson(indent="\t")|nothing | tojson(indent=2)|none_list | tojson(indent=2)|{1: 2, 1.5: 3, none: 4, true: 5} | tojson
"\x00\x1f\x7f\"\\/\b\f" | tojson|undefined_thing | tojson|range(3) | tojson|huge | tojson|tiny | tojson|1.0 | tojson|(1, 2) | tojson
d.items() | tojson|d.items() | list | tojson|"inf" | float | tojson|d | tojson(bad=1)|i | string|[1] | string|nil | string|s | string
i is odd|i is even|i is divisibleby 7|i is divisibleby(2)|i is defined|zz is defined|zz is undefined|zz is not defined|nil is none
nil is not none|yes is boolean|i is boolean|yes is true|no is false|1 is true|i is integer|yes is integer|f is float|i is float
f is number|yes is number|s is number|s is string|i is string|d is mapping|nums is mapping|nums is sequence|s is sequence
d is sequence|i is sequence|d.items() is sequence|nums is iterable|i is iterable|zz is iterable|zz is sequence|s is lower
"abc" is lower|"ABC" is upper|i is callable|range is callable|i is sameas i|nil is sameas none|i is in [7]|i is not in [7]
"e" is in s|i is eq 7|i is equalto 7|i is ne 7|i is gt 5|i is ge(7)|i is lt 5|i is le 7|i is greaterthan 5|i is lessthan 5
"upper" is filter|"nope" is filter|"odd" is test|i is nope|i is odd is true|s is defined and s|(i is odd) == true
i is odd and f is float|dict(a=1, b=2)|dict({"a": 1}, b=2)|dict([("a", 1)])|dict(1)|namespace(a=1).a|namespace(a=1)
namespace(a=1).b|namespace({"a": 2}, b=3).b|namespace(_a=1)|cycler("a", "b").next()|joiner(",")()|cycler()
strftime_now("%Y-%m-%d %H:%M:%S")|strftime_now("%d %b %Y, %A %j %p %f|%z|%%")|strftime_now("")|raise_exception("x")
raise_exception()|lipsum is defined|i()|s.upper|nums | join(",", 1, 2)|s | upper(1)|s | trim(chars="Hd")|s | default
d["a" "b"]|{"a": 1, "a": 2}|{1: "x", 1.0: "y"}|{[1]: 2}|d[[1]]|d[(nums, 1)]|d[1]|nums[yes]|nums[f]|nums[nil]|s["upper"]()|d["items"]() | list
[1, 2,]|[[], [[]]]|{"a": {"b": {"c": 1}}}.a.b.c|1 if 2 else 3 if 4 else 5|(1 if 0 else 2) + 1|[x for x in nums]|i.real|f.is_integer()
(5).bit_length()|i.numerator|nums | map(attribute=0) | list|people | map(attribute="name") | map("lower") | unique | list
1, 2|i, s|(i)|((i))|not not i|i == 7 == yes|1 < 2 == true|"a" "b" ~ "c"|-i | abs|(-i) | abs|2 * -i|i --3|f // 0.7|1 // 0.1|0.0|-0.0
[1, 2] == (1, 2)|"a" == 1|nil == false|1 is sameas true|yes ~ no|5 % 3.5|-5 % 3.5|2 ** 0.5|4 ** 0.5|0 ** 0|10 ** 20|2 ** 100
"abc"[1:2] ~ "abc"[-1]|"%s" | format(nil)|1.5 is in [1.5]|2 in (1, 2)|"x" in {"x": 1}.keys()|("a", 1) in {"a": 1}.items()
"Hello"[1:-1:2]|nums[-2:]|nums[:-1]|nums[5:]|nums[:0]|"abc"[::-2]|[1, 2, 3, 4][3:0:-1]|[1, 2, 3][-1:-10:-1]|(1, 2, 3)[::-1]|"abc"[none:none]
""".strip()

TEMPLATES = [
    "plain text", "", "\n", "a\n", "a\n\n", "a\r\nb\rc\n", "{{ i }}\n", "{{ i }}\n\n", "x {{- i -}} y", "x {{ i }} y",
    "a\n  {{- i }}\n  {{ i -}}\n b", "a\n  {% if i %}\n  b\n  {% endif %}\n c", "a {% if i %} b {% endif %} c",
    "a\n  {%+ if i %}\n  b\n  {%+ endif +%}\n c", "a\n {%- if i -%}\n b\n {%- endif -%}\n c", "  {% if i %}x{% endif %}\n",
    "\t {% set x = 1 %}\n{{ x }}", "{# c #}\nx", "  {# c #}\nx", "a {#- c -#} b", "a\n{# c\nc #}\nb", "a {# {{ i }} #} b",
    "{#+ c +#}\nx", "  {#+ c +#}\nx", "{% raw %}\n{{ i }}\n{% endraw %}\nx", "a {%- raw -%} {{ i }} {%- endraw -%} b",
    "  {% raw %}x{% endraw %}\n y", "{% raw %}{% if %}{# {% endraw %}", "{{ '{{' }}{{ '%}' }}", "{{ {'a': {'b': 1}} }}",
    "{{ {'a': 1}['a'] }}}", "a { b } c {x} {{ '}' }}", "{ {% if i %} } {% endif %}", "{{ i }}{{ i }}\n{{ i }}",
    "{{\ni\n}}\n{{ raise_exception('x') if no }}", "{% if nil %}a{% elif i %}b{% else %}c{% endif %}",
    "{% if nil %}a{% elif no %}b{% elif empty %}d{% else %}c{% endif %}", "{% if nil %}a{% endif %}",
    "{% if i and not nil or no %}y{% endif %}", "{% for x in nums %}{{ x }}{% endfor %}",
    "{% for x in nums %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.revindex0 }}/{{ loop.first }}/{{ loop.last }}/{{ loop.length }}/{{ loop.depth }};{% endfor %}",
    "{% for x in nums %}{{ loop.previtem }}<{{ x }}<{{ loop.nextitem }} {% endfor %}",
    "{% for x in nums %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }}{% endfor %}", "{% for x in nums %}{{ loop }}{% endfor %}",
    "{% for x in nums %}{{ x }}{% else %}none{% endfor %}", "{% for x in [] %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in nil %}{{ x }}{% endfor %}", "{% for x in zz %}{{ x }}{% else %}e{% endfor %}", "{% for x in i %}{% endfor %}",
    "{% for x in nums if x > 1 %}{{ loop.index }}:{{ x }}:{{ loop.last }} {% endfor %}",
    "{% for x in nums if x > 9 %}{{ x }}{% else %}none{% endfor %}", "{% for k, v in d.items() %}{{ k }}={{ v }},{% endfor %}",
    "{% for k in d %}{{ k }}{% endfor %}", "{% for k, v in d | dictsort %}{{ k }}{{ v }}{% endfor %}",
    "{% for c in uni %}[{{ c }}]{% endfor %}", "{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for a, b in [(1, 2, 3)] %}{% endfor %}",
    "{% for a, b in [1] %}{% endfor %}", "{% for a, b in ['xy'] %}{{ a }}{{ b }}{% endfor %}",
    "{% for x in nums %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in nums %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% else %}e{% endfor %}",
    "{% for x in nums %}{% continue %}{% else %}e{% endfor %}", "{% for x in nums %}{% break %}{% else %}e{% endfor %}",
    "{% for x in nums %}{% for y in nums %}{{ loop.index }}{% endfor %}{{ loop.index }};{% endfor %}",
    "{% for x in nums %}{% set o = loop %}{% for y in 'ab' %}{{ o.index }}{{ loop.index }} {% endfor %}{% endfor %}",
    "{% for x in nums recursive %}{{ x }}{% endfor %}",
    "{% for x in [{'v': 1, 'c': [{'v': 2, 'c': [{'v': 3}]}]}, {'v': 4}] recursive %}{{ loop.depth }}{{ x.v }}{% if x.c %}[{{ loop(x.c) }}]{% endif %}{% endfor %}",
    "{% for x in nums | reverse %}{{ x }}{{ loop.last }}{{ loop.length }}{% endfor %}",
    "{% for x in nums | map('string') %}{{ x }}{{ loop.index }}{{ loop.last }}{% endfor %}",
    "{% for x in nums | select('odd') %}{{ loop.length }}{{ x }}{% endfor %}", "{% for loop in nums %}{% endfor %}",
    "{% set x = 1 %}{{ x }}{% set x = x + 1 %}{{ x }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = 1 %}", "{% set a = 1, 2 %}{{ a }}",
    "{% set x = 1 %}{% for y in nums %}{% set x = x + y %}{{ x }}{% endfor %}{{ x }}",
    "{% for y in nums %}{{ x }}{% set x = y %}{% endfor %}{{ x is defined }}", "{% if i %}{% set x = 1 %}{% endif %}{{ x }}",
    "{% if nil %}{% set i = 1 %}{% endif %}{{ i }}", "{% for y in nums %}{% if y == 1 %}{% set s = 'z' %}{% endif %}{{ s }}{% endfor %}",
    "{% set x %}a{{ i }}b{% endset %}[{{ x }}]", "{% set x | upper | replace('A', 'q') %}a{{ i }}b{% endset %}{{ x }}",
    "{% set x %}{% for y in nums %}{{ y }}{% endfor %}{% endset %}{{ x | length }}", "{% set d.x = 1 %}", "{% set d['x'] = 1 %}", "{% set 1 = 2 %}",
    "{% set none = 2 %}", "{% set ns = namespace(n=0) %}{% for x in nums %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{% set ns.b = [ns.a] %}{{ ns.b }}{{ ns }}{{ ns.c }}", "{% set ns = namespace() %}{% set ns._a = 1 %}",
    "{% set ns = namespace(l=[]) %}{% for x in nums %}{% set ns.l = ns.l + [x] %}{% endfor %}{{ ns.l }}",
    "{% set ns = namespace(p=0) %}{% for x in [1, 1, 2, 2, 3] if x != ns.p %}{{ x }}{% set ns.p = x %}{% endfor %}",
    "{% macro m(a, b=2, c=a) %}{{ a }},{{ b }},{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=5, a=4) }}{{ m() }}{{ m(*[7, 8]) }}{{ m(**{'a': 9}) }}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m() }}|{{ m }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}", "{% macro m() %}{{ i }}{{ zz }}{% endmacro %}{{ m() }}",
    "{% macro m() %}[{{ x }}]{% endmacro %}{{ m() }}{% set x = 1 %}{{ m() }}", "{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% set i = 1 %}{{ m() }}",
    "{% macro f(n) %}{% if n > 1 %}{{ n }}{{ f(n - 1) }}{% else %}1{% endif %}{% endmacro %}{{ f(5) }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro m() %}{% set x = 5 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}", "{% macro a() %}A{% endmacro %}{% macro b() %}{{ a() }}B{% endmacro %}{{ b() | lower }}",
    "{% macro m(x) -%}\n  {{ x }}\n{%- endmacro %}[{{ m(1) }}]", "{{ later() }}{% macro later() %}x{% endmacro %}", "{% macro m(a=1, b) %}{% endmacro %}",
    "{% macro m(x) %}{{ caller(x, 2) }}{% endmacro %}{% call(a, b) m(1) %}{{ a }}-{{ b }}{% endcall %}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}{{ i }}{% endcall %}", "{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}",
    "{% macro m() %}x{% endmacro %}{% call m() %}y{% endcall %}", "{% macro m(i) %}{% for x in range(i) %}{{ loop.index }}{{ caller(x) }}{% endfor %}{% endmacro %}{% call(y) m(2) %}<{{ y }}>{% endcall %}",
    "{% filter upper %}a{{ s }}{% endfilter %}", "{% filter replace('a', 'b') | upper %}banana{% endfilter %}", "{% filter nope %}x{% endfilter %}", "{% filter length %}x{% endfilter %}",
    "{% filter indent(2) %}\na\nb{% endfilter %}", "{% with x = 1, y = i %}{{ x }}{{ y }}{% endwith %}{{ x }}", "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q }}",
    "{% with i = 1, j = i %}{{ i }}{{ j }}{% endwith %}", "{% generation %}a{{ i }}{% endgeneration %}b", "a\n  {% generation %}\n  b\n  {% endgeneration %}\nc",
    "{% for m in messages %}{% generation %}{{ m.content }}{% set k = 1 %}{% endgeneration %}{{ k }}{% endfor %}", "{% print i, s %}",
    "{% if i %}{{ i | nope }}{% endif %}", "{% if nil %}{{ i | nope }}{% endif %}ok", "{{ (i | nope) if nil else 'ok' }}", "{{ i | nope }}",
    "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{% do 1 %}", "{% nope %}", "{% endif %}", "{% if i %}", "{% for x in nums %}",
    "{% if i %}{% endfor %}", "{{ i", "{% if i", "{# x", "{% raw %}x", "{{ }}", "{{ i i }}", "{{ 1 + }}", "{{ (1 }}", "{{ 'abc }}", "{{ i ! }}", "{{ a.b.c }}",
    "{% for x nums %}{% endfor %}", "{% set %}", "{% if %}{% endif %}", "{% else %}", "{% break %}", "{% macro m() %}{% break %}{% endmacro %}",
    "{% for x in nums %}{% set y %}{% break %}{% endset %}{% endfor %}ok", "{% for x in nums %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    "{% for x in nums %}{{ x }}{% else %}{% break %}{% endfor %}", "{% if i: %}x{% endif %}", "{% for x in nums: %}{{ x }}{% endfor %}",
    "{%- for m in messages -%}\n  {%- if loop.first -%}first{%- endif -%}\n  {{ m.role }}: {{ m.content }}\n{% endfor -%}\nend",
    "{% for m in messages[1:] %}{{ messages[loop.index0].role }}{% endfor %}", "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}",
    "{% set j = joiner('; ') %}{% for x in nums %}{{ j() }}{{ x }}{% endfor %}", "{% for x in range(3) %}{% for y in range(x) %}{{ x }}{{ y }} {% endfor %}{% endfor %}",
    "{% set g = nums | map('string') %}{{ g | join(',') }}|{{ g | join(',') }}", "{% if nums | select('gt', 99) %}true{% endif %}",
    "{% set l = [1, 2] %}{% set l = l + [3] %}{{ l | length }}", "{% for x in nums %}{% if loop.last %}{% set z = 'in' %}{% endif %}{% endfor %}{{ z | default('out') }}",
    "{{ ' ' }}\n{{ 'a\nb' }}", "{{ 'x' -}}\n\n  y", "x\n\n  {{- 'y' }}", "{{- i -}}", "{%- set q = 1 -%} {{ q }} ", "a{% set q = 1 +%}\nb",
]


def main():
    chat_template_utils.datetime = FixedDatetime
    renders = []
    for path in sorted(FOLDER.glob("*.jinja")):
        for index, conversation in enumerate(CONVERSATIONS):
            result = render(path.read_text(encoding="utf-8"), {**DEFAULTS, **conversation})
            renders.append({"file": path.name, "conversation": index, **result})
    # "|" separates expressions unless blanks or quotes make it part of one.
    expressions = []
    for line in EXPRESSIONS.splitlines():
        start, quote, depth = 0, "", 0
        for place, char in enumerate(line):
            if quote:
                quote = "" if char == quote and line[place - 1] != "\\" else quote
            elif char in "'\"":
                quote = char
            elif char in "([{":
                depth += 1
            elif char in ")]}":
                depth -= 1
            elif char == "|" and depth == 0 and line[place - 1] != " ":
                expressions.append(line[start:place])
                start = place + 1
        expressions.append(line[start:])
    templates = ["{{ " + text + " }}" for text in expressions] + TEMPLATES
    features = [{"template": text, **render(text, VARIABLES)} for text in templates]
    features = [row for row in features if " at 0x" not in row.get("text", "")]
    head = {"versions": VERSIONS, "now": NOW.isoformat()}
    write("renders.json", {**head, "defaults": DEFAULTS, "conversations": CONVERSATIONS, "renders": renders})
    write("features.json", {**head, "variables": VARIABLES, "features": features})
    failed = sum("error" in row for row in features)
    print(f"{len(renders)} renders, {len(features)} features, {failed} of them errors")


def write(name, content):
    """One row of a list per line, so that changes can be read."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list):
            rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in value)
            parts.append(f"{json.dumps(key)}: [\n{rows}\n]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    (FOLDER / name).write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
