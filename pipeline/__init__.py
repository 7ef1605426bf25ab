"""The Beam jobs."""

import logging

# Beam warns when it is imported without its gcp extra, because it then lacks BigQuery, which no job
# uses. The filter is here because any module of this package may be the first to import Beam.
logging.getLogger().addFilter(lambda record: "apitools not found" not in record.getMessage())
