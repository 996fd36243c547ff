"""How tables differ at the destination: names, columns, rows.

`rules` chooses a shape by the configuration; `columns` and `rows` apply it to schemas and to rows.
Nothing here asks the source, the store or the destination.
"""
