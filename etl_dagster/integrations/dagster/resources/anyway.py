"""The configuration to build definitions from, even if environment variables are not set.

If a code location does not load, its sensor does not tick, and nothing would report the mistake.
With stand-ins for the missing variables there are assets and a sensor. Its tick reads the
configuration again, and fails with the names of the variables.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dagster import DagsterInvalidConfigError, EnvVar

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError
from etl_dagster.integrations.dagster.resources.config_file import EtlConfigFileResource
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource

_log = logging.getLogger(__name__)

_MISSING = re.compile(r"the environment variable (\w+) is not set")
#: Every setting accepts one of these: a DSN, a number, a word.
STAND_IN = "not_set"
_STAND_INS = (f"postgresql://not-set.invalid/{STAND_IN}", "1", STAND_IN)
#: Each try checks a whole configuration.
_MOST_TRIES = 250


def load_anyway(resource: EtlResource) -> PipelineConfig:
    """The configuration, with stand-ins for variables that are not set. Never stream with it.

    Raises:
        ConfigError: it holds other mistakes as well.
    """
    try:
        return load_config(resource)
    except ConfigError as error:
        missing = dict.fromkeys(
            name for mistake in error.mistakes for name in _MISSING.findall(mistake)
        )
        if not missing:
            raise
        _log.warning(
            "%s\nThe definitions are loaded with stand-ins for these. What to do: %s",
            error.reason,
            error.solution,
        )
        tries = itertools.product(_STAND_INS, repeat=len(missing))
        for values in itertools.islice(tries, _MOST_TRIES):
            with _set(dict(zip(missing, values, strict=True))):
                try:
                    return load_config(resource)
                except ConfigError:
                    continue
        raise


def load_config(resource: EtlResource) -> PipelineConfig:
    """The configuration of a resource that Dagster has not set up.

    Raises:
        ConfigError: it holds mistakes, or a variable is not set; all of them.
    """
    if _is_plain_file(resource):
        return resource.load_config()
    try:
        with resource.process_config_and_initialize_cm() as loaded:
            config: PipelineConfig = loaded.load_config()
    except DagsterInvalidConfigError:
        # For a variable that is not set Dagster shows a stack trace; this error names all of them.
        resource.load_config()
        raise
    return config


def _is_plain_file(resource: EtlResource) -> bool:
    """Whether there is nothing for Dagster to resolve.

    To resolve something it makes another instance, which takes 0.2 s, and the parts of a pipeline's
    definitions read its configuration ten times.
    """
    if type(resource) is not EtlConfigFileResource:
        return False
    return not any(isinstance(each, EnvVar) for each in (resource.path, resource.destination))


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
