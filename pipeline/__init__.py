"""The Beam jobs."""

import logging

# Importing Beam without the gcp extra warns about BigQuery, which nothing here uses.
logging.getLogger().addFilter(lambda record: "apitools not found" not in record.getMessage())
