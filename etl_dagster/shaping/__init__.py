"""How tables differ at the destination: names, columns, rows.

`rules` chooses it by the configuration; `columns` and `rows` do it to schemas and to rows. Nothing
here asks the source, the store or the destination.
"""
