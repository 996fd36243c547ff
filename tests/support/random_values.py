"""Values of every type and nesting as SQL, at the edges of each type and at random between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

#: An SQL expression of the type; never null.
Make = Callable[[Random], str]


@dataclass(frozen=True, slots=True)
class Kind:
    """A type, and how to make values of it."""

    #: As a column declares it.
    name: str
    #: SQL expressions, without a cast.
    edges: tuple[str, ...]
    make: Make | None = None

    def value(self, random: Random) -> str:
        """One of its values, never null; mostly an edge."""
        if self.make is None or (self.edges and random.random() < 0.5):
            return f"({random.choice(self.edges)})::{self.name}"
        return f"({self.make(random)})::{self.name}"

    def maybe(self, random: Random, nulls: float = 0.15) -> str:
        return f"null::{self.name}" if random.random() < nulls else self.value(random)


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"


def _texts(*texts: str) -> tuple[str, ...]:
    return tuple(map(quoted, texts))


def _integer(bits: int) -> Make:
    return lambda random: str(
        random.getrandbits(random.randint(1, bits - 1)) * random.choice([1, -1])
    )


def _float(digits: int, exponent: int) -> Make:
    def make(random: Random) -> str:
        number = random.uniform(-10, 10)
        return f"'{number:.{digits}g}e{random.randint(-exponent, exponent)}'"

    return make


def _numeric(whole: int, scale: int) -> Make:
    def make(random: Random) -> str:
        digits = "".join(random.choices("0123456789", k=random.randint(1, whole)))
        after = "".join(random.choices("0123456789", k=random.randint(0, scale)))
        return f"'{random.choice('+-')}{digits}.{after}'"

    return make


#: What quoting of one type or another is made of, and what encodings are made of.
_CHARACTERS = "aZ09 ,;:\"'\\{}()[]<>=/|&!*%_-\t\n\r\v\x01\x7fäß€😀é"
_WORDS = (
    "",
    "NULL",
    "null",
    "\\N",
    "empty",
    "NaN",
    "infinity",
    '"',
    "\\",
    "{}",
    "()",
    "(,)",
    "[,]",
)


def _text(random: Random) -> str:
    return quoted("".join(random.choices(_CHARACTERS, k=random.randint(0, 12))))


def _words(random: Random) -> str:
    return quoted(" ".join(random.choices(["cat", "a'b", "ä", "x\\y", "Z"], k=3)).replace("'", ""))


def _date(random: Random) -> str:
    return f"date '2000-01-01' + {random.randint(-2_400_000, 4_000_000)}"


def _moment(type_: str) -> Make:
    def make(random: Random) -> str:
        days, micros = random.randint(-2_400_000, 2_900_000), random.randint(0, 86_399_999_999)
        return f"{type_} '2000-01-01' + interval '{days} days {micros} microseconds'"

    return make


def _time(random: Random) -> str:
    return f"time '00:00' + interval '{random.randint(0, 86_399_999_999)} microseconds'"


def _timetz(random: Random) -> str:
    hour, minute, second = random.randint(0, 23), random.randint(0, 59), random.randint(0, 59)
    zone = f"{random.choice('+-')}{random.randint(0, 15):02}:{random.randint(0, 59):02}"
    return f"'{hour:02}:{minute:02}:{second:02}.{random.randint(0, 999_999):06}{zone}'"


def _interval(random: Random) -> str:
    months, days = random.randint(-40_000, 40_000), random.randint(-40_000, 40_000)
    return f"'{months} months {days} days {random.randint(-(10**15), 10**15)} microseconds'"


def _bytes(random: Random) -> str:
    return f"'\\x{random.randbytes(random.randint(0, 20)).hex()}'"


def _hex(pattern: str) -> Make:
    """``#`` is any hexadecimal digit."""
    return lambda random: (
        "'" + "".join(random.choice("0123456789abcdef") if c == "#" else c for c in pattern) + "'"
    )


