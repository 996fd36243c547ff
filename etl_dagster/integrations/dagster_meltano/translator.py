"""How a stream looks as an asset; the one place to change it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dagster import AssetSpec, TableColumn, TableColumnConstraints, TableSchema

from etl_dagster.integrations.dagster.names import identifier_part
from etl_dagster.integrations.dagster.tables.translator import STATE_ID
from etl_dagster.integrations.dagster_meltano.catalog import Stream

EXTRACTOR_TAG = "meltano/extractor"
LOADER_TAG = "meltano/loader"


@dataclass(frozen=True)
class MeltanoStreamProps:
    """What the translator gets for one stream."""

    extractor: str
    loader: str
    environment: str
    stream: Stream
    #: That of the pair: Meltano keeps one state for all streams of a run.
    state_id: str


class MeltanoDagsterTranslator:
    """Makes the asset of each stream.

    Override `get_asset_spec` to have other keys, groups, owners or descriptions:

        class Raw(MeltanoDagsterTranslator):
            def get_asset_spec(self, props):
                spec = super().get_asset_spec(props)
                return spec.replace_attributes(group_name="raw")
    """

    def get_asset_spec(self, props: MeltanoStreamProps) -> AssetSpec:
        """The asset of one stream.

        Where two streams of a tap get one key, such as ``a-b`` and ``a_b``, `meltano_assets` gives
        one of them another.
        """
        stream = props.stream
        metadata: dict[str, Any] = {
            STATE_ID: props.state_id,
            "meltano/stream": stream.id,
            "meltano/environment": props.environment,
        }
        if stream.replication_method:
            metadata["meltano/replication_method"] = stream.replication_method
        if stream.replication_key:
            metadata["meltano/replication_key"] = stream.replication_key
        if stream.columns:
            metadata["dagster/column_schema"] = _column_schema(stream)
        key = ", ".join(stream.keys) or "none"
        return AssetSpec(
            key=[identifier_part(part) for part in (props.extractor, *stream.id.split("."))],
            group_name=_slug(props.extractor),
            description=(
                f"The stream `{stream.id}` of `{props.extractor}`, loaded by `{props.loader}` "
                f"with `meltano run`.\n\n{len(stream.columns)} properties; key: {key}."
            ),
            kinds={"meltano", _kind(props.extractor), _kind(props.loader)},
            tags={EXTRACTOR_TAG: props.extractor, LOADER_TAG: props.loader},
            metadata=metadata,
        )


def _slug(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in text)


def _kind(plugin: str) -> str:
    """``tap-postgres`` is known by the icon of ``postgres``."""
    return plugin.removeprefix("tap-").removeprefix("target-").split("--")[0]


def _column_schema(stream: Stream) -> TableSchema:
    sole_key = stream.keys[0] if len(stream.keys) == 1 else None
    return TableSchema(
        columns=[
            TableColumn(
                name=column.name,
                type=column.type,
                constraints=TableColumnConstraints(
                    nullable=column.nullable,
                    unique=column.name == sole_key,
                    other=["primary key"] if column.name in stream.keys else None,
                ),
            )
            for column in stream.columns
        ]
    )
