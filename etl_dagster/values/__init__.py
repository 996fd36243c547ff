"""How values are held: from the text that Postgres prints to Arrow, Python and JSON.

| Postgres | Arrow |
|---|---|
| bool; int2, int4, int8; float4, float8 | bool; int16, int32, int64; float32, float64 |
| oid | uint32 |
| numeric(p, s) | decimal128 up to 38 digits, decimal256 up to 76 |
| numeric without precision, or wider | string, exactly as printed |
| text, varchar, char(n), name, "char" | string |
| bytea | binary |
| date, time, timestamp | date32, time64[us], timestamp[us] |
| timestamptz | timestamp[us, UTC] |
| uuid, json, jsonb, xml, everything else | string, exactly as printed |

Values with parts (arrays, ranges, composites, hstore) and enums are in `forms`.
"""