def _inet(random: Random) -> str:
    if random.random() < 0.5:
        address = ".".join(str(random.randrange(256)) for _ in range(4))
        return f"'{address}/{random.randint(0, 32)}'"
    address = ":".join(f"{random.getrandbits(16) * random.randint(0, 1):x}" for _ in range(8))
    return f"'{address}/{random.randint(0, 128)}'"


def _cidr(random: Random) -> str:
    return f"network({_inet(random)}::inet)"


def _bits(random: Random) -> str:
    return f"B'{''.join(random.choices('01', k=random.randint(0, 40)))}'"


def _numbers(pattern: str) -> Make:
    """``#`` is any float, also NaN and the infinities."""

    def make(random: Random) -> str:
        parts = pattern.split("#")
        found = [parts[0]]
        for part in parts[1:]:
            number = random.choice(["NaN", "Infinity", "-Infinity", "-0", "0.1", "1e-300", "1e300"])
            if random.random() < 0.7:
                number = f"{random.uniform(-1e6, 1e6):.17g}"
            found += [number, part]
        return f"'{''.join(found)}'"

    return make


def _plain_numbers(pattern: str) -> Make:
    """``#`` is a float that is a number, and not negative."""

    def make(random: Random) -> str:
        parts = pattern.split("#")
        return f"'{''.join(p + f'{random.uniform(0, 1e6):.17g}' for p in parts[:-1])}{parts[-1]}'"

    return make


_JSON = (
    "null",
    '{"a": [1, 2.50, "x\\\\y\\"z"], "b": {}}',
    "[]",
    '"ä€"',
    "1e400",
    "-0.0",
    '{"": ""}',
)

