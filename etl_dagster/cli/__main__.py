"""`python -m etl_dagster.cli`, for where the script isn't on the path."""

from etl_dagster.cli.app import main

main()
