"""A web page to try a model and an index on: python -m trainer.serve.

`finder` answers, `app` speaks HTTP, `guard` keeps other sites out, `server` runs them; static/ is
the page. Only `finder` knows of models and indexes.
"""