#: Types without parts.
SCALARS: tuple[Kind, ...] = (
    Kind("bool", ("true", "false")),
    Kind("int2", ("-32768", "32767", "0"), _integer(16)),
    Kind("int4", ("-2147483648", "2147483647"), _integer(32)),
    Kind("int8", ("-9223372036854775808", "9223372036854775807"), _integer(64)),
    Kind("oid", ("0", "4294967295")),
    Kind(
        "float4",
        (
            *_texts("NaN", "Infinity", "-Infinity", "-0", "1e-45", "-3.4028235e38", "0.1"),
            "'Infinity'::float4 - 'Infinity'::float4",
        ),
        _float(9, 30),
    ),
    Kind(
        "float8",
        (
            *_texts(
                "NaN",
                "Infinity",
                "-Infinity",
                "-0",
                "5e-324",
                "1.7976931348623157e308",
                "2.2250738585072009e-308",
            ),
            "'Infinity'::float8 - 'Infinity'::float8",
        ),
        _float(17, 290),
    ),
    Kind(
        "numeric",
        (
            *_texts("NaN", "Infinity", "-Infinity", "1.500", "-0.00", "1e100", "1e-20"),
            "repeat('7', 131072)",
            "'-0.' || repeat('3', 16383)",
        ),
        _numeric(60, 40),
    ),
    Kind("numeric(12,2)", _texts("-9999999999.99", "NaN", "0"), _numeric(10, 2)),
    Kind("numeric(38,38)", _texts("-0." + "9" * 38, "0")),
    Kind("numeric(60,20)", _texts("9" * 40 + "." + "9" * 20, "NaN"), _numeric(40, 20)),
    Kind("numeric(1000,500)", _texts("9" * 500 + "." + "9" * 500, "NaN")),
    Kind("numeric(3,-2)", _texts("12345", "-50", "NaN")),
    Kind("numeric(2,5)", _texts("0.00012", "-0.00099")),
    Kind(
        "money",
        ("'-92233720368547758.08'", "'92233720368547758.07'", "'0'"),
        lambda r: f"{r.getrandbits(40)} / 100.0",
    ),
    Kind("text", (*_texts(*_WORDS), "repeat('x€', 5000)"), _text),
    Kind("varchar(12)", _texts(*_WORDS), _text),
    Kind("char(5)", _texts("", "ab", " a ", '"\\')),
    Kind("bpchar", _texts("", "ab  ", " a")),
    Kind("name", _texts("n", "", "x" * 63)),
    Kind('"char"', (*_texts("c", "", '"'), "'\\377'")),
    Kind("bytea", ("'\\x'", "'\\x00ff10'", "decode(repeat('ab', 5000), 'hex')"), _bytes),
    Kind(
        "date",
        _texts("infinity", "-infinity", "4714-11-24 BC", "5874897-12-31", "0001-12-31 BC"),
        _date,
    ),
    Kind("time", _texts("00:00", "24:00", "23:59:59.999999"), _time),
    Kind("time(0)", _texts("24:00", "23:59:59.9")),
    Kind("timetz", _texts("24:00:00-15:59:59", "00:00:00+15:59:59", "12:00+02"), _timetz),
    Kind(
        "timestamp",
        _texts(
            "infinity",
            "-infinity",
            "4714-11-24 BC",
            "294276-12-31 23:59:59.999999",
            "294247-01-10 04:00:54.775806",
            "294247-01-10 04:00:54.775807",
            "1969-12-31 23:59:59.999999",
        ),
        _moment("timestamp"),
    ),
    Kind(
        "timestamptz",
        _texts(
            "infinity",
            "-infinity",
            "4714-11-24 00:00+00 BC",
            "294276-12-31 23:59:59.999999+00",
            "2024-02-29 12:34:56+05:30",
            "10000-01-01 00:00+00",
        ),
        _moment("timestamptz"),
    ),
    Kind("timestamptz(3)", _texts("infinity", "2024-02-29 23:59:59.9996+00")),
    Kind(
        "interval",
        _texts(
            "0",
            "1 year 2 months -3 days 04:05:06.7",
            "178000000 years",
            "-178000000 years",
            "-1 microsecond",
            "24 hours",
            "-178956970 years -8 mons -2147483648 days -2562047788:00:54.775807",
            "178956970 years 7 mons 2147483647 days 2562047788:00:54.775806",
            "-1 year 1 mon -1 day 00:00:01",
        ),
        _interval,
    ),
    Kind("interval day to second(3)", _texts("1 day 02:03:04.5678")),
    Kind(
        "uuid",
        _texts("00000000-0000-0000-0000-000000000000"),
        _hex("########-####-####-####-############"),
    ),
    Kind(
        "json",
        (*_texts(*_JSON, '{"a" :  1, "a": 2}', '"\\\\ud800"'),),
        lambda r: f"to_json({_text(r)}::text)",
    ),
    Kind("jsonb", _texts(*_JSON), lambda r: f"jsonb_build_object({_text(r)}, {_text(r)}::text)"),
    Kind("xml", _texts("", "<a>&lt;1</a>", 'text <b c="\'"/>')),
    Kind("inet", _texts("10.0.0.1", "10.0.0.0/8", "::1", "::ffff:1.2.3.4/96", "0.0.0.0/0"), _inet),
    Kind("cidr", _texts("10.0.0.0/8", "::/0", "1.2.3.4/32"), _cidr),
    Kind("macaddr", (), _hex("##:##:##:##:##:##")),
    Kind("macaddr8", (), _hex("##:##:##:##:##:##:##:##")),
    Kind("bit(3)", ("B'101'", "B'000'")),
    Kind("varbit", ("B''", "B'10'"), _bits),
    Kind(
        "tsvector", _texts("", "'a b':2A c:16383"), lambda r: f"to_tsvector('simple', {_words(r)})"
    ),
    Kind(
        "tsquery",
        _texts("", "a & !('b c' | d:*A) <2> e"),
        lambda r: f"plainto_tsquery('simple', {_words(r)})",
    ),
    Kind("point", _texts("(1,2)"), _numbers("(#,#)")),
    Kind("lseg", (), _numbers("[(#,#),(#,#)]")),
    Kind("path", _texts("[(1,2)]"), _numbers("((#,#),(#,#),(#,#))")),
    Kind("box", (), _numbers("(#,#),(#,#)")),
    Kind("polygon", _texts("((0,0))"), _numbers("((#,#),(#,#),(#,#))")),
    Kind("line", _texts("{1,-1,0}"), _numbers("{1,#,#}")),
    Kind("circle", (), _plain_numbers("<(#,#),#>")),
    Kind(
        "pg_lsn",
        _texts("0/0", "FFFFFFFF/FFFFFFFF"),
        lambda r: f"'{r.getrandbits(32):X}/{r.getrandbits(32):X}'",
    ),
    Kind("xid8", _texts("0", "18446744073709551615")),
    Kind("xid", _texts("4294967295")),
    Kind("tid", _texts("(0,1)", "(4294967295,65535)")),
    Kind("txid_snapshot", _texts("10:20:10,14,15")),
    Kind("pg_snapshot", _texts("10:20:10,14,15")),
    Kind("jsonpath", _texts('$."a b"[*]', "$.x ? (@ > 1)")),
    Kind("regclass", _texts("pg_class", "-", "123456789")),
    Kind("regtype", _texts("int4", "timestamptz")),
    Kind("regproc", _texts("now", "-")),
    Kind("regprocedure", _texts("now()")),
    Kind("regoper", _texts("pg_catalog.||/")),
    Kind("regoperator", _texts("+(int4,int4)")),
    Kind("regconfig", _texts("english")),
    Kind("regdictionary", _texts("simple")),
    Kind("regnamespace", _texts("pg_catalog")),
    Kind("regrole", _texts("-")),
    Kind("regcollation", _texts('"C"')),
    Kind("refcursor", _texts("c")),
    Kind("cid", _texts("0")),
    Kind("aclitem", _texts("=r/postgres")),
    Kind("int2vector", _texts("1 2", "")),
    Kind("oidvector", _texts("1 2", "")),
)


def kind(name: str) -> Kind:
    return next(found for found in SCALARS if found.name == name)


def array_of(element: Kind, dimensions: int = 1) -> Kind:
    """Arrays with the declared dimensions; some with others, or with other lower bounds."""
    base = element.name + "[]"

    def make(random: Random) -> str:
        if random.random() < 0.1:
            return f"array_fill({element.maybe(random)}, array[2], array[{random.randint(-2, 3)}])"
        depth = dimensions if random.random() < 0.9 else random.randint(1, 3)
        return fill([random.randint(1, 3) for _ in range(depth)], random)

    def fill(lengths: Sequence[int], random: Random) -> str:
        if not lengths:
            return element.maybe(random)
        parts = ", ".join(fill(lengths[1:], random) for _ in range(lengths[0]))
        return f"array[{parts}]"

    return Kind(base + "[]" * (dimensions - 1), (quoted("{}"),), make)


def range_of(name: str, subtype: Kind) -> Kind:
    def make(random: Random) -> str:
        # Those of whole numbers and dates become ``[)`` anyway, and some have no number after them.
        is_discrete = name in ("int4range", "int8range", "daterange")
        bounds = quoted("[)" if is_discrete else random.choice(["[]", "[)", "(]", "()"]))
        first, second = subtype.value(random), subtype.value(random)
        lower = random.choice(["null", f"least({first}, {second})"])
        upper = random.choice(["null", f"greatest({first}, {second})"])
        return f"{name}({lower}, {upper}, {bounds})"

    return Kind(name, (quoted("empty"), quoted("(,)")), make)


def multirange_of(name: str, part: Kind) -> Kind:
    def make(random: Random) -> str:
        return f"{name}({', '.join(part.value(random) for _ in range(random.randint(0, 3)))})"

    return Kind(name, (quoted("{}"), quoted("{(,)}")), make)


def composite_of(name: str, *parts: Kind) -> Kind:
    def make(random: Random) -> str:
        return f"row({', '.join(part.maybe(random, 0.3) for part in parts)})"

    return Kind(name, (f"row({', '.join('null' for _ in parts)})",), make)


def domain_of(name: str, base: Kind) -> Kind:
    return Kind(name, base.edges, base.make)


_MOOD = Kind("mood", _texts("sad", 'so, "so"', "NULL", ""))
_HSTORE = Kind(
    "hstore",
    (
        "''",
        "hstore('a', null)",
        "hstore(array['a', '', 'NULL', '\"'], array['1', null, 'NULL', '\\'])",
    ),
    lambda r: f"hstore({_text(r)}, {_text(r)})",
)
_SHORT = domain_of("short", kind("varchar(12)"))
_SHORTER = domain_of("shorter", _SHORT)
_AMOUNT = domain_of("amount", kind("numeric(12,2)"))
_AMOUNTS = Kind("amounts", ("'{}'", "'{1.50,NULL,NaN}'", "'{-0.01}'"))
_PAIR = composite_of("pair", kind("int4"), kind("text"))
_WIDE = range_of("wide", kind("float8"))
_WORDY = range_of("wordy", kind("text"))
_MADE = composite_of(
    "made", array_of(kind("text")), range_of("int4range", kind("int4")), _PAIR, _MOOD, _AMOUNT,
    array_of(_PAIR), kind("bytea"), kind("timestamptz"), kind("float8"),
)  # fmt: skip

#: What the types of users are declared with. The labels of an enum hold what quoting is made of.
DECLARATIONS = """
create type mood as enum ('sad', 'so, "so"', 'NULL', '');
create domain short as varchar(12);
create domain shorter as short check (value <> 'forbidden');
create domain amount as numeric(12,2);
create domain amounts as amount[];
create type pair as (a int, "b ""c" text);
create type wide as range (subtype = float8, multirange_type_name = wides);
create type wordy as range (subtype = text, collation = "C", multirange_type_name = wordies);
create type made as (l text[], r int4range, p pair, m mood, d amount, ps pair[], y bytea,
                     z timestamptz, f float8);
create type nothing as ();
"""

#: Extensions that a server may not have, and a type that each brings.
EXTENSIONS: dict[str, Kind] = {
    "hstore": _HSTORE,
    "citext": Kind("citext", _texts("Ab", "aB", ""), _text),
    "ltree": Kind("ltree", _texts("a.b_c.D", "")),
    "cube": Kind("cube", _texts("(1,2),(3,4)", "(0)")),
    "isn": Kind("isbn13", _texts("978-0-11-000533-1")),
    "seg": Kind("seg", _texts("1.5 .. 2", "~3")),
}

_RANGES = (
    range_of("int4range", kind("int4")),
    range_of("int8range", kind("int8")),
    range_of("numrange", kind("numeric")),
    range_of("daterange", kind("date")),
    range_of("tsrange", kind("timestamp")),
    range_of("tstzrange", kind("timestamptz")),
    _WIDE,
    _WORDY,
)
_MULTIRANGES = (
    *(multirange_of(found.name.replace("range", "multirange"), found) for found in _RANGES[:6]),
    multirange_of("wides", _WIDE),
    multirange_of("wordies", _WORDY),
)

#: Types with parts, and those that users declare.
BUILT: tuple[Kind, ...] = (
    *_RANGES, *_MULTIRANGES, _MOOD, _SHORTER, _AMOUNT, _AMOUNTS, _PAIR, _MADE,
    Kind("nothing", ("row()",)),
)  # fmt: skip


def every_kind(extensions: Sequence[str]) -> list[Kind]:
    """All types, and arrays of all of them."""
    found = [*SCALARS, *BUILT, *(EXTENSIONS[name] for name in extensions)]
    arrays = [array_of(each) for each in found]
    deep = [array_of(kind(name), 2) for name in ("int4", "text", "float8", "bytea")]
    return [*found, *arrays, *deep, array_of(kind("timestamptz"), 3), array_of(_MADE, 2)]
